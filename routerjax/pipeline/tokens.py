"""Training of routers that read tokens, with the encoder itself."""

from __future__ import annotations

import logging
from pathlib import Path

import flax.linen as nn
import numpy as np

from routerjax import training
from routerjax.config import ExperimentConfig
from routerjax.data import Preferences, TokenBatches
from routerjax.features import TextTokenizer, tokenize_once
from routerjax.likelihoods import Likelihood
from routerjax.training import FitResult
from routerjax.typing import PyTree

logger = logging.getLogger(__name__)


def learn_on_tokens(
    module: nn.Module,
    train: Preferences,
    held_out: Preferences | None,
    tokenizer: TextTokenizer,
    config: ExperimentConfig,
    *,
    params: PyTree,
    likelihood: Likelihood,
    directory: Path,
    resume: bool,
) -> FitResult:
    """Train a router that reads text.

    Args:
        module: from tokens to scores.
        train: battles to learn from.
        held_out: battles that the best epoch is chosen by, or None.
        tokenizer: of the module's encoder.
        config: the optimiser and the batches.
        params: where training starts, see :func:`routerjax.router.pretrained_params`.
        likelihood: of the battles.
        directory: of the training state.
        resume: go on from its last checkpoint.

    Raises:
        InputError: as :func:`routerjax.training.fit_batches` and :func:`routerjax.features.tokenize_once`.
    """
    tokens, num_devices = config.training.batch_tokens, training.device_axis(config.training)
    return training.fit_batches(
        module,
        _batches(train, tokenizer, tokens, num_devices),
        None if held_out is None else _batches(held_out, tokenizer, tokens, None),
        params=params,
        likelihood=likelihood,
        optimizer=config.optimizer,
        training=config.training,
        directory=directory,
        resume=resume,
    )


def _batches(
    battles: Preferences, tokenizer: TextTokenizer, batch_tokens: int, num_devices: int | None
) -> TokenBatches:
    token_ids = tokenize_once(tokenizer, battles.unique_prompts, progress=True)
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
