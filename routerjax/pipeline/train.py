"""Training from a configuration to a router on disk: battles -> features -> training -> router folder."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Float32

from routerjax import training
from routerjax.config import ExperimentConfig, TrainingConfig
from routerjax.data import (
    Preferences,
    model_index,
    require_both_outcomes,
    split_by_prompt,
    to_batch,
)
from routerjax.errors import InputError
from routerjax.features import EmbeddingCache, FeatureSpec, TextTokenizer
from routerjax.likelihoods import Likelihood, make_likelihood
from routerjax.models import nearest_neighbors_memory
from routerjax.pipeline.features import embed, load_preferences
from routerjax.pipeline.provenance import describe_run, require_run, require_same_run, write_json
from routerjax.pipeline.run_folder import require_loadable, run_folder
from routerjax.pipeline.tokens import learn_on_tokens
from routerjax.pretrained import locate, read_sentence_modules
from routerjax.router import (
    Router,
    TextReader,
    find_family,
    load_reader,
    load_router,
    make_module,
    pretrained_params,
    remember,
    save_router,
    typed_attributes,
    typed_choices,
)
from routerjax.typing import PreferenceBatch, PyTree

logger = logging.getLogger(__name__)


class _Text(NamedTuple):
    """An encoder that is trained with the router: what reads text, and the parameters that training starts from."""

    reader: TextReader
    tokenizer: TextTokenizer
    params: PyTree


class _Embedded(NamedTuple):
    """The prompts of a run as embeddings that stay as they are."""

    row_of: dict[str, int]
    embedding: Float32[np.ndarray, "prompts embed"]
    spec: FeatureSpec

    def batch(self, battles: Preferences) -> PreferenceBatch:
        """Battles on the device with the embeddings of their prompts."""
        return to_batch(battles, self.embedding[[self.row_of[prompt] for prompt in battles.unique_prompts]])


def train_router(config: ExperimentConfig, output: str | Path, *, resume: bool = False) -> Router:
    """Train the router that ``config`` describes, and write it with all that is needed to repeat the run.

    ``output`` then holds ``config.json``, ``router/`` (see :func:`routerjax.save_router`), ``knn/`` (the
    nearest-neighbour control on the same battles), and ``training/`` (checkpoints, metrics.jsonl, TensorBoard files).
    Neither router has seen the battles that are held out, whether it learns parameters or remembers battles.
    A router that reads text itself has no control where its encoder's files say that it makes embeddings in a way that
    is not computed here; the reason is logged.

    Args:
        config: see :class:`routerjax.config.ExperimentConfig`.
        output: a folder; must be new unless ``resume``.
        resume: go on from the last checkpoint in ``output``; the result is the same as without the interruption.

    Raises:
        InputError: the data, the names or the folder cannot be used; another process trains into it.
    """
    output = Path(output)
    config = _typed(config)
    if resume:
        require_run(output)
    with run_folder(output, resume=resume):
        return _train(config, output, resume=resume)


def _train(config: ExperimentConfig, output: Path, *, resume: bool) -> Router:
    provenance = describe_run(config)
    if resume:
        require_same_run(config, provenance, output)
        for name in ("router", "knn"):
            require_loadable(output / name)
    preferences = load_preferences(config.data)
    require_both_outcomes(preferences)
    for name in (config.router.strong, config.router.weak):
        model_index(preferences.models, name)
    likelihood = make_likelihood(config.router.loss, readout=config.router.readout)
    module, text = _open_module(config, preferences.models, likelihood)
    _require_fit(config, text)
    train, held_out = _split(preferences, config)
    embedded = _embed(preferences, config) if _can_embed(config) else None

    make_router = functools.partial(
        Router,
        models=preferences.models,
        strong=config.router.strong,
        weak=config.router.weak,
        provenance=provenance,
    )
    family, attributes = config.router.family, config.router.attributes
    routers: dict[str, Router] = {}
    held_out_battles = 0 if held_out is None else len(held_out)
    if embedded is not None and find_family(family).memory is not None:
        logger.info("%s remembers %d battles; %d are held out", family, len(train), held_out_battles)
        memory = remember(family, module, embedded.batch(train), names=preferences.models)
        routers["router"] = make_router(
            family=family, attributes=attributes, features=embedded.spec, variables={"memory": memory}
        )
    elif embedded is not None:
        control = nearest_neighbors_memory(embedded.batch(train), num_models=len(preferences.models))
        routers["knn"] = make_router(family="knn", attributes={}, features=embedded.spec, variables={"memory": control})

    # From here on things are written: what can be refused has been.
    if not resume:
        write_json(output / "config.json", provenance)
    if "router" not in routers:
        logger.info("training %s on %d battles, validating on %d", family, len(train), held_out_battles)
        where = {"directory": output / "training", "resume": resume}
        if text is not None:
            result = learn_on_tokens(
                module, train, held_out, text.tokenizer, config, params=text.params, likelihood=likelihood, **where
            )
            features = text.reader.spec(config.features.encoder, text.tokenizer.max_length, text.tokenizer.truncation)
        else:
            assert embedded is not None  # all that does not read text itself
            result = training.fit(
                module,
                embedded.batch(train),
                None if held_out is None else embedded.batch(held_out),
                likelihood=likelihood,
                optimizer=config.optimizer,
                training=_within(config.training, len(train)),
                **where,
            )
            features = embedded.spec
        routers["router"] = make_router(
            family=family,
            attributes=attributes,
            features=features,
            reader=None if text is None else text.reader,
            likelihood=likelihood,
            variables=result.variables,
            provenance={**provenance, "best_epoch": result.best_epoch, "validation_loss": result.best_loss},
        )
    for name, router in routers.items():
        folder = output / name
        if not (folder.is_dir() and any(folder.iterdir())):  # a run killed between the two has one of them already
            save_router(router, folder)
        load_router(folder)  # what is said to be written can be loaded
    return routers["router"]


def _typed(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with attributes in the types of the modules that they are of."""
    attributes = typed_attributes(config.router.family, config.router.attributes)
    encoder_attributes = typed_choices(config.features.encoder_attributes)
    return dataclasses.replace(
        config,
        router=dataclasses.replace(config.router, attributes=attributes),
        features=dataclasses.replace(config.features, encoder_attributes=encoder_attributes),
    )


