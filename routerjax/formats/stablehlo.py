"""Serving bundles: what is in the folder, and the proof that it works."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
import numpy as np
from jaxtyping import Float32

from routerjax.atomic import new_directory, refuse_existing
from routerjax.data import simulate_arena
from routerjax.errors import InputError
from routerjax.features import CHARACTERS_PER_TOKEN, Embeddings, SentenceEncoder
from routerjax.formats.scoring_functions import PLATFORMS, export_from_embedding, export_from_token_ids, flatten
from routerjax.formats.verification import artefact_precision, reject
from routerjax.pretrained import tensor_bytes
from routerjax.router import Router
from routerjax.sealing import seal

logger = logging.getLogger(__name__)

FORMAT = "routerjax-stablehlo-3"
TOLERANCE = {"from_embedding": 1e-6, "from_token_ids": 1e-5, "from_text": 1e-5}
"""Largest differences of win probability between the bundle and the router that are accepted."""
LOADER = Path(__file__).with_name("load_bundle.py")
NUM_GOLDEN = 48


def golden_prompts() -> tuple[str, ...]:
    """The prompts that bundles are compared on: of the simulated arena, and one longer than any encoder takes."""
    prompts = simulate_arena(num_prompts=NUM_GOLDEN, num_test_prompts=1, seed=0).preferences.unique_prompts
    return (*prompts, " ".join(prompts))


def export_stablehlo(
    router: Router,
    path: str | os.PathLike[str],
    *,
    prompts: Sequence[str] | None = None,
) -> dict[str, float]:
    """Write a bundle that runs wherever jax does, without routerjax.

    The folder holds the scoring function from embeddings and, for routers of an encoder, from token ids (encoder and
    router as one function; of a router that reads text itself this one alone), as StableHLO for cpu, cuda and tpu with
    symbolic batch and length; the weights; the tokenizer; golden prompts with their win probabilities; ``load.py``; and
    ``bundle.json`` with the hashes of all of these and of its own content.
    A fresh process that imports jax and not routerjax loads it and compares, before the folder gets its name.

    Args:
        router: what to export.
        path: a new folder.
        prompts: golden prompts, default :func:`golden_prompts`.

    Returns:
        The largest difference of win probability found, for each way in.

    Raises:
        InputError: the folder exists, or the router's encoder is not the one it was trained with.
        VerificationError: the bundle gives other win probabilities; it is kept beside ``path``, named in the message.
    """
    path = Path(path)
    refuse_existing(path)
    reads_text = router.features.kind in ("encoder", "tokens")
    if not reads_text and prompts is not None:
        raise InputError("golden prompts were given, but this router's bundle takes embeddings, not text")
    prompts = (list(prompts) if prompts is not None else list(golden_prompts())) if reads_text else []
    what = f"{len(prompts)} prompts of its own, a long one to be cut among them" if reads_text else "embeddings"
    logger.info("exporting, and comparing with the router in a new process on %s", what)
    files: dict[str, bytes] = {"router.safetensors": tensor_bytes(flatten(router.variables))}
    golden: dict[str, np.ndarray] = {}
    prefix, special_tokens = "", None
    if reads_text:
        encoder = None if router.reader is not None else cast(SentenceEncoder, router.encoder)
        tokenizer = router.tokenizer if encoder is None else encoder.tokenizer
        golden |= tokenizer.pad(tokenizer.token_ids(prompts))
        if encoder is not None:
            files["encoder.safetensors"] = tensor_bytes(flatten(encoder.variables))
        files["tokenizer.json"], prefix = tokenizer.tokenizer_json, tokenizer.prefix
        special_tokens = [ids.tolist() for ids in tokenizer.special_tokens]
        files["from_token_ids.stablehlo"] = bytes(export_from_token_ids(router, encoder).serialize())
    query: Sequence[str] | Embeddings = prompts
    if router.reader is None:
        golden["embedding"] = _golden_embedding(router, prompts)
        query = Embeddings(golden["embedding"], router.features.fingerprint)
        files["from_embedding.stablehlo"] = bytes(export_from_embedding(router).serialize())
    with artefact_precision():
        win_prob = router.win_prob(query)
    files["golden.safetensors"] = tensor_bytes({**golden, "win_prob": win_prob})
    files["load.py"] = LOADER.read_bytes()
    description = {
        "format": FORMAT,
        "jax_version": jax.__version__,
        "platforms": list(PLATFORMS),
        "family": router.family,
        "strong": router.strong,
        "weak": router.weak,
        "threshold": router.threshold_as_json,
        "features": router.features.to_dict(),
        "max_length": router.features.max_length if reads_text else None,
        "truncation": router.features.truncation if reads_text else None,
        "characters_per_token": CHARACTERS_PER_TOKEN if reads_text else None,
        "prefix": prefix,
        "special_tokens": special_tokens,
        "golden_prompts": prompts,
        "tolerance": TOLERANCE,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        "provenance": dict(router.provenance),
    }
    with new_directory(path) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        text = json.dumps(seal(description), indent=2)  # in ASCII, which holds half an emoji in a prompt too
        (folder / "bundle.json").write_text(text + "\n", encoding="utf-8")
        return _verify(folder, path)


def _golden_embedding(router: Router, prompts: Sequence[str]) -> Float32[np.ndarray, "prompts embed"]:
    """Of the prompts; random ones of length 1 for a router that knows nothing that reads text."""
    if prompts:
        return cast(SentenceEncoder, router.encoder).encode(prompts)
    embedding = np.random.default_rng(0).standard_normal((NUM_GOLDEN, router.features.width)).astype(np.float32)
    return embedding / np.linalg.norm(embedding, axis=1, keepdims=True)


def _verify(folder: Path, path: Path) -> dict[str, float]:
    """Load and compare in a fresh process, isolated from this one's path and modules."""
    command = [sys.executable, "-I", str(folder / "load.py"), "--verify"]
    # Without its filtered tracebacks, JAX ends an error with its message.
    environment = {**os.environ, "JAX_TRACEBACK_FILTERING": "off"}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode != 0:
        reject(folder, path, (finished.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(finished.stdout)["largest_difference"]
