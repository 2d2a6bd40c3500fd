"""Battles of routers that read tokens."""

from __future__ import annotations

import logging

import numpy as np

from routerjax.data import Preferences, TokenBatches
from routerjax.features import TextTokenizer, read_prompts

logger = logging.getLogger(__name__)


def token_batches(
    battles: Preferences, tokenizer: TextTokenizer, *, batch_tokens: int, num_devices: int = 1
) -> TokenBatches:
    """Battles as batches of the tokens of their prompts, which are read once.

    Args:
        battles: any battles.
        tokenizer: of the encoder that reads them.
        batch_tokens, num_devices: see :class:`routerjax.data.TokenBatches`.

    Raises:
        InputError: as :class:`routerjax.data.TokenBatches`.
    """
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
