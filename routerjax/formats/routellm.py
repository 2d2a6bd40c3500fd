"""RouteLLM's formats: a matrix factorisation that its code loads, written and read; its other routers, read."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jaxtyping import Float64

from routerjax.data import read_aligned_battles, to_batch
from routerjax.errors import InputError, VerificationError
from routerjax.families import MF, SW, head_of
from routerjax.features import Embeddings, load_tokens, routellm_features
from routerjax.formats.format import ReadableFormat, WritableFormat
from routerjax.formats.hf_settings import HfSettings, load_hf, read_settings
from routerjax.likelihoods import BradleyTerry, ThreeLabels
from routerjax.models import MatrixFactorization
from routerjax.policies import Threshold
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
    SimilarityWeightedConfig,
    find_checkpoint,
    read_config,
    read_factorization,
)
from routerjax.router import Router

logger = logging.getLogger(__name__)

RELEASED = NAMINGS["released"]
CONFIG_ENDINGS = (".yaml", ".yml")

TOLERANCE = 1e-6
"""Largest difference of win probability that is accepted between RouteLLM's formula on the file, in float64, and the
router, whose rounding in float32 grows with its scores: times the largest score where that is above 1."""


class Factorization(ReadableFormat, WritableFormat):
    """RouteLLM's matrix factorisation: ``model.safetensors``, and the ``config.json`` with which its ``mf`` loads it.

    Only its own form can be written: all of its 64 models, in any order here; no bias; model embeddings normalised;
    trained on text-embedding-3-small, since that is what its code will feed it. Noise in training does not matter.
    What was imported and not trained gives back the tensors bit for bit, in the naming of the released files.
    """

    name = "routellm-mf"

    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        """Read it in the released naming or in that of its training code.

        ``P(strong wins) = sigmoid(s_strong - s_weak)`` with ``s_m = classifier . (normalize(P_m) * (text_proj v))``:
        our module with ``bias=False, normalize_models=True``. As there, a prompt goes to the strong model where this is
        at least the threshold.

        Args:
            source: a .safetensors file; a folder that holds model.safetensors; a Hugging Face name
                (``routellm/mf_gpt4_augmented``); or a RouteLLM configuration (.yaml) with a section ``mf``, whose
                ``checkpoint_path`` is one of these, a relative one counting from the working directory.
            strong: one of RouteLLM's 64 models; default the configuration's, or gpt-4-1106-preview.
            weak: likewise; default the configuration's, or mixtral-8x7b-instruct-v0.1.

        Raises:
            InputError: no such source, tensors missing, extra or misshaped, a configuration that does not fit them, or
                an unknown model.

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
        featurizer = routellm_features(embed)
        attributes = {"model_dim": model_dim, "bias": False, "normalize_models": True}
        return Router(
            module=MF.make_module(num_outputs=len(MODELS), attributes=attributes, featurizer=featurizer),
            featurizer=featurizer,
            models=MODELS,
            policy=Threshold(strong or defaults.strong_model, weak or defaults.weak_model),
            variables={"params": jax.tree.map(jnp.asarray, params)},
            provenance={"sha256": file_sha256(path)},
        )

    def unmet(self, router: Router) -> Iterator[str]:
        """Refuse a router that is not of RouteLLM's own form."""
        module = router.module
        if not isinstance(head_of(module), MatrixFactorization):
            yield f"RouteLLM's format holds matrix factorisations ({MF.name}), got a router of family {router.family}"
            return
        is_bradley_terry = isinstance(router.likelihood, BradleyTerry)
        if not is_bradley_terry or "calibration" in router.variables:
            held = "a calibration" if is_bradley_terry else f"the loss {router.likelihood.name}"
            yield f"RouteLLM's format has no place for {held}: its win probability is sigmoid(s_strong - s_weak)"
        if not isinstance(module, MatrixFactorization):
            yield (
                "RouteLLM's format has no place for an encoder, and this router has its own: train with "
                "features.train_encoder=False"
            )
        form, head = {"bias": False, "normalize_models": True}, head_of(module)
        wrong = [f"{name}={getattr(head, name)}" for name, value in form.items() if getattr(head, name) != value]
        if wrong:
            yield (
                f"RouteLLM's format has no place for {', '.join(wrong)}: train with router attributes "
                "bias=False, normalize_models=True"
            )
        missing, extra = sorted(set(MODELS) - set(router.models)), sorted(set(router.models) - set(MODELS))
        if missing or extra:
            listed = [f"- {name}" for name in missing[:5]] + [f"+ {name}" for name in extra[:5]]
            yield (
                f"RouteLLM's format holds exactly its {len(MODELS)} models; this router lacks {len(missing)} of them "
                f"(-) and has {len(extra)} others (+): {', '.join(listed)}"
            )
        wanted, featurizer = routellm_features(), router.featurizer
        is_same = (featurizer.fingerprint, featurizer.width) == (wanted.fingerprint, wanted.width)
        if isinstance(module, MatrixFactorization) and not is_same:
            yield (
                f"RouteLLM embeds prompts with {wanted.source} ({wanted.width} wide), but this router was trained with "
                f"{router.featurizer.source} ({router.featurizer.width} wide); its scores there would mean nothing"
            )

    def write(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> None:
        """Write the tensors, and the arguments that ``from_pretrained`` of RouteLLM's ``MFModel`` takes."""
        del query
        params = router.variables["params"]
        rows = [router.column(name) for name in MODELS]
        ours = {
            "model_embedding": np.asarray(params["model_embedding"])[rows],
            "prompt_projection/kernel": np.asarray(params["prompt_projection"]["kernel"]).T,
            "classifier": np.asarray(params["classifier"])[None, :],
        }
        model_dim, embed = ours["prompt_projection/kernel"].shape
        config = {"dim": model_dim, "num_models": len(MODELS), "text_dim": embed, "num_classes": 1, "use_proj": True}
        tensors = {RELEASED[name]: leaf for name, leaf in ours.items()}
        # torch's loaders ask for the metadata that torch's savers write.
        (folder / WEIGHTS_FILE).write_bytes(tensor_bytes(tensors, {"format": "pt"}))
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")

    def verify(self, router: Router, folder: Path, query: Sequence[str] | Embeddings) -> dict[str, float]:
        """Compare RouteLLM's formula on the file, in float64, over all models against the router's weak one."""
        scores = router.scores(query).astype(np.float64)
        expected = _win_prob(scores, router.column(router.weak))
        file = safetensors.numpy.load_file(folder / WEIGHTS_FILE)
        models, projection, classifier = (file[name].astype(np.float64) for name in RELEASED.values())
        models /= np.maximum(np.linalg.norm(models, axis=1, keepdims=True), 1e-12)
        logits = (cast(Embeddings, query).embedding @ projection.T) @ (models * classifier).T
        win_prob = _win_prob(logits, MODELS.index(router.weak))[:, [MODELS.index(name) for name in router.models]]
        difference = float(np.abs(win_prob - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(scores).max())):
            raise VerificationError(f"win probabilities differ by {difference:.1e}")
        return {WEIGHTS_FILE: difference}

    def usage(self, router: Router, path: Path) -> str:
        """The section of RouteLLM's configuration that loads it."""
        return (
            f"in RouteLLM's config: mf: {{checkpoint_path: {path}, strong_model: {router.strong}, "
            f"weak_model: {router.weak}, hidden_size: {router.variables['params']['classifier'].shape[0]}}}"
        )


class SimilarityWeightedRanking(ReadableFormat):
    """RouteLLM's similarity-weighted ranking: no weights, but battles and the embeddings of their prompts."""

    name = "routellm-sw"

    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        """Read the battles of a configuration.

        Args:
            source: a RouteLLM configuration (.yaml) with a section ``sw_ranking``; its data sets are Hugging Face
                names, or local files, relative ones counting from the working directory.
            strong: a model of the battles; default the configuration's.
            weak: likewise.

        Raises:
            InputError: not such a configuration, data sets that do not match, or an unknown model.

        Reference:
            ``SWRankingRouter`` in ``routellm/routers/routers.py`` of RouteLLM's code. Deviation: a battle between
            models of one tier counts nothing, where RouteLLM's pulls that tier down.
        """
        if Path(source).suffix not in CONFIG_ENDINGS:
            raise InputError(f"{source} must be a RouteLLM configuration (.yaml) with a section sw_ranking")
        config = read_config(Path(source), "sw_ranking", SimilarityWeightedConfig)
        battles, embedding = read_aligned_battles(config.arena_battle_datasets, config.arena_embedding_datasets)
        featurizer = routellm_features(embedding.shape[1])
        module = SW.make_module(
            num_outputs=len(battles.models), attributes={"num_tiers": config.num_tiers}, featurizer=featurizer
        )
        return Router(
            module=module,
            featurizer=featurizer,
            models=battles.models,
            policy=Threshold(strong or config.strong_model, weak or config.weak_model),
            variables={"memory": SW.remember(module, to_batch(battles, embedding), battles.models)},
            provenance=dataclasses.asdict(config),
        )


class Classifier(ReadableFormat):
    """RouteLLM's BERT classifier: three labels (strong wins, tie, weak wins), ``P(strong wins) = softmax[0]``."""

    name = "routellm-bert"

    def read(self, source: str | os.PathLike[str], *, strong: str | None = None, weak: str | None = None) -> Router:
        """Read a classifier of one pair.

        Args:
            source: a folder in Hugging Face's format; a Hugging Face name (``routellm/bert_gpt4_augmented``); or a
                RouteLLM configuration (.yaml) with a section ``bert``, whose ``checkpoint_path`` is one of these.
            strong: name of the strong model; default RouteLLM's, gpt-4-1106-preview. The classifier knows one pair
                alone: these two the other way round swap it, other names rename it.
            weak: likewise; default mixtral-8x7b-instruct-v0.1.

        Raises:
            InputError: no such source, damaged, not three labels, or what the format ``hf`` wrote.

        Reference:
            ``BERTRouter`` in ``routellm/routers/routers.py`` of RouteLLM's code.
        """
        is_config = Path(source).suffix in CONFIG_ENDINGS
        config = read_config(Path(source), "bert", ClassifierConfig) if is_config else None
        if config is not None and config.num_labels != 3:
            raise InputError(
                f"{source}: bert.num_labels must be 3 (strong wins, tie, weak wins), got {config.num_labels}"
            )
        path = source if config is None else config.checkpoint_path
        folder = locate(path)
        if read_settings(folder) is not None:
            raise InputError(f"{path} is an exported router, not RouteLLM's classifier: import it with --format hf")
        strong, weak = strong or STRONG, weak or WEAK
        # Names of their own only rename the columns; the other way round, the two that it was released for are swapped.
        is_released_pair = {strong, weak} == {STRONG, WEAK}
        first, last = (STRONG, WEAK) if is_released_pair else (strong, weak)
        featurizer = load_tokens(path)
        settings = HfSettings([first, last], Threshold(first, last), ThreeLabels(readout="win"), featurizer.max_length)
        return load_hf(folder, featurizer, settings).with_pair(strong, weak)


def _win_prob(scores: Float64[np.ndarray, "prompts models"], weak: int) -> Float64[np.ndarray, "prompts models"]:
    return np.exp(-np.logaddexp(0, scores[:, [weak]] - scores))