def _open_module(
    config: ExperimentConfig, models: tuple[str, ...], likelihood: Likelihood
) -> tuple[nn.Module, _Text | None]:
    """The router's module, and the encoder that is trained with it, if one is."""
    reader = _open_reader(config)
    module = make_module(
        config.router.family,
        models=models,
        attributes=config.router.attributes,
        likelihood=likelihood,
        reader=reader,
    )
    if reader is None:
        return module, None
    tokenizer = reader.tokenizer(config.features.max_length, config.features.truncation)
    key = jax.random.key(config.training.init_seed)
    params = pretrained_params(module, locate(config.features.encoder), key=key)
    # On the host, so that a device holds them once when training has copied them.
    return module, _Text(reader, tokenizer, jax.device_get(params))


def _open_reader(config: ExperimentConfig) -> TextReader | None:
    reads_text = find_family(config.router.family).reads_text
    if not (reads_text or config.features.train_encoder):
        if config.features.encoder_attributes:
            raise InputError(
                "features.encoder_attributes are of an encoder that is trained: set features.train_encoder"
            )
        return None
    if config.features.embeddings is not None:
        raise InputError(f"given embeddings ({config.features.embeddings}) have no encoder that could be trained")
    return load_reader(locate(config.features.encoder), config.features.encoder_attributes, embeds=not reads_text)


def _require_fit(config: ExperimentConfig, text: _Text | None) -> None:
    """Refuse what the optimiser or the loop would refuse, before anything is encoded or written."""
    training.require_one_process()
    training.require_rates({} if text is None else text.params, config.optimizer)
    if text is None and config.training.micro_batches > 1:
        raise InputError(
            f"training.micro_batches must be 1 for a router of embeddings, got {config.training.micro_batches}; its "
            "steps are of training.batch_size battles"
        )
    trains_on_embeddings = text is None and find_family(config.router.family).memory is None
    if trains_on_embeddings and config.training.devices == "pmap":
        training.require_divisible(config.training.batch_size, jax.local_device_count())


def _within(config: TrainingConfig, num_battles: int) -> TrainingConfig:
    """The configuration with a step of at most all battles: what is beyond them would be computed in vain."""
    devices = jax.local_device_count() if config.devices == "pmap" else 1
    most = -(-num_battles // devices) * devices
    if config.batch_size <= most:
        return config
    logger.info(
        "training.batch_size %d is beyond the %d battles: a step takes them all", config.batch_size, num_battles
    )
    return dataclasses.replace(config, batch_size=most)


def _split(preferences: Preferences, config: ExperimentConfig) -> tuple[Preferences, Preferences | None]:
    """Battles to train on and, where some are, battles that are held out."""
    if config.data.validation_fraction == 0:
        return preferences, None
    fraction, seed = config.data.validation_fraction, config.data.seed
    return split_by_prompt(preferences, validation_fraction=fraction, seed=seed)


def _can_embed(config: ExperimentConfig) -> bool:
    """Return True unless embeddings are for the control alone, and the encoder's folder is not followed there."""
    if not find_family(config.router.family).reads_text:
        return True
    try:
        read_sentence_modules(locate(config.features.encoder))
    except InputError as error:
        logger.warning("no nearest-neighbour control: %s", error)
        return False
    return True


def _embed(preferences: Preferences, config: ExperimentConfig) -> _Embedded:
    prompts = preferences.unique_prompts
    with EmbeddingCache() as cache:
        embedding, spec = embed(prompts, config.features, root=Path(config.data.root), cache=cache)
    return _Embedded({prompt: row for row, prompt in enumerate(prompts)}, embedding, spec)
