"""From a configuration to a router on disk: battles -> features -> training -> router folder.

The command line, the demo and the experiments all run this one path.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import logging
import runpy
import subprocess
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from routerjax import losses, metrics, models, training
from routerjax.atomic import atomic_file, refuse_existing
from routerjax.calibration import cross_fitted, fit_calibration
from routerjax.config import DataConfig, ExperimentConfig, FeatureConfig
from routerjax.data import (
    ROUTELLM_STRONG,
    ROUTELLM_WEAK,
    Preferences,
    concatenate,
    golden_preferences,
    load_benchmark,
    model_index,
    read_preferences,
    require_both_outcomes,
    smallest_by_hash,
    split_by_prompt,
    swap_sides,
    to_batch,
)
from routerjax.errors import InputError
from routerjax.features import EmbeddingCache, FeatureSpec, open_encoder, read_embeddings
from routerjax.pretrained import file_sha256
from routerjax.router import Router, find_family, make_module, remember, save_router
from routerjax.tables import ENDINGS
from routerjax.typing import PreferenceBatch

logger = logging.getLogger(__name__)

CALIBRATION_FIGURES = {
    "log_loss": metrics.log_loss,
    "brier": metrics.brier,
    "expected_calibration_error": metrics.expected_calibration_error,
}


def load_config(path: str | Path) -> ExperimentConfig:
    """Run a Python file's ``get_config()``.

    Raises:
        InputError: no such file, no ``get_config``, it raises, or it returns something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no configuration {path}: expected a Python file that defines get_config()")
    try:
        # Run, not imported: bytecode that an import caches is stale where a script edits the file twice in a second.
        defined = runpy.run_path(str(path), run_name="routerjax_experiment")
        config = defined["get_config"]() if "get_config" in defined else None
    except Exception as error:  # whatever a user's file may raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}" if lines else path
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"the configuration {where}: {kind}{error}") from error
    if "get_config" not in defined:
        raise InputError(f"the configuration {path} defines no get_config()")
    if not isinstance(config, ExperimentConfig):
        raise InputError(f"get_config() of {path} must return an ExperimentConfig, got {type(config).__name__}")
    return config


def load_preferences(config: DataConfig) -> Preferences:
    """All battles of a run, sides swapped at random, sources in the order of the configuration."""
    root = Path(config.root)
    parts = []
    for source in config.battles:
        local = root / source.path
        is_file = local.suffix in ENDINGS
        battles = read_preferences(local if is_file else source.path, drop_where=source.drop_where)
        parts.append(_weighted(battles, source.weight))
        logger.info("read %s: %d battles on %d prompts", source.path, len(battles), len(battles.unique_prompts))
    for source in config.golden:
        benchmark = load_benchmark(source.benchmark, root / source.root)
        if source.num_prompts is not None:
            benchmark, _ = smallest_by_hash(benchmark, source.num_prompts)
        names: dict[str, str] = {ROUTELLM_STRONG: source.strong, ROUTELLM_WEAK: source.weak}
        battles = golden_preferences(benchmark, pairs=[(ROUTELLM_STRONG, ROUTELLM_WEAK)], rename=names)
        parts.append(_weighted(battles, source.weight))
        logger.info("golden answers of %s: %d battles", source.benchmark, len(battles))
    if not parts:
        raise InputError("no battles: data.battles and data.golden are both empty; name at least one source")
    return swap_sides(concatenate(parts), seed=config.seed)


def _weighted(battles: Preferences, weight: float) -> Preferences:
    return dataclasses.replace(battles, weight=battles.weight * weight)


def embed(
    prompts: Sequence[str], config: FeatureConfig, *, root: Path, cache: EmbeddingCache | None
) -> tuple[Float32[np.ndarray, "prompts embed"], FeatureSpec]:
    """Embeddings of ``prompts``, and what a router must keep of where they came from."""
    if config.embeddings is not None:
        given = read_embeddings(root / config.embeddings)
        if len(given.embedding) != len(prompts):
            raise InputError(
                f"{config.embeddings} holds {len(given.embedding)} embeddings, expected {len(prompts)}: one for each "
                "different prompt of the battles, in the order in which the prompts first appear"
            )
        return given.embedding, given.spec(config.embeddings)
    encoder = open_encoder(
        config.encoder,
        max_length=config.max_length,
        dollars_per_million_tokens=config.dollars_per_million_tokens,
    )
    logger.info("encoding %d prompts with %s", len(prompts), config.encoder)
    return encoder.encode(prompts, progress=True, cache=cache), encoder.spec


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
    provenance = _provenance(config)
    if resume:
        _require_same_run(provenance, output)
    else:
        refuse_existing(output)
    preferences = load_preferences(config.data)
    require_both_outcomes(preferences)
    for name in (config.router.strong, config.router.weak):
        model_index(preferences.models, name)
    num_models = len(preferences.models)
    module = make_module(family, num_models=num_models, attributes=config.router.attributes, loss=config.router.loss)
    losses.make_readout(config.router.loss, config.router.readout)  # an unknown one is refused now, not after training

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
        _write_json(output / "config.json", provenance)
    if not trains_nothing:
        logger.info("training %s on %d battles, validating on %d", family, len(train), len(preferences) - len(train))
        result = training.fit(
            module,
            batch_of(train),
            None if held_out is None else batch_of(held_out),
            loss=losses.make_preference_loss(config.router.loss),
            optimizer=config.optimizer,
            training=config.training,
            directory=output / "training",
            resume=resume,
        )
        routers["router"] = dataclasses.replace(
            routers["knn"],
            family=family,
            attributes=config.router.attributes,
            loss=config.router.loss,
            readout=config.router.readout,
            variables=result.variables,
            provenance={**provenance, "best_epoch": result.best_epoch, "validation_loss": result.best_loss},
        )
    for name, router in routers.items():
        if not (output / name).exists():  # a run that was killed between the two has one of them already
            save_router(router, output / name)
    return routers["router"]


