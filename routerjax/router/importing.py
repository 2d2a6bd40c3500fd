"""Published routers as routers of ours."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from routerjax.errors import InputError
from routerjax.features import EndpointEncoder, FeatureSpec
from routerjax.features.endpoint import OPENAI_URL
from routerjax.pretrained import file_sha256, routellm
from routerjax.router.router import Router

logger = logging.getLogger(__name__)


def routellm_features(width: int = routellm.TEXT_DIM) -> FeatureSpec:
    """What RouteLLM's matrix factorisation reads: the one place that says how its embeddings are named."""
    return EndpointEncoder("openai:text-embedding-3-small", base_url=OPENAI_URL, width=width).spec


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
    is_config = Path(source).suffix in (".yaml", ".yml")
    config = routellm.read_config(Path(source)) if is_config else None
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


IMPORTERS: Mapping[str, Callable[..., Router]] = {"routellm-mf": import_routellm_mf}
"""Name of a format -> ``(source, *, strong, weak) -> Router``."""
