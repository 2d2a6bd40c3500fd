"""From a configuration to a router on disk: battles -> features -> training -> router folder."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path

from routerjax import losses, models
from routerjax.atomic import refuse_existing
from routerjax.config import ExperimentConfig
from routerjax.data import (
    Preferences,
    model_index,
    require_both_outcomes,
    split_by_prompt,
    to_batch,
)
from routerjax.errors import InputError
from routerjax.features import EmbeddingCache
from routerjax.pipeline.features import embed, load_preferences
from routerjax.pipeline.learn import learn_on_embeddings, learn_on_tokens
from routerjax.pipeline.provenance import describe_run, require_same_run, write_json
from routerjax.pretrained import locate
from routerjax.router import Router, TextReader, find_family, load_reader, make_module, remember, save_router
from routerjax.typing import PreferenceBatch

logger = logging.getLogger(__name__)


def train_router(config: ExperimentConfig, output: str | Path, *, resume: bool = False) -> Router:
    """Train the router that ``config`` describes, and write it with all that is needed to repeat the run.

    ``output`` then holds ``config.json``, ``router/`` (see :func:`routerjax.save_router`), ``knn/`` (the
    nearest-neighbour control on the same battles), and ``training/`` (checkpoints, metrics.jsonl, TensorBoard files).

    Args:
        config: see :class:`routerjax.config.ExperimentConfig`.
        output: a folder; must be new unless ``resume``.
        resume: go on from the last checkpoint in ``output``; the result is the same as without the interruption.

    Raises:
        InputError: the data, the names or the folder cannot be used.
    """
    output = Path(output)
    family = config.router.family
    provenance = describe_run(config)
    if resume:
        require_same_run(provenance, output)
    else:
        refuse_existing(output)
    preferences = load_preferences(config.data)
    require_both_outcomes(preferences)
    for name in (config.router.strong, config.router.weak):
        model_index(preferences.models, name)
    num_models = len(preferences.models)
    reader = _open_reader(config)
    module = make_module(
        family, num_models=num_models, attributes=config.router.attributes, loss=config.router.loss, reader=reader
    )
    losses.make_readout(config.router.loss, config.router.readout)  # an unknown one is refused now, not after training

    tokenizer = None if reader is None else reader.tokenizer(config.features.max_length)
    prompts = preferences.unique_prompts
    with EmbeddingCache() as cache:
        embedding, spec = embed(prompts, config.features, root=Path(config.data.root), cache=cache)
    row_of = {prompt: row for row, prompt in enumerate(prompts)}

    def batch_of(battles: Preferences) -> PreferenceBatch:
        return to_batch(battles, embedding[[row_of[prompt] for prompt in battles.unique_prompts]])

    make_router = functools.partial(
        Router,
        models=preferences.models,
        strong=config.router.strong,
        weak=config.router.weak,
        features=spec,
        provenance=provenance,
    )
    trains_nothing = find_family(family).memory is not None
    if trains_nothing:
        variables = {"memory": remember(family, module, batch_of(preferences))}
        routers = {"router": make_router(family=family, attributes=config.router.attributes, variables=variables)}
    else:
        control = models.nearest_neighbors_memory(batch_of(preferences), num_models=num_models)
        routers = {"knn": make_router(family="knn", attributes={}, variables={"memory": control})}
    train, held_out = preferences, None
    if config.data.validation_fraction > 0:
        fraction, seed = config.data.validation_fraction, config.data.seed
        train, held_out = split_by_prompt(preferences, validation_fraction=fraction, seed=seed)

    # From here on things are written: what can be refused has been.
    output.mkdir(parents=True, exist_ok=True)
    if not resume:
        write_json(output / "config.json", provenance)
    if not trains_nothing:
        logger.info("training %s on %d battles, validating on %d", family, len(train), len(preferences) - len(train))
        where = {"directory": output / "training", "resume": resume}
        if tokenizer is None:
            result = learn_on_embeddings(module, train, held_out, batch_of, config, **where)
        else:
            result = learn_on_tokens(module, train, held_out, tokenizer, config, **where)
        routers["router"] = dataclasses.replace(
            routers["knn"],
            family=family,
            attributes=config.router.attributes,
            features=spec if reader is None else reader.spec(config.features.encoder, config.features.max_length),
            reader=reader,
            loss=config.router.loss,
            readout=config.router.readout,
            variables=result.variables,
            provenance={**provenance, "best_epoch": result.best_epoch, "validation_loss": result.best_loss},
        )
    for name, router in routers.items():
        if not (output / name).exists():  # a run that was killed between the two has one of them already
            save_router(router, output / name)
    return routers["router"]


def _open_reader(config: ExperimentConfig) -> TextReader | None:
    """The encoder that is trained with the router, if one is."""
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
