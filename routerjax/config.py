"""Frozen, validated descriptions of a run; an experiment is a Python file whose ``get_config()`` returns one."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from routerjax.errors import InputError, choose, nearest

ConfigT = TypeVar("ConfigT")
AttributeValue = bool | int | float | str


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise InputError(f"{name} must be {expected}, got {got!r}")


@dataclass(frozen=True, kw_only=True)
class BattleSource:
    """A file (or Hugging Face data set) of battles.

    Attributes:
        path: parquet, csv or jsonl, relative to ``DataConfig.root``; or a Hugging Face data set name.
        drop_where: names of boolean columns; a row is dropped where any of them is true.
        weight: multiplies every battle's weight.
    """

    path: str
    drop_where: tuple[str, ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.weight > 0, "data.battles weight", "positive", self.weight)


@dataclass(frozen=True, kw_only=True)
class GoldenSource:
    """Battles made from a benchmark's golden answers: the better answer wins, equal answers tie.

    Attributes:
        benchmark: ``mmlu``, ``gsm8k`` or ``mt_bench``.
        root: RouteLLM's ``evals`` folder, relative to ``DataConfig.root``.
        strong: the benchmark's strong model, named as battles elsewhere in the run name it.
        weak: likewise the weak model.
        num_prompts: keep those with the smallest SHA-256 of the prompt; None keeps all.
        weight: multiplies every battle's weight.
    """

    benchmark: str
    root: str
    strong: str
    weak: str
    num_prompts: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.weight > 0, "data.golden weight", "positive", self.weight)
        _require(
            self.num_prompts is None or self.num_prompts > 0, "data.golden num_prompts", "positive", self.num_prompts
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which battles a run learns from.

    Attributes:
        root: folder that relative paths below start from; ``--set data.root=...`` on the command line.
        battles: battle files; golden: benchmarks with golden answers.
        validation_fraction: share of PROMPTS held out, in [0, 1), from memories too; 0 trains on everything and keeps
            the last parameters.
        seed: of the split and of the side swaps.
    """

    root: str = "."
    battles: tuple[BattleSource, ...] = ()
    golden: tuple[GoldenSource, ...] = ()
    validation_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.validation_fraction < 1, "data.validation_fraction", "in [0, 1)", self.validation_fraction)


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How text becomes a query.

    Attributes:
        encoder: a local folder or Hugging Face name of a sentence encoder; or ``openai:MODEL`` for an OpenAI-compatible
            endpoint, see :class:`routerjax.features.EndpointEncoder`.
        max_length: tokens that a sentence encoder keeps of each prompt; an endpoint reads them all.
        embeddings: a .npy or .parquet file of given embeddings instead of an encoder's own.
        train_encoder: fine-tune the encoder with the router, which then stores it; the family ``bert`` always does.
        encoder_attributes: of an encoder that is trained, other than its files say: ``dropout_rate``,
            ``attention_dropout_rate``, ``dtype`` (``bfloat16`` trains in it), ``remat``, ``scan_layers``.
        dollars_per_million_tokens: an endpoint's price, for the cost that is logged.
    """

    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: int = 256
    embeddings: str | None = None
    train_encoder: bool = False
    encoder_attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    dollars_per_million_tokens: float | None = None

    def __post_init__(self) -> None:
        price = self.dollars_per_million_tokens
        _require(self.max_length > 0, "features.max_length", "positive", self.max_length)
        _require(price is None or price >= 0, "features.dollars_per_million_tokens", "non-negative", price)


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Which router family, with its module's attributes, and the pair it routes between.

    Attributes:
        family: a name in ``routerjax.router.FAMILIES``.
        attributes: attributes of the linen module other than the number of models.
        loss: a name in ``routerjax.losses.LOSSES``: how ties are understood.
        readout: a name in ``routerjax.losses.READOUTS``: what the win probability counts.
        strong: name of the strong (expensive) model.
        weak: name of the weak (cheap) model.
    """

    family: str = "mf"
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    loss: str = "bradley_terry"
    readout: str = "half_tie"
    strong: str
    weak: str


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay.

    Attributes:
        learning_rate: at the peak.
        weight_decay: decoupled, on every parameter.
        warmup_fraction: share of all steps, in [0, 1).
        final_fraction: learning rate at the end over that at the peak, in [0, 1].
        gradient_clip: global norm, or None.
        encoder_rate: learning rate of a fine-tuned encoder over that of its head, at least 0.
        layer_decay: the learning rate of each of the encoder's layers over that of the layer above it, in (0, 1].
        frozen_layers: so many of the encoder's layers, from the bottom, stay as they are, and so do the embeddings.
    """

    learning_rate: float = 3e-4
    weight_decay: float = 1e-5
    warmup_fraction: float = 0.05
    final_fraction: float = 0.0
    gradient_clip: float | None = None
    encoder_rate: float = 1.0
    layer_decay: float = 1.0
    frozen_layers: int = 0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optimizer.learning_rate", "positive", self.learning_rate)
        _require(self.weight_decay >= 0, "optimizer.weight_decay", "non-negative", self.weight_decay)
        _require(0 <= self.warmup_fraction < 1, "optimizer.warmup_fraction", "in [0, 1)", self.warmup_fraction)
        _require(self.encoder_rate >= 0, "optimizer.encoder_rate", "non-negative", self.encoder_rate)
        _require(0 < self.layer_decay <= 1, "optimizer.layer_decay", "in (0, 1]", self.layer_decay)
        _require(self.frozen_layers >= 0, "optimizer.frozen_layers", "non-negative", self.frozen_layers)
        _require(0 <= self.final_fraction <= 1, "optimizer.final_fraction", "in [0, 1]", self.final_fraction)
        _require(
            self.gradient_clip is None or self.gradient_clip > 0,
            "optimizer.gradient_clip",
            "positive",
            self.gradient_clip,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long and on what.

    Attributes:
        epochs: passes over the training battles.
        batch_size: battles a step, over all devices; of routers that look at embeddings.
        batch_tokens: tokens of a batch, padding included, on each device; of routers that read text.
        micro_batches: so many batches of tokens go into a step, one after another.
        init_seed, noise_seed, order_seed: of the parameters, of dropout and noise, of the data order.
        checkpoint_every: epochs between checkpoints of the training state.
        patience: stop after so many epochs without a lower validation loss; None never stops early.
        devices: ``jit`` (one device) or ``pmap`` (data-parallel over all local devices).
    """

    epochs: int = 10
    batch_size: int = 64
    batch_tokens: int = 4096
    micro_batches: int = 1
    init_seed: int = 0
    noise_seed: int = 1
    order_seed: int = 2
    checkpoint_every: int = 1
    patience: int | None = None
    devices: Literal["jit", "pmap"] = "jit"

    def __post_init__(self) -> None:
        _require(self.patience is None or self.patience > 0, "training.patience", "positive", self.patience)
        for name in ("epochs", "batch_size", "batch_tokens", "micro_batches", "checkpoint_every"):
            _require(getattr(self, name) > 0, f"training.{name}", "positive", getattr(self, name))
        _require(self.devices in ("jit", "pmap"), "training.devices", "'jit' or 'pmap'", self.devices)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that determines a training run."""

    data: DataConfig
    router: RouterConfig
    features: FeatureConfig = FeatureConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()


def override(config: ConfigT, assignments: Sequence[str]) -> ConfigT:
    """Return ``config`` with ``path.to.field=value`` assignments applied, validated as if written so.

    Values are Python literals; what is not a literal is a string.

    Raises:
        InputError: no such field, or a value of the wrong type.

    Example:
        >>> override(OptimizerConfig(), ["learning_rate=1e-4"]).learning_rate
        0.0001
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise InputError(f"--set takes NAME=VALUE, got {assignment!r}; for example optimizer.learning_rate=1e-4")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        config = _replace(config, path.split("."), value, path)
    return config


