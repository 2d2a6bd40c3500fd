"""RouteLLM's formats: a matrix factorisation that its code loads, written and read; its other routers, read."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Float32, Float64

from routerjax.atomic import new_directory, refuse_existing
from routerjax.data import read_aligned_battles, to_batch
from routerjax.errors import InputError
from routerjax.features import Embeddings, routellm_features
from routerjax.formats.hf_settings import HfSettings, load_hf, read_settings, tokenizer_max_length
from routerjax.formats.stablehlo import NUM_GOLDEN
from routerjax.formats.verification import artefact_precision, reject
from routerjax.likelihoods import BradleyTerry, ThreeLabels
from routerjax.pretrained import file_sha256, locate, tensor_bytes
from routerjax.pretrained.routellm import (
    CONFIG_FILE,
    MODELS,
    NAMINGS,
    STRONG,
    TEXT_DIM,
    WEAK,
    WEIGHTS_FILE,
    ClassifierConfig,
    MatrixFactorizationConfig,
    Naming,
    SimilarityWeightedConfig,
    find_checkpoint,
    read_config,
    read_factorization,
)
from routerjax.router import Router, load_reader, make_module, remember

logger = logging.getLogger(__name__)

CONFIG_ENDINGS = (".yaml", ".yml")

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


def import_routellm_mf(source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
    """RouteLLM's matrix factorisation, in the released naming or in that of its training code.

    ``P(strong wins) = sigmoid(s_strong - s_weak)`` with ``s_m = classifier . (normalize(P_m) * (text_proj v))``: our
    module with ``bias=False, normalize_models=True``. As there, a prompt goes to the strong model where this is at
    least the threshold.

    Args:
        source: a .safetensors file; a folder that holds model.safetensors; a Hugging Face name
            (``routellm/mf_gpt4_augmented``); or a RouteLLM configuration (.yaml) with a section ``mf``, whose
            ``checkpoint_path`` is one of these, a relative one counting from the working directory.
        strong: one of RouteLLM's 64 models; default the configuration's, or gpt-4-1106-preview.
        weak: likewise; default the configuration's, or mixtral-8x7b-instruct-v0.1.

    Raises:
        InputError: no such source, tensors missing, extra or misshaped, a configuration that does not fit them, or an
            unknown model.

    Reference:
        ``routellm/routers/matrix_factorization`` in RouteLLM's code.
    """
    is_config = Path(source).suffix in CONFIG_ENDINGS
    config = read_config(Path(source), "mf", MatrixFactorizationConfig) if is_config else None
    path = find_checkpoint(source if config is None else config.checkpoint_path)
    params = read_factorization(path)
    embed, model_dim = params["prompt_projection"]["kernel"].shape
    if config is not None:
        held = {"hidden_size": model_dim, "num_models": len(MODELS), "text_dim": embed, "num_classes": 1}
        for name, value in {**held, "use_proj": True}.items():
            if getattr(config, name) != value:
                raise InputError(f"{source}: mf.{name} is {getattr(config, name)!r}, but {path} holds {value!r}")
    if embed != TEXT_DIM:
        logger.warning("%s reads embeddings %d wide; RouteLLM's own are %d", path, embed, TEXT_DIM)
    defaults = config or MatrixFactorizationConfig(checkpoint_path=os.fspath(source))
    return Router(
        family="mf",
        attributes={"model_dim": model_dim, "bias": False, "normalize_models": True},
        models=MODELS,
        strong=strong or defaults.strong_model,
        weak=weak or defaults.weak_model,
        features=routellm_features(embed),
        variables={"params": jax.tree.map(jnp.asarray, params)},
        provenance={"imported_from": os.fspath(source), "format": "routellm-mf", "sha256": file_sha256(path)},
    )


def import_routellm_sw(source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
    """RouteLLM's similarity-weighted ranking: no weights, but battles and the embeddings of their prompts.

    Args:
        source: a RouteLLM configuration (.yaml) with a section ``sw_ranking``; its data sets are Hugging Face names, or
            local files, relative ones counting from the working directory.
        strong: a model of the battles; default the configuration's.
        weak: likewise.

    Raises:
        InputError: not such a configuration, data sets that do not match, or an unknown model.

    Reference:
        ``SWRankingRouter`` in ``routellm/routers/routers.py`` of RouteLLM's code. Deviation: a battle between models of
        one tier counts nothing, where RouteLLM's pulls that tier down.
    """
    if Path(source).suffix not in CONFIG_ENDINGS:
        raise InputError(f"{source} must be a RouteLLM configuration (.yaml) with a section sw_ranking")
    config = read_config(Path(source), "sw_ranking", SimilarityWeightedConfig)
    battles, embedding = read_aligned_battles(config.arena_battle_datasets, config.arena_embedding_datasets)
    attributes = {"num_tiers": config.num_tiers}
    module = make_module("sw", models=battles.models, attributes=attributes)
    return Router(
        family="sw",
        attributes=attributes,
        models=battles.models,
        strong=strong or config.strong_model,
        weak=weak or config.weak_model,
        features=routellm_features(embedding.shape[1]),
        variables={"memory": remember("sw", module, to_batch(battles, embedding), names=battles.models)},
        provenance={"imported_from": os.fspath(source), "format": "routellm-sw", **dataclasses.asdict(config)},
    )


def import_routellm_bert(
    source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None
) -> Router:
    """RouteLLM's BERT classifier: three labels (strong wins, tie, weak wins), ``P(strong wins) = softmax[0]``.

    Args:
        source: a folder in Hugging Face's format; a Hugging Face name (``routellm/bert_gpt4_augmented``); or a RouteLLM
            configuration (.yaml) with a section ``bert``, whose ``checkpoint_path`` is one of these.
        strong: name of the strong model; default RouteLLM's, gpt-4-1106-preview. The classifier knows one pair alone:
            these two the other way round swap it, other names rename it.
        weak: likewise; default mixtral-8x7b-instruct-v0.1.

    Raises:
        InputError: no such source, damaged, not three labels, or what :func:`routerjax.formats.export_hf`
            wrote.

    Reference:
        ``BERTRouter`` in ``routellm/routers/routers.py`` of RouteLLM's code.
    """
    is_config = Path(source).suffix in CONFIG_ENDINGS
    config = read_config(Path(source), "bert", ClassifierConfig) if is_config else None
    if config is not None and config.num_labels != 3:
        raise InputError(f"{source}: bert.num_labels must be 3 (strong wins, tie, weak wins), got {config.num_labels}")
    path = source if config is None else config.checkpoint_path
    folder = locate(path)
    if read_settings(folder) is not None:
        raise InputError(f"{path} is an exported router, not RouteLLM's classifier: import it with --format hf")
    strong, weak = strong or STRONG, weak or WEAK
    # Names of their own only rename the columns; the other way round, the two that it was released for are swapped.
    is_released_pair = {strong, weak} == {STRONG, WEAK}
    first, last = (STRONG, WEAK) if is_released_pair else (strong, weak)
    reader = load_reader(folder)
    settings = HfSettings([first, last], first, last, ThreeLabels(readout="win"), tokenizer_max_length(reader))
    router = load_hf(folder, reader, settings, source=os.fspath(path)).with_pair(strong, weak)
    return dataclasses.replace(router, provenance={**router.provenance, "format": "routellm-bert"})


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
