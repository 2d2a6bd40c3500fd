"""Training from a configuration to a router on disk: battles -> features -> training -> router folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from routerjax import distributed, training
from routerjax.config import ExperimentConfig, OptimizerConfig, by_full_name
from routerjax.data import (
    EmbeddedBatches,
    EmbeddedPrompts,
    Preferences,
    TokenBatches,
    model_index,
    require_both_outcomes,
    split_by_prompt,
)
from routerjax.errors import InputError
from routerjax.families import KNN, Family, find_family
from routerjax.features import (
    EmbeddingCache,
    Featurizer,
    TextTokenizer,
    TokenFeaturizer,
    open_featurizer,
    read_prompts,
    shared_query,
)
from routerjax.likelihoods import Likelihood, make_likelihood
from routerjax.models import Decoder, typed_choices
from routerjax.pipeline.battles import load_preferences
from routerjax.pipeline.provenance import (
    describe_run,
    read_run,
    read_template,
    require_run,
    require_same_run,
    write_run,
)
from routerjax.pipeline.run_folder import require_loadable, run_folder
from routerjax.policies import Threshold
from routerjax.router import Router, require_router, save_router
from routerjax.training.hooks import TRACKERS, Hook, TrackedRun, require_tracker
from routerjax.typing import PreferenceBatch, Variables

logger = logging.getLogger(__name__)


def train_router(
    config: ExperimentConfig, output: str | Path, *, resume: bool = False, log: Sequence[str] = ()
) -> Router:
    """Train the router that ``config`` describes, and write it with all that is needed to repeat the run.

    ``output`` then holds ``run.json`` (see :func:`routerjax.pipeline.provenance.write_run`), ``router/`` (see
    :func:`routerjax.save_router`), ``knn/`` (the nearest-neighbour control on the same battles), and ``training/``
    (checkpoints, metrics.jsonl, TensorBoard files).
    Neither router has seen the battles that are held out, whether it learns parameters or remembers battles.
    A router that reads text itself has no control where its encoder is a decoder, or where its files say that it makes
    embeddings in a way that is not computed here; and none has one without ``training.resident``. The reason is logged.

    Several processes that :func:`routerjax.distributed.join` has joined train one router: all call this alike, and
    ``output`` is a folder that all of them see.

    Args:
        config: see :class:`routerjax.config.ExperimentConfig`.
        output: a folder; must be new unless ``resume``.
        resume: go on from the last checkpoint in ``output``; the result is the same as without the interruption.
        log: names in :data:`routerjax.training.hooks.TRACKERS`, to which the figures of each epoch are sent.

    Raises:
        InputError: the data, the names or the folder cannot be used; another process trains into it.
    """
    output = Path(output)
    config = typed_config(config)
    for name in log:
        require_tracker(name)
    settings = by_full_name(dataclasses.asdict(config))
    distributed.require_alike({**settings, "--resume": resume, "--output": str(output.absolute())})
    if resume:
        distributed.by_first(lambda: require_run(output))
    with distributed.in_first(run_folder(output, resume=resume)):
        return _train(config, output, resume=resume, log=log)


def _train(config: ExperimentConfig, output: Path, *, resume: bool, log: Sequence[str]) -> Router:
    provenance = describe_run(config)
    distributed.require_alike({name: provenance[name] for name in ("data_sha256", "versions")})
    if resume:
        require_same_run(config, provenance, output)
        for name in ("router", "knn"):
            require_loadable(output / name)
    preferences = load_preferences(config.data)
    require_both_outcomes(preferences)
    for name in (config.router.strong, config.router.weak):
        model_index(preferences.models, name)
    likelihood = make_likelihood(config.router.loss, readout=config.router.readout)
    family = find_family(config.router.family)
    family.require_likelihood(likelihood)
    _log_both_bad(preferences, likelihood)
    featurizer = open_featurizer(config.features, root=Path(config.data.root), embeds=not family.reads_text)
    if isinstance(featurizer, TokenFeaturizer):
        if resume:  # a chat template may write the date, which is another by now
            featurizer = dataclasses.replace(featurizer, template=read_template(output))
        provenance["template"] = dataclasses.asdict(featurizer.template)
    num_outputs = len(likelihood.output_names(preferences.models))

    def make_module(featurizer: Featurizer) -> nn.Module:
        return family.make_module(num_outputs=num_outputs, attributes=config.router.attributes, featurizer=featurizer)

    module = make_module(featurizer)
    is_text = isinstance(featurizer, TokenFeaturizer)
    _require_fit(config, family, is_text=is_text, log=log)

    def begin() -> tuple[Variables, training.AdamW]:
        start = family.start(module, featurizer, jax.random.key(config.training.init_seed))
        return start, training.AdamW(config.optimizer, family.parameter_groups(start.get("params", {})))

    # What the optimiser refuses is refused before anything is encoded, unless only embeddings tell their width.
    knows_width = featurizer.known_width is not None
    start, optimizer = begin() if family.trains and knows_width else ({}, training.AdamW(config.optimizer))
    train, held_out = _split(preferences, config)
    frozen, embedded = _embed(preferences, config, featurizer)
    if family.trains and not knows_width:
        start, optimizer = begin()

    make_router = functools.partial(
        Router,
        models=preferences.models,
        policy=Threshold(config.router.strong, config.router.weak),
        provenance=provenance,
    )
    routers: dict[str, Router] = {}
    held_out_battles = 0 if held_out is None else len(held_out)
    if embedded is not None and not family.trains:
        logger.info("%s remembers %d battles; %d are held out", family.name, len(train), held_out_battles)
        memory = family.remember(module, embedded.batch(train), preferences.models)
        scorer = featurizer.for_scoring()
        routers["router"] = make_router(module=module, featurizer=scorer, variables={"memory": memory})
    elif embedded is not None and config.training.resident:
        scorer = frozen.for_scoring()
        control = KNN.make_module(num_outputs=len(preferences.models), attributes={}, featurizer=scorer)
        memory = KNN.remember(control, embedded.batch(train), preferences.models)
        routers["knn"] = make_router(module=control, featurizer=scorer, variables={"memory": memory})

    sources = []
    if "router" not in routers:
        sources = _sources(train, held_out, featurizer, embedded, config)
        num_steps = training.steps_per_epoch(sources[0], config.training) * config.training.epochs
        training.require_within(config.training.profiled_steps, num_steps)

    # From here on things are written: what can be refused has been.
    note_start = functools.cache(lambda: write_run(output, provenance, resume=resume))
    if not resume and distributed.is_first():
        note_start()
    if sources:
        logger.info("training %s on %d battles, validating on %d", family.name, len(train), held_out_battles)
        with contextlib.ExitStack() as stack:
            hooks: list[Hook] = [lambda row: note_start()]  # a run that cannot be resumed stays as it is
            distributed.by_first(lambda: hooks.extend(stack.enter_context(_tracker(name, output)) for name in log))
            result = training.fit(
                module,
                *sources,
                likelihood=likelihood,
                optimizer=optimizer,
                variables=start,
                training=config.training,
                directory=training.Resume(output / "training") if resume else output / "training",
                hooks=hooks,
            )
        scorer = featurizer.for_scoring()
        routers["router"] = make_router(
            module=make_module(scorer),
            featurizer=scorer,
            likelihood=likelihood,
            variables=distributed.on_every_host(result.variables),
            provenance={**provenance, "best_epoch": result.best_epoch, "validation_loss": result.best_loss},
        )
    distributed.by_first(lambda: (note_start(), _save(routers, output)))
    return routers["router"]


def _save(routers: Mapping[str, Router], output: Path) -> None:
    for name, router in routers.items():
        folder = output / name
        if not (folder.is_dir() and any(folder.iterdir())):  # a run killed between the two has one of them already
            save_router(router, folder)
        require_router(folder)  # what is said to be written can be loaded


def _tracker(name: str, output: Path) -> AbstractContextManager[Hook]:
    """Open a tracker for a run whose ``run.json`` is written."""
    run = read_run(output)
    return TRACKERS[name](TrackedRun(output.resolve().name, run["run_id"], run["config"], output / "training"))


def _log_both_bad(preferences: Preferences, likelihood: Likelihood) -> None:
    """Log what becomes of ties of two bad answers, where only the battles or only the likelihood tell them apart."""
    known = preferences.outcome.shape[1]
    if known > likelihood.num_outcomes:
        both_bad = np.count_nonzero(preferences.outcome[:, 3])
        logger.info("%s counts %d battles whose answers are both bad as ties like others", likelihood.name, both_bad)
    elif known < likelihood.num_outcomes:
        logger.warning("the battles do not tell ties of two bad answers from others, as %s does", likelihood.name)


def typed_config(config: ExperimentConfig) -> ExperimentConfig:
    """Copy of a configuration with attributes in the types of the modules that they are of."""
    attributes = find_family(config.router.family).typed_attributes(config.router.attributes)
    encoder_attributes = typed_choices(config.features.encoder_attributes)
    return dataclasses.replace(
        config,
        router=dataclasses.replace(config.router, attributes=attributes),
        features=dataclasses.replace(config.features, encoder_attributes=encoder_attributes),
    )


def _require_fit(config: ExperimentConfig, family: Family, *, is_text: bool, log: Sequence[str]) -> None:
    """Refuse what the loop would refuse, or never see, before anything is encoded or written."""
    of_training = {
        "optimizer.moments_dtype": config.optimizer.moments_dtype != OptimizerConfig().moments_dtype,
        "training.profile": config.training.profile is not None,
        "--log": bool(log),
    }
    for name, is_set in of_training.items():
        if is_set and not family.trains:
            raise InputError(f"{name} changes nothing, since {family.name} trains nothing: leave it out")
    num_parts = training.wrapper_of(config.training).num_parts
    if not config.training.resident and not family.trains:
        raise InputError(
            f"training.resident must be True for {family.name}, got False: it trains nothing, but remembers all battles"
        )
    if is_text:
        return
    if config.training.micro_batches > 1:
        raise InputError(
            f"training.micro_batches must be 1 for a router of embeddings, got {config.training.micro_batches}; its "
            "steps are of training.batch_size battles"
        )
    if family.trains:
        training.require_divisible(config.training.batch_size, num_parts)


def _sources(
    train: Preferences,
    held_out: Preferences | None,
    featurizer: Featurizer,
    embedded: EmbeddedPrompts | None,
    config: ExperimentConfig,
) -> list[PreferenceBatch | EmbeddedBatches | TokenBatches]:
    """Battles to train on and, where some are held out, those: in batches of tokens or embeddings, or whole."""
    splits = [train] if held_out is None else [train, held_out]
    # Held-out battles are scored on one device.
    devices = (training.wrapper_of(config.training).num_parts, 1)
    if not isinstance(featurizer, TokenFeaturizer):
        assert embedded is not None  # all that does not read text itself
        if config.training.resident:
            return [embedded.batch(battles) for battles in splits]
        size = config.training.batch_size
        return [
            embedded.batches(battles, batch_size=size, num_devices=count)
            for battles, count in zip(splits, devices, strict=False)
        ]
    return [
        _token_batches(battles, featurizer.tokenizer, batch_tokens=config.training.batch_tokens, num_devices=count)
        for battles, count in zip(splits, devices, strict=False)
    ]


def _token_batches(
    battles: Preferences, tokenizer: TextTokenizer, *, batch_tokens: int, num_devices: int
) -> TokenBatches:
    """Battles as batches of the tokens of their prompts, which are read once."""
    token_ids = read_prompts(tokenizer, battles.unique_prompts, progress=True)
    batches = TokenBatches(
        battles,
        token_ids,
        lengths=tokenizer.lengths,
        batch_tokens=batch_tokens,
        num_devices=num_devices,
        padding_id=tokenizer.padding_id,
    )
    logger.info(
        "prompts: %d, of %.0f tokens on average; batches: %d; shapes: %d; padding in what is computed: %.0f %%",
        *(len(token_ids), np.mean([len(ids) for ids in token_ids])),
        *(batches.num_batches, batches.num_shapes, 100 * batches.padding_share),
    )
    return batches


def _split(preferences: Preferences, config: ExperimentConfig) -> tuple[Preferences, Preferences | None]:
    """Battles to train on and, where some are, battles that are held out."""
    if config.data.validation_fraction == 0:
        return preferences, None
    fraction, seed = config.data.validation_fraction, config.data.seed
    return split_by_prompt(preferences, validation_fraction=fraction, seed=seed)


def _embed(
    preferences: Preferences, config: ExperimentConfig, featurizer: Featurizer
) -> tuple[Featurizer, EmbeddedPrompts | None]:
    """Embed the prompts of a run: for the router, or for the control beside a router that reads tokens.

    There are no embeddings where they are for the control alone, and the encoder's folder is not followed there, or
    they would not be in memory.
    """
    if not config.training.resident:
        logger.info(
            "no nearest-neighbour control: it remembers the embeddings of all prompts, and training.resident is False"
        )
        if isinstance(featurizer, TokenFeaturizer):
            return featurizer, None
    if isinstance(featurizer, TokenFeaturizer):
        if isinstance(featurizer.encoder, Decoder):
            logger.info(
                "no nearest-neighbour control: embeddings of a decoder cost as much as training it; train a "
                "router of family knn on a sentence encoder for one"
            )
            return featurizer, None
        of_training = {"train_encoder": False, "encoder_attributes": {}, "template": None, "instruction": None}
        try:
            featurizer = open_featurizer(dataclasses.replace(config.features, **of_training))
        except InputError as error:
            logger.warning("no nearest-neighbour control: %s", error)
            return featurizer, None
    prompts = preferences.unique_prompts
    logger.info("%d prompts as embeddings of %s", len(prompts), featurizer.source)
    with EmbeddingCache() as cache:
        place = (jax.process_index(), jax.process_count())
        query = shared_query(featurizer, prompts, cache, *place, distributed.barrier, progress=True)
        embedding = query["embedding"]
    return featurizer, EmbeddedPrompts(prompts, embedding)
