"""Published routers as routers of ours."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from routerjax.data import read_aligned_battles, to_batch
from routerjax.errors import InputError
from routerjax.features import routellm_features
from routerjax.likelihoods import BRADLEY_TERRY, ThreeLabels
from routerjax.pretrained import file_sha256, locate, read_bert_config, routellm
from routerjax.router import Router, load_reader, make_module, remember
from routerjax.router.hf import HfSettings, load_hf, read_settings, tokenizer_max_length

logger = logging.getLogger(__name__)

CONFIG_ENDINGS = (".yaml", ".yml")
TRANSFORMERS_LABELS = ("LABEL_0", "LABEL_1")
"""Labels that transformers gives a classifier whose configuration names none."""


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
    config = routellm.read_config(Path(source), "mf", routellm.MatrixFactorizationConfig) if is_config else None
    path = routellm.find_checkpoint(source if config is None else config.checkpoint_path)
    params = routellm.read_factorization(path)
    embed, model_dim = params["prompt_projection"]["kernel"].shape
    if config is not None:
        held = {"hidden_size": model_dim, "num_models": len(routellm.MODELS), "text_dim": embed, "num_classes": 1}
        for name, value in {**held, "use_proj": True}.items():
            if getattr(config, name) != value:
                raise InputError(f"{source}: mf.{name} is {getattr(config, name)!r}, but {path} holds {value!r}")
    if embed != routellm.TEXT_DIM:
        logger.warning("%s reads embeddings %d wide; RouteLLM's own are %d", path, embed, routellm.TEXT_DIM)
    defaults = config or routellm.MatrixFactorizationConfig(checkpoint_path=os.fspath(source))
    return Router(
        family="mf",
        attributes={"model_dim": model_dim, "bias": False, "normalize_models": True},
        models=routellm.MODELS,
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
    config = routellm.read_config(Path(source), "sw_ranking", routellm.SimilarityWeightedConfig)
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
        InputError: no such source, damaged, not three labels, or what :func:`routerjax.export.export_hf` wrote.

    Reference:
        ``BERTRouter`` in ``routellm/routers/routers.py`` of RouteLLM's code.
    """
    is_config = Path(source).suffix in CONFIG_ENDINGS
    config = routellm.read_config(Path(source), "bert", routellm.ClassifierConfig) if is_config else None
    if config is not None and config.num_labels != 3:
        raise InputError(f"{source}: bert.num_labels must be 3 (strong wins, tie, weak wins), got {config.num_labels}")
    path = source if config is None else config.checkpoint_path
    folder = locate(path)
    if read_settings(folder) is not None:
        raise InputError(f"{path} is an exported router, not RouteLLM's classifier: import it with --format hf")
    strong, weak = strong or routellm.STRONG, weak or routellm.WEAK
    # Names of their own only rename the columns; the other way round, the two that it was released for are swapped.
    is_released_pair = {strong, weak} == {routellm.STRONG, routellm.WEAK}
    first, last = (routellm.STRONG, routellm.WEAK) if is_released_pair else (strong, weak)
    reader = load_reader(folder)
    settings = HfSettings([first, last], first, last, ThreeLabels(readout="win"), tokenizer_max_length(reader))
    router = load_hf(folder, reader, settings, source=os.fspath(path)).with_pair(strong, weak)
    return dataclasses.replace(router, provenance={**router.provenance, "format": "routellm-bert"})


def import_hf(source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
    """A classifier of the BERT family with a label for each model: what :func:`routerjax.export.export_hf` writes, or
    another whose labels are the names of models; ``P(a wins over b) = sigmoid(logit_a - logit_b)``.

    Args:
        source: a folder in Hugging Face's format, or a Hugging Face name.
        strong: one of the labels; default that of the router which was exported.
        weak: likewise.

    Raises:
        InputError: no such source, damaged, without a classifier, or no pair of models named where its files name none.
    """
    folder = locate(source)
    settings, reader = read_settings(folder), load_reader(folder)
    if settings is None:
        labels = list(read_bert_config(folder).labels or TRANSFORMERS_LABELS)
        if strong is None or weak is None:
            raise InputError(
                f"{source} does not say which models it routes between: give --strong and --weak, two of "
                f"its labels {', '.join(labels)}"
            )
        repeated = [label for label in labels if labels.count(label) > 1]
        if repeated:
            raise InputError(f"{source}: id2label gives the name {repeated[0]!r} to {labels.count(repeated[0])} labels")
        settings = HfSettings(labels, strong, weak, BRADLEY_TERRY, tokenizer_max_length(reader))
    router = load_hf(folder, reader, settings, source=os.fspath(source)).with_pair(strong, weak)
    return dataclasses.replace(router, provenance={**router.provenance, "format": "hf"})


IMPORTERS: Mapping[str, Callable[..., Router]] = {
    "routellm-mf": import_routellm_mf,
    "routellm-sw": import_routellm_sw,
    "routellm-bert": import_routellm_bert,
    "hf": import_hf,
}
"""Name of a format -> ``(source, *, strong, weak) -> Router``."""
