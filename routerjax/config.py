"""Frozen, validated descriptions of a run; an experiment is a Python file whose ``get_config()`` returns one."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Interval
from pydantic import ConfigDict

from routerjax.errors import InputError, nearest
from routerjax.validation import coerce, field_types, item_type, parse

ConfigT = TypeVar("ConfigT")
AttributeValue = bool | int | float | str | tuple[str, ...]
Truncation = Literal["left", "right", "middle"]
"""Part of a text with too many tokens that is left out: its beginning, its end, or its middle."""

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""Name of the way in which the hidden states of tokens become one vector."""

Count = Annotated[int, Interval(ge=1, le=2**31 - 1)]
Whole = Annotated[int, Interval(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]  # JAX drops all bits of a seed but these
Positive = Annotated[float, Interval(gt=0)]
NonNegative = Annotated[float, Interval(ge=0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Weight = Annotated[float, Interval(ge=1e-9, le=1e9)]  # beyond these, products of weights leave float32

NO_IDENTITY: Mapping[str, bool] = {"identifies": False}
"""Metadata of a field that changes nothing about what a run learns: where its data lies, how often it is saved."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Settings of which each is checked against its annotation, see :func:`routerjax.validation.coerce`."""

    SECTION: ClassVar[str] = ""
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        for name, expected in field_types(type(self)).items():
            object.__setattr__(self, name, coerce(getattr(self, name), expected, f"{self.SECTION}{name}"))


@dataclass(frozen=True, kw_only=True)
class BattleSource(_Settings):
    """A file (or Hugging Face data set) of battles.

    Attributes:
        path: parquet, csv or jsonl, relative to ``DataConfig.root``; or a Hugging Face data set name.
        drop_where: names of boolean columns; a row is dropped where any of them is true.
        weight: multiplies every battle's weight.
    """

    SECTION: ClassVar[str] = "data.battles."

    path: str
    drop_where: tuple[str, ...] = ()
    weight: Weight = 1.0


@dataclass(frozen=True, kw_only=True)
class GoldenSource(_Settings):
    """Battles made from a benchmark's golden answers: the better answer wins, equal answers tie.

    Attributes:
        benchmark: ``mmlu``, ``gsm8k`` or ``mt_bench``.
        root: RouteLLM's ``evals`` folder, relative to ``DataConfig.root``.
        strong: the benchmark's strong model, named as battles elsewhere in the run name it.
        weak: likewise the weak model.
        num_prompts: keep those with the smallest SHA-256 of the prompt; None keeps all.
        weight: multiplies every battle's weight.
    """

    SECTION: ClassVar[str] = "data.golden."

    benchmark: str
    root: str
    strong: str
    weak: str
    num_prompts: Count | None = None
    weight: Weight = 1.0


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Settings):
    """Battles that a run learns from.

    Attributes:
        root: folder that relative paths below start from; ``--set data.root=...`` on the command line.
        battles: battle files; golden: benchmarks with golden answers.
        validation_fraction: share of PROMPTS held out, in [0, 1), from memories too; 0 trains on everything and keeps
            the last parameters.
        seed: of the split and of the side swaps.
    """

    SECTION: ClassVar[str] = "data."

    root: str = field(default=".", metadata=NO_IDENTITY)
    battles: tuple[BattleSource, ...] = ()
    golden: tuple[GoldenSource, ...] = ()
    validation_fraction: Fraction = 0.1
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(_Settings):
    """Features: how text becomes a query.

    Attributes:
        encoder: a local folder or Hugging Face name of a sentence encoder; or ``openai:MODEL`` for an OpenAI-compatible
            endpoint, see :class:`routerjax.features.EndpointEncoder`.
        max_length: tokens that a sentence encoder keeps of each prompt; an endpoint reads them all.
        truncation: what is left out of a longer prompt: its beginning (``left``), its end (``right``), or its
            ``middle``; None for what the files of the tokenizer say, which mostly is ``right``. Not for an endpoint.
        pooling: how an encoder's hidden states become one vector, a name in ``routerjax.models.POOLINGS``; None for
            what its files say, ``mean`` where they say nothing.
        layer: the last layer whose hidden states are used; None for the encoder's last.
        template: what a prompt is put into, in the place of ``{prompt}``, for an encoder that is trained; or ``chat``,
            the chat template of its tokenizer, with a turn of the user and the beginning of the answer. It is never
            cut, and special tokens in it are read as such; the tokenizer then adds none of its own.
        instruction: a turn of the system before the user's, in that chat template.
        cls_token: a special token such as ``<|cls|>`` that is added to the tokenizer, with a row of its own that is
            trained, adapters or not. It ends the template, and a causal router's linear head reads it; the chat
            template then has no beginning of an answer. A prompt that spells it has ``<cls>`` in its place.
        featurizer: kind of a featurizer of another package, in ``routerjax.features.FEATURIZERS``, in place of an
            encoder; ``attributes`` are its own.
        embeddings: a .npy or .parquet file of given embeddings instead of an encoder's own.
        train_encoder: fine-tune the encoder with the router, which then stores it; the families ``bert`` and ``causal``
            always do.
        encoder_attributes: of an encoder that is trained, other than its files say: ``dropout_rate``,
            ``attention_dropout_rate``, ``dtype`` (``bfloat16`` trains in it), ``remat``, ``scan_layers``; of a decoder
            ``attention``, ``attention_dropout_rate``, ``dtype``, ``param_dtype``, ``remat``, ``remat_policy``,
            ``lora_rank``, ``lora_alpha``, ``lora_rank_stabilized`` and ``lora_targets``, see
            :class:`routerjax.models.DecoderConfig`.
        dollars_per_million_tokens: an endpoint's price, for the cost that is logged.
    """

    SECTION: ClassVar[str] = "features."

    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: Count = 256
    truncation: Truncation | None = None
    pooling: Pooling | None = None
    layer: Count | None = None
    template: str | None = None
    instruction: str | None = None
    cls_token: str | None = None
    featurizer: str | None = None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    embeddings: str | None = None
    train_encoder: bool = False
    encoder_attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    dollars_per_million_tokens: NonNegative | None = field(default=None, metadata=NO_IDENTITY)


@dataclass(frozen=True, kw_only=True)
class RouterConfig(_Settings):
    """Router family, attributes of its module, and the pair of models that it routes between.

    Attributes:
        family: a name in ``routerjax.families.FAMILIES``.
        attributes: attributes of the linen module other than the number of models.
        loss: a name in ``routerjax.likelihoods.LIKELIHOODS``: how ties are understood.
        readout: a name in ``routerjax.likelihoods.READOUTS``: what the win probability counts.
        strong: name of the strong (expensive) model.
        weak: name of the weak (cheap) model.
    """

    SECTION: ClassVar[str] = "router."

    family: str = "mf"
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    loss: str = "bradley_terry"
    readout: str = "half_tie"
    strong: str
    weak: str


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_Settings):
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
        moments_dtype: that both moments are stored in; in ``bfloat16`` they take half of the memory, and are rounded up
            or down at random, without which the second would not follow the gradients.
    """

    SECTION: ClassVar[str] = "optimizer."

    learning_rate: Positive = 3e-4
    weight_decay: NonNegative = 1e-5
    warmup_fraction: Fraction = 0.05
    final_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.0
    gradient_clip: Positive | None = None
    encoder_rate: NonNegative = 1.0
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    frozen_layers: Whole = 0
    moments_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(_Settings):
    """Length of training, batches, seeds and devices.

    Attributes:
        epochs: passes over the training battles.
        batch_size: battles a step, over all devices; of routers that look at embeddings.
        resident: battles and embeddings lie on the device; False gathers each step's on the host, from a .npy file of
            given embeddings without ever holding it in memory, and leaves out the nearest-neighbour control. For more
            battles or prompts than fit. Both take the same steps, but for rounding and the draws of noise.
        batch_tokens: tokens of a batch, padding included, on each device; of routers that read text.
        micro_batches: so many batches of tokens go into a step, one after another.
        init_seed, noise_seed, order_seed: of the parameters, of dropout and noise, of the data order.
        checkpoint_every: epochs between checkpoints of the training state; the best epoch so far has one, too.
        checkpoint_every_steps: steps between checkpoints within an epoch; None has none there.
        keep_last, keep_best: so many of the newest checkpoints, and of the best epochs', are kept.
        non_finite: ``stop`` the run at a step whose loss or gradient is not finite, or ``skip`` such steps, which then
            change neither parameters nor moments. A run that stopped may be resumed with ``skip``.
        patience: stop after so many epochs without a lower validation loss; None never stops early.
        profile: ``START:STOP``, steps of the run that JAX's profiler traces, from 0 and STOP not among them, into the
            folder ``profile`` beside the checkpoints; None traces none.
        devices: ``jit`` (one device), ``pmap`` (data-parallel over all local devices) or ``mesh`` (with parameters and
            moments sharded over them too).
        model_devices: of a mesh, so many devices share each battle's work, by tensor parallelism; the battles are
            divided over the rest. A run may be resumed with another number.
    """

    SECTION: ClassVar[str] = "training."

    epochs: Annotated[int, Interval(ge=1, le=100_000)] = 10
    batch_size: Count = 64
    resident: bool = True
    batch_tokens: Count = 4096
    micro_batches: Annotated[int, Interval(ge=1, le=1024)] = 1
    init_seed: Seed = 0
    noise_seed: Seed = 1
    order_seed: Seed = 2
    checkpoint_every: Count = field(default=1, metadata=NO_IDENTITY)
    non_finite: Literal["stop", "skip"] = field(default="stop", metadata=NO_IDENTITY)
    checkpoint_every_steps: Count | None = field(default=None, metadata=NO_IDENTITY)
    keep_last: Count = field(default=2, metadata=NO_IDENTITY)
    keep_best: Count = field(default=1, metadata=NO_IDENTITY)
    patience: Count | None = None
    devices: Literal["jit", "pmap", "mesh"] = field(default="jit", metadata=NO_IDENTITY)
    model_devices: Count = field(default=1, metadata=NO_IDENTITY)
    profile: str | None = field(default=None, metadata=NO_IDENTITY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.profile is not None and not self.profiled_steps:
            raise InputError(f"training.profile must be START:STOP, steps with START < STOP, got {self.profile!r}")

    @property
    def profiled_steps(self) -> range | None:
        """Steps that ``profile`` names; None where there are none."""
        match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", self.profile or "", re.ASCII)
        return range(int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig(_Settings):
    """Configuration of a training run: all that determines it."""

    data: DataConfig
    router: RouterConfig
    features: FeatureConfig = FeatureConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()


def identity_of(config: object) -> dict[str, Any]:
    """Settings that make a run the run it is, as JSON has them; all but those marked ``NO_IDENTITY``.

    Two runs with the same identity, on the same data, learn the same.

    Example:
        >>> "checkpoint_every" in identity_of(TrainingConfig())
        False
    """

    def plain(value: object) -> Any:
        if dataclasses.is_dataclass(value):
            marked = [setting for setting in dataclasses.fields(value) if setting.metadata.get("identifies", True)]
            return {setting.name: plain(getattr(value, setting.name)) for setting in marked}
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(config)


def by_full_name(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings by the names that ``--set`` takes, such as ``training.epochs``."""
    return {f"{section}.{name}": value for section, fields in sections.items() for name, value in fields.items()}


def override(config: ConfigT, assignments: Sequence[str]) -> ConfigT:
    """Return ``config`` with ``path.to.field=value`` assignments applied, validated as if written so.

    A value is read by the type of its field, see :func:`routerjax.validation.parse`: text stays as it is, and tuples
    and mappings are written as JSON or Python literals. A value of ``attributes`` stays text until the module whose
    attribute it is says its type.

    Raises:
        InputError: no such field, or a value of the wrong type or out of range.

    Example:
        >>> override(OptimizerConfig(), ["learning_rate=1e-4", "gradient_clip=None"]).learning_rate
        0.0001
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise InputError(f"--set takes NAME=VALUE, got {assignment!r}; for example optimizer.learning_rate=1e-4")
        config = _replaced(config, type(config), path.split("."), text, path)
    return config


def _replaced(value: Any, expected: object, path: Sequence[str], text: str, full_path: str) -> Any:
    """``value``, of the annotation ``expected``, with what lies at ``path`` below it read from ``text``."""
    if not path:
        return parse(text, expected, full_path)
    head, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        if rest:
            raise InputError(f"no setting {full_path!r}: {head!r} has nothing below it")
        return {**value, head: parse(text, str, full_path)}
    if isinstance(value, tuple):
        places = {str(place): place for place in range(len(value))}
        if head not in places:
            raise InputError(f"no setting {full_path!r}: expected an index below {len(value)}, got {head!r}")
        place = places[head]
        item = _replaced(value[place], item_type(expected), rest, text, full_path)
        return (*value[:place], item, *value[place + 1 :])
    if not dataclasses.is_dataclass(value):
        raise InputError(f"no setting {full_path!r}: nothing lies below {type(value).__name__} {value!r}")
    known = field_types(type(value))
    if head not in known:
        names, close = ", ".join(known), nearest(head, known)
        raise InputError(f"no setting {full_path!r}: {type(value).__name__} has {names}{close}")
    changed = _replaced(getattr(value, head), known[head], rest, text, full_path)
    return dataclasses.replace(typing.cast(Any, value), **{head: changed})
