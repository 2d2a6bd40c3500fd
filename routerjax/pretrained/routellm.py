"""RouteLLM's formats: the models and tensors of its matrix factorisation, and its configuration file."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import jax
import numpy as np
from pydantic import ConfigDict

from routerjax.errors import InputError, nearest
from routerjax.pretrained.files import find_file, read_bytes
from routerjax.pretrained.locate import locate
from routerjax.pretrained.weights import TensorNames, read_weights, tensor_shapes
from routerjax.typing import PyTree
from routerjax.validation import from_json
from routerjax.yaml_text import read_yaml

logger = logging.getLogger(__name__)

MAX_BYTES = 2**16  # of a RouteLLM configuration; it has a dozen lines

MODELS = (
    *("RWKV-4-Raven-14B", "alpaca-13b", "chatglm-6b", "chatglm2-6b", "chatglm3-6b", "claude-1", "claude-2.0"),
    *("claude-2.1", "claude-instant-1", "codellama-34b-instruct", "deepseek-llm-67b-chat", "dolly-v2-12b"),
    *("dolphin-2.2.1-mistral-7b", "falcon-180b-chat", "fastchat-t5-3b", "gemini-pro", "gemini-pro-dev-api"),
    *("gpt-3.5-turbo-0125", "gpt-3.5-turbo-0314", "gpt-3.5-turbo-0613", "gpt-3.5-turbo-1106", "gpt-4-0125-preview"),
    *("gpt-4-0314", "gpt-4-0613", "gpt-4-1106-preview", "gpt4all-13b-snoozy", "guanaco-33b", "koala-13b"),
    *("llama-13b", "llama-2-13b-chat", "llama-2-70b-chat", "llama-2-7b-chat", "llama2-70b-steerlm-chat"),
    *("mistral-7b-instruct", "mistral-7b-instruct-v0.2", "mistral-medium", "mixtral-8x7b-instruct-v0.1"),
    *("mpt-30b-chat", "mpt-7b-chat", "nous-hermes-2-mixtral-8x7b-dpo", "oasst-pythia-12b", "openchat-3.5"),
    *("openchat-3.5-0106", "openhermes-2.5-mistral-7b", "palm-2", "pplx-70b-online", "pplx-7b-online"),
    *("qwen-14b-chat", "qwen1.5-4b-chat", "qwen1.5-72b-chat", "qwen1.5-7b-chat", "solar-10.7b-instruct-v1.0"),
    *("stablelm-tuned-alpha-7b", "starling-lm-7b-alpha", "stripedhyena-nous-7b", "tulu-2-dpo-70b", "vicuna-13b"),
    *("vicuna-33b", "vicuna-7b", "wizardlm-13b", "wizardlm-70b", "yi-34b-chat", "zephyr-7b-alpha", "zephyr-7b-beta"),
)
"""The rows of ``P.weight``: the models of Chatbot Arena 55k in ASCII order."""

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
TEXT_DIM = 1536
"""Width of OpenAI's text-embedding-3-small, from which the published code makes its scores."""

Naming = Literal["released", "training"]
NAMINGS: Mapping[Naming, Mapping[str, str]] = {
    "released": {
        "model_embedding": "P.weight",
        "prompt_projection/kernel": "text_proj.0.weight",
        "classifier": "classifier.0.weight",
    },
    "training": {
        "model_embedding": "P.weight",
        "prompt_projection/kernel": "text_proj.weight",
        "classifier": "classifier.weight",
    },
}
"""Our path -> the name of the tensor: in the released files, and as the training code saves it."""

STRONG, WEAK = "gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1"
"""The pair that its routers were released for."""

TRAINING_PROMPTS = "Q.weight"
"""The frozen embeddings of the training prompts, which the training code keeps among its weights."""

SECTIONS = ("mf", "sw_ranking", "causal_llm", "bert", "random")
"""Routers that a RouteLLM configuration may have a section for."""


