"""From battles to trained variables: on embeddings that were made before, or on tokens with the encoder itself."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from routerjax import losses, training
from routerjax.config import ExperimentConfig
from routerjax.data import Preferences, TokenBatches
from routerjax.features import TextTokenizer, tokenize_once
from routerjax.pretrained import locate
from routerjax.router import pretrained_params
from routerjax.training import FitResult
from routerjax.typing import PreferenceBatch

logger = logging.getLogger(__name__)


def learn_on_embeddings(
    module: nn.Module,
    train: Preferences,
    held_out: Preferences | None,
    batch_of: Callable[[Preferences], PreferenceBatch],
    config: ExperimentConfig,
    *,
    directory: Path,
    resume: bool,
) -> FitResult:
    """Train a router of embeddings; ``batch_of`` puts battles on the device with those of their prompts."""
    return training.fit(
        module,
        batch_of(train),
        None if held_out is None else batch_of(held_out),
        loss=losses.make_preference_loss(config.router.loss),
        optimizer=config.optimizer,
        training=config.training,
        directory=directory,
        resume=resume,
    )


def learn_on_tokens(
    module: nn.Module,
    train: Preferences,
    held_out: Preferences | None,
    tokenizer: TextTokenizer,
    config: ExperimentConfig,
    *,
    directory: Path,
    resume: bool,
) -> FitResult:
    """Train a router that reads text, from the pretrained encoder that the configuration names."""
    group = training.batch_group(config.training)
    batches = _batches(train, tokenizer, config.training.batch_tokens, group)
    return training.fit_batches(
        module,
        batches,
        None if held_out is None else _batches(held_out, tokenizer, config.training.batch_tokens, ()),
        params=pretrained_params(
            module, locate(config.features.encoder), key=jax.random.key(config.training.init_seed)
        ),
        loss=losses.make_preference_loss(config.router.loss),
        optimizer=config.optimizer,
        training=config.training,
        num_battles=len(train),
        directory=directory,
        resume=resume,
    )


def _batches(battles: Preferences, tokenizer: TextTokenizer, batch_tokens: int, group: tuple[int, ...]) -> TokenBatches:
    token_ids = tokenize_once(tokenizer, battles.unique_prompts, progress=True)
    batches = TokenBatches(
        battles,
        token_ids,
        lengths=tokenizer.lengths,
        batch_tokens=batch_tokens,
        group=group,
        padding_id=tokenizer.padding_id,
    )
    full = sum(len(ids) == tokenizer.max_length for ids in token_ids)
    logger.info(
        "%d prompts of %.0f tokens on average; %d have the first %d alone, the end is cut off; %.0f %% is padding",
        *(len(token_ids), np.mean([len(ids) for ids in token_ids]), full, tokenizer.max_length),
        100 * batches.padding_share,
    )
    return batches