def calibrate_router(router: Router, battles: Preferences, *, method: str, cache: EmbeddingCache | None) -> Router:
    """The router with its win probability calibrated on battles of its pair that it was not trained on.

    What it gains is in ``provenance["calibration"]``: log-loss, Brier score and expected calibration error of the raw
    and of the calibrated win probability, the latter of maps fitted to other battles (5 folds). A threshold that the
    router had is dropped, since win probabilities have moved.

    Args:
        router: calibrated before or not.
        battles: of which those between ``router.strong`` and ``router.weak`` count.
        method: ``temperature``, ``platt`` or ``isotonic``; see :mod:`routerjax.calibration`.
        cache: where embeddings are kept.

    Raises:
        InputError: no battles of the pair, or as :func:`routerjax.calibration.fit_calibration`.
    """
    strong, weak = (model_index(battles.models, name) for name in (router.strong, router.weak))
    forward = (battles.model_a == strong) & (battles.model_b == weak)
    of_pair = forward | ((battles.model_a == weak) & (battles.model_b == strong))
    if not of_pair.any():
        raise InputError(f"no battle between {router.strong} and {router.weak} to calibrate on")
    own = battles.select(of_pair)
    label = np.where(own.model_a == strong, own.label, 1.0 - own.label)
    variables = {name: leaf for name, leaf in router.variables.items() if name != "calibration"}
    raw = dataclasses.replace(router, variables=variables, threshold=None)
    win_prob = raw.win_prob(own.prompts, cache=cache, progress=True)
    calibrated = cross_fitted(win_prob, label, own.weight, method=method)
    figures = {
        name: {"raw": figure(win_prob, label), "calibrated": figure(calibrated, label)}
        for name, figure in CALIBRATION_FIGURES.items()
    }
    fitted = fit_calibration(win_prob, label, own.weight, method=method)
    said = {"method": method, "battles": len(own), **figures}
    return dataclasses.replace(
        raw, variables={**variables, "calibration": fitted}, provenance={**router.provenance, "calibration": said}
    )


def _require_same_run(provenance: Mapping[str, object], output: Path) -> None:
    """A resumed run is the same run: refuse another configuration or other data before anything is read or encoded."""
    path = output / "config.json"
    if not path.is_file():
        raise InputError(f"nothing to resume: {output} holds no run (no config.json); run without --resume")
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        old = {**written["config"], **written["data_sha256"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot resume {output}: {path} is damaged; train into another folder") from error
    given = json.loads(json.dumps(provenance))
    new = {**given["config"], **given["data_sha256"]}
    different = [name for name in new if new[name] != old.get(name)]
    if different:
        raise InputError(
            f"cannot resume {output}: the run differs in {', '.join(different)} (see {path}); resume it as it was, or "
            "train into another folder"
        )


def _provenance(config: ExperimentConfig) -> dict[str, object]:
    """What is needed to repeat a run: the configuration, the code, the versions and the data's hashes."""
    versions = {name: importlib.metadata.version(name) for name in ("routerjax", "jax", "flax", "optax", "numpy")}
    root = Path(config.data.root)
    given = () if config.features.embeddings is None else (config.features.embeddings,)
    files = [name for name in (*(source.path for source in config.data.battles), *given) if (root / name).is_file()]
    return {
        "config": dataclasses.asdict(config),
        "git_commit": _git_commit(),
        "versions": versions,
        "data_sha256": {name: file_sha256(root / name) for name in files},
    }


def _git_commit() -> str | None:
    """The commit of the code that runs, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return finished.stdout.strip() or None if finished.returncode == 0 else None


def _write_json(path: Path, content: object) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
