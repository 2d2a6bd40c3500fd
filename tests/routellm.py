"""Checkpoints in RouteLLM's format, and its score in float64."""

from pathlib import Path

import numpy as np
import safetensors.numpy

from routerjax.pretrained import routellm


def random_tensors(naming: routellm.Naming, *, model_dim: int = 128, embed: int = 1536) -> dict[str, np.ndarray]:
    """Random weights under which win probabilities spread over (0, 1)."""
    generator = np.random.default_rng(7)
    shapes = [(64, model_dim), (model_dim, embed), (1, model_dim)]
    values = [generator.standard_normal(shape) for shape in shapes]
    tensors = dict(zip(routellm.NAMINGS[naming].values(), values, strict=True))
    if naming == "training":
        tensors["Q.weight"] = generator.standard_normal((3, embed))
    return {name: leaf.astype(np.float32) for name, leaf in tensors.items()}


def write_checkpoint(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def unit_rows(count: int, width: int = 1536) -> np.ndarray:
    """Embeddings as the OpenAI API gives them: of length 1."""
    rows = np.random.default_rng(11).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def reference_win_prob(tensors: dict[str, np.ndarray], embedding: np.ndarray, strong: int, weak: int) -> np.ndarray:
    """logit_m = classifier(normalize(P_m) * text_proj(v)); sigmoid(logit_strong - logit_weak); in float64."""
    models, projection, classifier = (
        next(leaf.astype(np.float64) for name, leaf in tensors.items() if name.startswith(start))
        for start in ("P.", "text_proj.", "classifier.")
    )
    win_prob = []
    for row in embedding.astype(np.float64):
        projected = projection @ row
        logits = [
            classifier[0] @ (models[model] / np.sqrt(np.sum(models[model] ** 2)) * projected)
            for model in (strong, weak)
        ]
        win_prob.append(1 / (1 + np.exp(logits[1] - logits[0])))
    return np.asarray(win_prob)
