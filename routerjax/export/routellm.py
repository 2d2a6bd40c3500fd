"""RouteLLM's own format: a matrix factorisation that its code loads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Float32, Float64

from routerjax.atomic import new_directory, refuse_existing
from routerjax.errors import InputError
from routerjax.export.bundle import NUM_GOLDEN
from routerjax.export.verification import artefact_precision, reject
from routerjax.features import Embeddings, routellm_features
from routerjax.likelihoods import BradleyTerry
from routerjax.pretrained import tensor_bytes
from routerjax.pretrained.routellm import CONFIG_FILE, MODELS, NAMINGS, WEIGHTS_FILE, Naming
from routerjax.router import Router

TOLERANCE = 1e-6
"""Largest difference of win probability that is accepted between RouteLLM's formula on the file, in float64, and the
router, whose rounding in float32 grows with its scores: times the largest score where that is above 1."""


def export_routellm(router: Router, path: str | os.PathLike[str], *, naming: Naming = "released") -> float:
    """Write ``model.safetensors`` and the ``config.json`` with which RouteLLM's ``mf`` router loads it from a folder.

    Only its own form can be written: all of its 64 models, in any order here; no bias; model embeddings normalised;
    trained on text-embedding-3-small, since that is what its code will feed it. Noise in training does not matter.
    The file is read back, and RouteLLM's formula in float64 compared with the router, before the folder gets its name.

    Args:
        router: what to export. A router that was imported gives back the tensors bit for bit.
        path: a new folder.
        naming: of the tensors: ``released`` as its routers load them, ``training`` as its training code saves them.

    Returns:
        The largest difference of win probability found, over all models against the router's weak one.

    Raises:
        InputError: the folder exists, or the router has no such form.
        VerificationError: the file gives other win probabilities; it is kept beside ``path``, named in the message.
    """
    path = Path(path)
    refuse_existing(path)
    _require_form(router)
    params = router.variables["params"]
    rows = [router.column(name) for name in MODELS]
    ours = {
        "model_embedding": np.asarray(params["model_embedding"])[rows],
        "prompt_projection/kernel": np.asarray(params["prompt_projection"]["kernel"]).T,
        "classifier": np.asarray(params["classifier"])[None, :],
    }
    tensors = {NAMINGS[naming][name]: leaf for name, leaf in ours.items()}
    with new_directory(path) as folder:
        # torch's loaders ask for the metadata that torch's savers write.
        (folder / WEIGHTS_FILE).write_bytes(tensor_bytes(tensors, {"format": "pt"}))
        (folder / CONFIG_FILE).write_text(json.dumps(_model_config(ours["prompt_projection/kernel"]), indent=2) + "\n")
        difference, largest_score = _compare(router, folder / WEIGHTS_FILE, naming)
        if not difference <= TOLERANCE * max(1.0, largest_score):
            reject(folder, path, f"win probabilities differ by {difference:.1e}")
    return difference


def _model_config(projection: Float32[np.ndarray, "model_dim embed"]) -> dict[str, int | bool]:
    """Arguments of RouteLLM's ``MFModel``, whose ``from_pretrained`` takes them from ``config.json``."""
    model_dim, embed = projection.shape
    return {"dim": model_dim, "num_models": len(MODELS), "text_dim": embed, "num_classes": 1, "use_proj": True}


def _require_form(router: Router) -> None:
    if router.family != "mf":
        raise InputError(f"RouteLLM's format holds matrix factorisations (mf), got a router of family {router.family}")
    is_bradley_terry = isinstance(router.likelihood, BradleyTerry)
    if not is_bradley_terry or "calibration" in router.variables:
        held = "a calibration" if is_bradley_terry else f"the loss {router.likelihood.name}"
        raise InputError(
            f"RouteLLM's format has no place for {held}: its win probability is sigmoid(s_strong - s_weak)"
        )
    if router.reader is not None:
        raise InputError(
            "RouteLLM's format has no place for an encoder, and this router has its own: train with "
            "features.train_encoder=False"
        )
    module = router.module
    form = {"bias": False, "normalize_models": True}
    wrong = [f"{name}={getattr(module, name)}" for name, value in form.items() if getattr(module, name) != value]
    if wrong:
        raise InputError(
            f"RouteLLM's format has no place for {', '.join(wrong)}: train with router attributes "
            "bias=False, normalize_models=True"
        )
    missing, extra = sorted(set(MODELS) - set(router.models)), sorted(set(router.models) - set(MODELS))
    if missing or extra:
        listed = [f"- {name}" for name in missing[:5]] + [f"+ {name}" for name in extra[:5]]
        raise InputError(
            f"RouteLLM's format holds exactly its {len(MODELS)} models; this router lacks {len(missing)} of them (-) "
            f"and has {len(extra)} others (+): {'; '.join(listed)}"
        )
    wanted = routellm_features()
    if (router.features.fingerprint, router.features.width) != (wanted.fingerprint, wanted.width):
        raise InputError(
            f"RouteLLM embeds prompts with {wanted.source} ({wanted.width} wide), but this router was trained with "
            f"{router.features.source} ({router.features.width} wide); its scores there would mean nothing"
        )


def _compare(router: Router, file: Path, naming: Naming) -> tuple[float, float]:
    """The largest difference of win probability, and the largest score, on random embeddings of length 1."""
    embedding = np.random.default_rng(0).standard_normal((NUM_GOLDEN, router.features.width)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    with artefact_precision():
        scores = router.scores(Embeddings(embedding, router.features.fingerprint)).astype(np.float64)
    own = _win_prob(scores, router.column(router.weak))
    tensors = {name: leaf.astype(np.float64) for name, leaf in safetensors.numpy.load_file(file).items()}
    models, projection, classifier = (tensors[name] for name in NAMINGS[naming].values())
    models /= np.maximum(np.linalg.norm(models, axis=1, keepdims=True), 1e-12)
    logits = (embedding @ projection.T) @ (models * classifier).T
    written = _win_prob(logits, MODELS.index(router.weak))
    difference = np.abs(written[:, [MODELS.index(name) for name in router.models]] - own)
    return float(difference.max()), float(np.abs(scores).max())


def _win_prob(scores: Float64[np.ndarray, "prompts models"], weak: int) -> Float64[np.ndarray, "prompts models"]:
    return np.exp(-np.logaddexp(0, scores[:, [weak]] - scores))
