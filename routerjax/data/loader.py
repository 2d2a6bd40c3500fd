"""Batches of tokenised prompts with their battles, in a few static shapes, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from routerjax.data.batches import HostBatches
from routerjax.data.preferences import Preferences
from routerjax.errors import InputError
from routerjax.typing import BatchShape, PreferenceBatch

# Room for battles in a row is at least this, and at least twice the mean: few prompts need a second row.
MIN_BATTLES_PER_ROW = 8


class _Shape(NamedTuple):
    """Batches of one length."""

    length: int
    rows: int
    batches: int


class TokenBatches(HostBatches):
    """Battles on prompts that are token ids, in batches for training or validation.

    A batch holds prompts of about one length, a row each, with their battles: a prompt with six battles is encoded
    once. Only a prompt with more battles than a row has room for (twice the mean, or more) has several rows. All
    batches of a length have one shape, so that each length is compiled once, and the rows of a length are spread evenly
    over its batches, so that few are empty. How many batches there are of which shape does not depend on the order.

    Args:
        battles: any battles.
        token_ids: of each of ``battles.unique_prompts``.
        lengths: the static lengths, increasing; no prompt is longer than the last.
        batch_tokens: the most tokens of a batch on a device, padding included; a row that is longer is a batch alone.
        num_devices: that a batch is for: its battles and its rows are as many equal parts, and each battle's row is in
            the battle's part.
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
        num_devices: int = 1,
        padding_id: int = 0,
    ) -> None:
        prompts = len(battles.unique_prompts)
        if len(token_ids) != prompts:
            raise InputError(f"expected token ids of {prompts} prompts, got {len(token_ids)}")
        sizes = np.asarray([len(ids) for ids in token_ids])
        if sizes.max() > lengths[-1]:
            raise InputError(f"expected at most {lengths[-1]} tokens a prompt, got {sizes.max()}")
        self.battles, self.token_ids, self.padding_id = battles, token_ids, padding_id
        self.num_devices = num_devices
        counts = np.bincount(battles.prompt_index, minlength=prompts)
        self._room = max(MIN_BATTLES_PER_ROW, 2 * -(-len(battles) // prompts))
        rows_of = -(-counts // self._room)
        self._prompt = np.repeat(np.arange(prompts), rows_of)
        # A row's battles are a slice of all battles in the order of their prompts.
        self._by_prompt = np.argsort(battles.prompt_index, kind="stable")
        place = np.arange(len(self._prompt)) - np.repeat(np.cumsum(rows_of) - rows_of, rows_of)
        self._start = (np.cumsum(counts) - counts)[self._prompt] + place * self._room
        self._count = np.minimum(counts[self._prompt] - place * self._room, self._room)
        self._shape_of = np.searchsorted(lengths, sizes)[self._prompt]
        self._shapes = []
        for index, length in enumerate(lengths):
            rows = int((self._shape_of == index).sum())
            batches = -(-rows // (max(1, batch_tokens // length) * num_devices))
            self._shapes.append(_Shape(length, -(-rows // max(1, batches * num_devices)), batches))

    @property
    def num_shapes(self) -> int:
        """Different shapes of batches, each of which is compiled."""
        return len(self.shapes)

    @property
    def shapes(self) -> list[BatchShape]:
        """Shapes of the batches of a pass."""
        return [
            BatchShape(shape.rows * self.num_devices, shape.length, shape.batches)
            for shape in self._shapes
            if shape.batches
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens of the rows of a pass, without padding."""
        return sum(len(self.token_ids[int(prompt)]) for prompt in self._prompt)

    @property
    def padding_share(self) -> float:
        """Share of padding in the tokens of a pass: in rows, in empty rows, and on devices that have none."""
        return 1.0 - self.num_tokens / sum(shape.rows * shape.length * shape.batches for shape in self.shapes)

    def battles_of(self, *, seed: int, epoch: int, start: int, stop: int) -> Int[np.ndarray, "battles"]:
        """Indices of the battles of some batches of a pass, from ``start`` to before ``stop``; see :meth:`shuffled`."""
        return self._battles(np.concatenate(self._order((seed, epoch))[start:stop]))[1]

    def _order(self, seed: tuple[int, int] | None) -> list[Int[np.ndarray, "rows"]]:
        if seed is None:
            return self._plan(np.arange(len(self._prompt)))
        generator = np.random.default_rng(seed)
        plan = self._plan(generator.permutation(len(self._prompt)))
        return [plan[place] for place in generator.permutation(len(plan)).tolist()]

    def _battles(self, rows: Int[np.ndarray, "rows"]) -> tuple[Int[np.ndarray, "battles"], Int[np.ndarray, "battles"]]:
        """Battles of some rows: the place of each one's row among them, and its index."""
        counts = self._count[rows]
        row = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        return row, self._by_prompt[self._start[rows][row] + within]

    def _plan(self, order: Int[np.ndarray, "rows"]) -> list[Int[np.ndarray, "rows"]]:
        """The rows of each batch."""
        plan = []
        for index, shape in enumerate(self._shapes):
            if shape.batches == 0:
                continue
            rows = order[self._shape_of[order] == index]
            size = shape.rows * self.num_devices
            plan += [rows[start : start + size] for start in range(0, len(rows), size)]
        return plan

    def _batch(self, rows: Int[np.ndarray, "rows"], parts: range | None, /) -> PreferenceBatch:
        shape, devices = self._shapes[int(self._shape_of[rows[0]])], self.num_devices
        if parts is not None:
            rows, devices = rows[parts.start * shape.rows : parts.stop * shape.rows], len(parts)
        token_ids = np.full((devices * shape.rows, shape.length), self.padding_id, np.int32)
        mask = np.zeros_like(token_ids)
        for row, prompt in enumerate(self._prompt[rows]):
            ids = self.token_ids[int(prompt)]
            token_ids[row, : len(ids)], mask[row, : len(ids)] = ids, 1

        # Where each battle goes: its row, and its place among the battles of the row's device.
        row, battle, room = *self._battles(rows), shape.rows * self._room
        device = row // shape.rows
        place = device * room + np.arange(len(battle)) - np.searchsorted(row, device * shape.rows)

        size = devices * room
        # Any, since leaves are numpy's until a step takes them.
        columns: dict[str, Any] = {name: np.zeros(size, np.int32) for name in ("query_index", "model_a", "model_b")}
        columns["query_index"][:] = np.repeat(np.arange(devices) * shape.rows, room)
        columns["query_index"][place] = row
        for name in ("model_a", "model_b"):
            columns[name][place] = getattr(self.battles, name)[battle]
        columns["outcome"] = np.zeros((size, self.battles.outcome.shape[1]), np.float32)
        columns["outcome"][:, 1] = 1.0  # of padding: outcomes sum to 1
        columns["outcome"][place] = self.battles.outcome[battle]
        columns["weight"] = np.zeros(size, np.float32)
        columns["weight"][place] = self.battles.weight[battle]
        query: Any = {"token_ids": token_ids, "attention_mask": mask}
        return PreferenceBatch(query=query, **columns)