def _replace(node: ConfigT, path: Sequence[str], value: object, full_path: str) -> ConfigT:
    head, rest = path[0], path[1:]
    if isinstance(node, Mapping):  # attributes: the module itself validates the names
        if rest:
            raise InputError(f"no setting {full_path!r}: {head!r} has nothing below it")
        return typing.cast(ConfigT, {**node, head: value})
    if isinstance(node, tuple):
        if not head.isdigit() or int(head) >= len(node):
            raise InputError(f"no setting {full_path!r}: expected an index below {len(node)}, got {head!r}")
        index = int(head)
        child = _replace(node[index], rest, value, full_path) if rest else value
        return typing.cast(ConfigT, (*node[:index], child, *node[index + 1 :]))
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        raise InputError(f"no setting {full_path!r}: nothing lies below {type(node).__name__} {node!r}")
    names = [f.name for f in dataclasses.fields(node)]
    if head not in names:
        raise InputError(
            f"no setting {full_path!r}: {type(node).__name__} has {', '.join(names)}{nearest(head, names)}"
        )
    current = getattr(node, head)
    if rest:
        return dataclasses.replace(node, **{head: _replace(current, rest, value, full_path)})
    expected = typing.get_type_hints(type(node))[head]
    return dataclasses.replace(node, **{head: coerce(value, expected, full_path)})


def coerce(value: object, expected: object, full_path: str) -> object:
    """Check ``value`` against a field's annotation; an int is taken where a float is expected.

    A mapping is one of attributes: what the module makes of their names it says itself.
    """
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        for option in typing.get_args(expected):
            try:
                return coerce(value, option, full_path)
            except InputError:
                continue
    elif origin is Literal:
        return choose(value, {option: option for option in typing.get_args(expected)}, full_path)
    elif origin is Mapping:
        if isinstance(value, dict):
            return {str(name): _attribute(item, f"{full_path}.{name}") for name, item in value.items()}
    elif expected is type(None):
        if value is None:
            return None
    elif expected is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif expected in (int, str, bool):
        if type(value) is expected:
            return value
        if expected is str:
            return str(value)
    raise InputError(f"{full_path} takes {getattr(expected, '__name__', expected)}, got {value!r}")


def _attribute(value: object, full_path: str) -> AttributeValue:
    if isinstance(value, AttributeValue):
        return value
    raise InputError(f"{full_path} takes a boolean, a number or text, got {value!r}")
