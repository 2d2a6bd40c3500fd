"""Batches of tokens hold every battle once, each prompt once a batch, in a few shapes."""

import numpy as np
import pytest

from routerjax import InputError, data

LENGTHS = (4, 8, 16)


def token_battles(num_prompts: int = 37, *, seed: int = 0) -> tuple[data.Preferences, list[list[int]]]:
    """Prompts of 1 to 16 tokens with 1 to 5 battles each, and one with 40."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 6, size=num_prompts)
    counts[3] = 40
    prompts = [f"prompt {row}" for row in range(num_prompts) for _ in range(counts[row])]
    order = rng.permutation(len(prompts))
    a = rng.integers(3, size=len(prompts))
    b = (a + rng.integers(1, 3, size=len(prompts))) % 3
    names = np.asarray(["x", "y", "z"])
    outcome = np.eye(3)[rng.integers(3, size=len(prompts))]
    weight = np.arange(1, len(prompts) + 1, dtype=float)
    battles = data.Preferences.from_names([prompts[row] for row in order], names[a], names[b], outcome, weight)
    return battles, [rng.integers(1, 99, size=rng.integers(1, 17)).tolist() for _ in battles.unique_prompts]


def make(group: tuple[int, ...] = (), **changes: object) -> tuple[data.Preferences, list[list[int]], data.TokenBatches]:
    battles, token_ids = token_battles()
    arguments = {"lengths": LENGTHS, "batch_tokens": 32, "group": group} | changes
    return battles, token_ids, data.TokenBatches(battles, token_ids, **arguments)


def rows_of(battles: data.Preferences, token_ids: list[list[int]]) -> set[tuple]:
    """Battles by what a batch says of them; the weights tell them apart."""
    return {
        (tuple(token_ids[prompt]), int(a), int(b), tuple(outcome.tolist()), float(weight))
        for prompt, a, b, outcome, weight in zip(
            battles.prompt_index, battles.model_a, battles.model_b, battles.outcome, battles.weight, strict=True
        )
    }


def found_in(batches: list) -> list[tuple]:
    found = []
    for batch in batches:
        lead = batch.weight.ndim - 1
        for place in np.ndindex(batch.weight.shape[:lead]):
            ids, mask = (batch.query[name][place] for name in ("token_ids", "attention_mask"))
            for row in np.flatnonzero(batch.weight[place]):
                prompt = batch.query_index[place][row]
                tokens = tuple(ids[prompt][mask[prompt] == 1].tolist())
                a, b = int(batch.model_a[place][row]), int(batch.model_b[place][row])
                found.append((tokens, a, b, tuple(batch.outcome[place][row].tolist()), float(batch.weight[place][row])))
    return found


@pytest.mark.parametrize("group", [(), (2,), (2, 3)])
def test_every_battle_is_there_once(group: tuple[int, ...]) -> None:
    battles, token_ids, batches = make(group)
    for a_pass in (list(batches.in_order()), list(batches.shuffled(seed=0, epoch=1))):
        found = found_in(a_pass)
        assert len(found) == len(battles)
        assert set(found) == rows_of(battles, token_ids)
        shapes = {batch.query["token_ids"].shape for batch in a_pass}
        assert len(shapes) <= len(LENGTHS)
        for shape in shapes:
            assert shape[:-2] == group
            assert shape[-2] * shape[-1] == 32
    assert len(list(batches.shuffled(seed=0, epoch=1))) == batches.num_steps(seed=0, epoch=1)


def test_a_prompt_is_in_a_batch_once_however_many_battles_it_has() -> None:
    _, token_ids, batches = make()
    for batch in batches.in_order():
        present = [tuple(row[mask == 1]) for row, mask in zip(*batch.query.values(), strict=True) if mask.any()]
        assert len(present) == len(set(present))
    prompts_encoded = sum(int((batch.query["attention_mask"].sum(axis=-1) > 0).sum()) for batch in batches.in_order())
    assert len(token_ids) <= prompts_encoded <= len(token_ids) + 5


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    _, _, batches = make()

    def order(seed: int, epoch: int) -> list[tuple]:
        return found_in(list(batches.shuffled(seed=seed, epoch=epoch)))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_padding() -> None:
    _, token_ids, batches = make(padding_id=7)
    for batch in batches.in_order():
        assert (batch.query["token_ids"][batch.query["attention_mask"] == 0] == 7).all()
        assert (batch.outcome.sum(axis=-1) == 1).all()
    padded = [min(length for length in LENGTHS if length >= len(ids)) for ids in token_ids]
    assert batches.padding_share == pytest.approx(1 - sum(map(len, token_ids)) / sum(padded))


def test_bad_input() -> None:
    battles, token_ids = token_battles()
    with pytest.raises(InputError, match="expected token ids of 37 prompts, got 36"):
        data.TokenBatches(battles, token_ids[1:], lengths=LENGTHS, batch_tokens=32)
    with pytest.raises(InputError, match="expected at most 8 tokens a prompt, got 16"):
        data.TokenBatches(battles, token_ids, lengths=(4, 8), batch_tokens=32)
