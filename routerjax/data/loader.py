"""Batches of tokenised prompts with their battles, in a few static shapes, in an order that a seed decides."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from routerjax.data.preferences import Preferences
from routerjax.errors import InputError
from routerjax.typing import PreferenceBatch

# A batch has room for so many battles a prompt, on average.
BATTLES_PER_PROMPT = 8


class _Part(NamedTuple):
    """Prompts of one length and the battles on them that one device takes at a time."""

    bucket: int
    prompts: list[int]
    battles: list[int]


class TokenBatches:
    """Battles on prompts that are token ids, in batches for training or validation.

    A batch holds prompts of about one length, each once, with their battles: a prompt with six battles is encoded
    once. All batches of a length have one shape, so that each length is compiled once. Where a prompt's battles do not
    fit, the rest of them goes into another batch.

    Args:
        battles: any battles.
        token_ids: of each of ``battles.unique_prompts``.
        lengths: the static lengths, increasing; no prompt is longer than the last.
        batch_tokens: tokens of a batch, padding included: ``batch_tokens // length`` prompts, at least one.
        group: leading axes of a step, such as (devices, micro-batches): so many batches of one length go together. The
            last step of a length is filled up with batches without weight.
        padding_id: token of padding.

    Raises:
        InputError: not one row of tokens for each prompt, or a prompt that is too long.
    """

    def __init__(
        self,
        battles: Preferences,
        token_ids: Sequence[Sequence[int] | Int32[np.ndarray, "length"]],
        *,
        lengths: Sequence[int],
        batch_tokens: int,
        group: tuple[int, ...] = (),
        padding_id: int = 0,
    ) -> None:
        prompts = len(battles.unique_prompts)
        if len(token_ids) != prompts:
            raise InputError(f"expected token ids of {prompts} prompts, got {len(token_ids)}")
        sizes = np.asarray([len(ids) for ids in token_ids])
        if sizes.max() > lengths[-1]:
            raise InputError(f"expected at most {lengths[-1]} tokens a prompt, got {sizes.max()}")
        self.battles, self.token_ids, self.lengths = battles, token_ids, tuple(lengths)
        self.batch_tokens, self.group, self.padding_id = batch_tokens, group, padding_id
        self._bucket = np.searchsorted(self.lengths, sizes)
        order = np.argsort(battles.prompt_index, kind="stable")
        cuts = np.searchsorted(battles.prompt_index[order], np.arange(1, prompts))
        self._battles_of = np.split(order, cuts)

    @property
    def num_battles(self) -> int:
        """Battles of a pass."""
        return len(self.battles)

    @property
    def total_weight(self) -> float:
        """Sum of their weights."""
        return float(self.battles.weight.sum())

    @property
    def padding_share(self) -> float:
        """Share of the tokens of a pass, in prompts that are there, that are padding."""
        used = sum(map(len, self.token_ids))
        return 1.0 - used / sum(self.lengths[bucket] for bucket in self._bucket)

    def num_steps(self, *, seed: int, epoch: int) -> int:
        """Steps of a pass in the order of that seed and epoch."""
        return len(self._plan(np.random.default_rng((seed, epoch))))

    def in_order(self) -> Iterator[PreferenceBatch]:
        """A pass over all battles, not shuffled."""
        yield from map(self._batch, self._plan(None))

    def shuffled(self, *, seed: int, epoch: int) -> Iterator[PreferenceBatch]:
        """A pass over all battles: numpy leaves ``[*group, ...]``, the same ones for the same seed and epoch."""
        yield from map(self._batch, self._plan(np.random.default_rng((seed, epoch))))

    def _room(self, bucket: int) -> tuple[int, int]:
        """Prompts and battles of a batch."""
        prompts = max(1, self.batch_tokens // self.lengths[bucket])
        return prompts, prompts * BATTLES_PER_PROMPT

    def _plan(self, generator: np.random.Generator | None) -> list[list[_Part]]:
        steps = []
        order = np.arange(len(self.token_ids)) if generator is None else generator.permutation(len(self.token_ids))
        for bucket in range(len(self.lengths)):
            parts = self._parts(bucket, order[self._bucket[order] == bucket])
            size = math.prod(self.group)
            steps += [parts[start : start + size] for start in range(0, len(parts), size)]
        if generator is None:
            return steps
        return [steps[index] for index in generator.permutation(len(steps))]

    def _parts(self, bucket: int, prompts: Int[np.ndarray, "prompts"]) -> list[_Part]:
        most_prompts, most_battles = self._room(bucket)
        parts: list[_Part] = []
        for prompt in prompts.tolist():
            left = self._battles_of[prompt].tolist()
            while left:
                if not parts or len(parts[-1].prompts) == most_prompts or len(parts[-1].battles) == most_battles:
                    parts.append(_Part(bucket, [], []))
                room = most_battles - len(parts[-1].battles)
                parts[-1].prompts.append(prompt)
                parts[-1].battles.extend(left[:room])
                left = left[room:]
        return parts

    def _batch(self, parts: list[_Part]) -> PreferenceBatch:
        size, bucket = math.prod(self.group), parts[0].bucket
        most_prompts, most_battles = self._room(bucket)
        token_ids = np.full((size, most_prompts, self.lengths[bucket]), self.padding_id, np.int32)
        mask = np.zeros_like(token_ids)
        columns = {name: np.zeros((size, most_battles), np.int32) for name in ("query_index", "model_a", "model_b")}
        # An outcome of padding is a tie, so that its loss is finite under every loss.
        outcome = np.tile(np.asarray([0, 1, 0], np.float32), (size, most_battles, 1))
        weight = np.zeros((size, most_battles), np.float32)
        for place, part in enumerate(parts):
            for row, prompt in enumerate(part.prompts):
                ids = self.token_ids[prompt]
                token_ids[place, row, : len(ids)], mask[place, row, : len(ids)] = ids, 1
            row_of = {prompt: row for row, prompt in enumerate(part.prompts)}
            own, count = np.asarray(part.battles), len(part.battles)
            columns["query_index"][place, :count] = [row_of[prompt] for prompt in self.battles.prompt_index[own]]
            columns["model_a"][place, :count] = self.battles.model_a[own]
            columns["model_b"][place, :count] = self.battles.model_b[own]
            outcome[place, :count], weight[place, :count] = self.battles.outcome[own], self.battles.weight[own]

        def grouped(leaf: np.ndarray) -> np.ndarray:
            return leaf.reshape(*self.group, *leaf.shape[1:])

        columns |= {"outcome": outcome, "weight": weight}
        # Any, since leaves are numpy's until a step takes them.
        fields: dict[str, Any] = {name: grouped(leaf) for name, leaf in columns.items()}
        query: Any = {"token_ids": grouped(token_ids), "attention_mask": grouped(mask)}
        return PreferenceBatch(query=query, **fields)