@dataclass(frozen=True, kw_only=True)
class MatrixFactorizationConfig:
    """Section ``mf`` of RouteLLM's configuration file, with its defaults.

    Attributes:
        checkpoint_path: a folder that holds model.safetensors, or a Hugging Face name.
        strong_model: a name in :data:`MODELS`.
        weak_model: likewise.
        hidden_size: width of a model's embedding.
        num_models: rows of ``P.weight``.
        text_dim: width of a prompt's embedding.
        num_classes: rows of the classifier.
        use_proj: whether prompts are projected to ``hidden_size``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    checkpoint_path: str
    strong_model: str = STRONG
    weak_model: str = WEAK
    hidden_size: int = 128
    num_models: int = 64
    text_dim: int = TEXT_DIM
    num_classes: int = 1
    use_proj: bool = True


@dataclass(frozen=True, kw_only=True)
class SimilarityWeightedConfig:
    """Section ``sw_ranking`` of RouteLLM's configuration file, with its defaults.

    Attributes:
        arena_battle_datasets: sources of battles.
        arena_embedding_datasets: of each, the source of its embeddings, aligned by row order.
        strong_model: a model of the battles.
        weak_model: likewise.
        num_tiers: tiers that the models are put into.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    arena_battle_datasets: tuple[str, ...]
    arena_embedding_datasets: tuple[str, ...]
    strong_model: str = STRONG
    weak_model: str = WEAK
    num_tiers: int = 10


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Section ``bert`` of RouteLLM's configuration file, with its defaults.

    Attributes:
        checkpoint_path: a folder in Hugging Face's format, or a Hugging Face name.
        num_labels: of the classifier.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    checkpoint_path: str
    num_labels: int = 3


ConfigT = TypeVar("ConfigT", MatrixFactorizationConfig, SimilarityWeightedConfig, ClassifierConfig)


def find_checkpoint(source: str | os.PathLike[str]) -> Path:
    """The safetensors file that ``source`` names: itself, or ``model.safetensors`` in a folder or on the hub.

    Raises:
        InputError: there is none.
    """
    path = Path(source)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError(f"no file {path}")
        return path
    file = locate(source) / WEIGHTS_FILE
    if find_file(file) is None:
        raise InputError(f"{source} holds no {WEIGHTS_FILE}")
    return file


def read_factorization(path: Path) -> PyTree:
    """Parameters of :class:`routerjax.models.MatrixFactorization` from a file of either naming.

    Args:
        path: a safetensors file. Widths may be any; the models are those of :data:`MODELS`.

    Returns:
        ``model_embedding [64, model_dim]``, ``prompt_projection/kernel [embed, model_dim]``, ``classifier
        [model_dim]``, float32, bit for bit those of the file.

    Raises:
        InputError: not a complete file, or tensors missing, extra or of another shape; all are listed.
    """
    shapes = tensor_shapes(path)
    naming = max(NAMINGS.values(), key=lambda names: len(shapes.keys() & set(names.values())))
    model_dim = (shapes.get(naming["model_embedding"]) or (128,))[-1]
    embed = (shapes.get(naming["prompt_projection/kernel"]) or (TEXT_DIM,))[-1]
    expected = {
        "model_embedding": jax.ShapeDtypeStruct((len(MODELS), model_dim), np.float32),
        "prompt_projection": {"kernel": jax.ShapeDtypeStruct((embed, model_dim), np.float32)},
        "classifier": jax.ShapeDtypeStruct((1, model_dim), np.float32),
    }
    names = TensorNames({theirs: ours for ours, theirs in naming.items()}, ignored=(re.escape(TRAINING_PROMPTS),))
    params = read_weights(path, names, expected)
    if TRAINING_PROMPTS in shapes:
        rows = shapes[TRAINING_PROMPTS][0]
        logger.info("%s: left out %s, the embeddings of %d training prompts", path, TRAINING_PROMPTS, rows)
    return {**params, "classifier": params["classifier"][0]}


def read_config(path: Path, section: str, kind: type[ConfigT]) -> ConfigT:
    """A section of a RouteLLM configuration file (YAML); says which other routers are in it.

    Raises:
        InputError: no such file, not YAML, no such section, or keys or values that RouteLLM does not know.
    """
    if not path.is_file():
        raise InputError(f"no file {path}")
    content = read_bytes(path.resolve(), max_bytes=MAX_BYTES)  # the user's own choice, wherever it leads
    try:
        sections = read_yaml(content)
    except ValueError as error:
        raise InputError(f"{path} is not YAML of a RouteLLM configuration: {error}") from error
    if not isinstance(sections, dict):
        raise InputError(f"{path} must be a mapping from router to its settings, got {type(sections).__name__}")
    for key in sections:
        if key not in SECTIONS:
            raise InputError(f"{path}: no router {key!r}{nearest(str(key), SECTIONS)}; known are {', '.join(SECTIONS)}")
    others = [name for name in sections if name != section]
    if section not in sections:
        raise InputError(f"{path} has no section {section}; it has {', '.join(others) or 'none'}")
    if others:
        logger.info("%s: only %s is imported, not %s", path, section, ", ".join(others))
    return from_json(sections[section], kind, f"{path}: {section}")
