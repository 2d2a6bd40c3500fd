"""Batches of tokens hold every battle once, each prompt once a batch, in a few shapes."""

import jax
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


def make(**changes: object) -> tuple[data.Preferences, list[list[int]], data.TokenBatches]:
    battles, token_ids = token_battles()
    arguments = {"lengths": LENGTHS, "batch_tokens": 32} | changes
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
    rows = []
    for batch in batches:
        ids, mask = (batch.query[name] for name in ("token_ids", "attention_mask"))
        for row in np.flatnonzero(batch.weight):
            prompt = batch.query_index[row]
            tokens = tuple(ids[prompt][mask[prompt] == 1].tolist())
            a, b = int(batch.model_a[row]), int(batch.model_b[row])
            rows.append((tokens, a, b, tuple(batch.outcome[row].tolist()), float(batch.weight[row])))
    return rows


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_every_battle_is_there_once_in_one_shape_a_length(num_devices: int) -> None:
    battles, token_ids, batches = make(num_devices=num_devices)
    for a_pass in (list(batches.in_order()), list(batches.shuffled(seed=0, epoch=1))):
        rows = found_in(a_pass)
        assert len(rows) == len(battles)
        assert set(rows) == rows_of(battles, token_ids)
        assert len(a_pass) == batches.num_batches
        shapes = {batch.query["token_ids"].shape for batch in a_pass}
        assert len(shapes) == batches.num_shapes == len({shape[-1] for shape in shapes})
        for shape in shapes:
            assert shape[0] % num_devices == 0
            assert shape[0] // num_devices * shape[1] <= 32
        for batch in a_pass:
            parts = np.arange(num_devices).repeat(len(batch.weight) // num_devices)
            rows = len(batch.query["token_ids"]) // num_devices
            np.testing.assert_array_equal(batch.query_index // rows, parts)


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("length", [3, 8, 11])
def test_prompts_of_one_length_leave_the_others_out(num_devices: int, length: int) -> None:
    battles, _ = token_battles()
    token_ids = [[row + 1] * length for row in range(len(battles.unique_prompts))]
    batches = data.TokenBatches(battles, token_ids, lengths=LENGTHS, batch_tokens=32, num_devices=num_devices)
    for a_pass in (list(batches.in_order()), list(batches.shuffled(seed=0, epoch=0))):
        assert set(found_in(a_pass)) == rows_of(battles, token_ids)
        assert len(a_pass) == batches.num_batches
    assert batches.num_shapes == 1


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("batch_tokens", [32, 160, 10_000])
def test_less_than_a_row_a_device_is_empty_and_the_padding_is_all_that_there_is(
    num_devices: int, batch_tokens: int
) -> None:
    _, _, batches = make(num_devices=num_devices, batch_tokens=batch_tokens)
    a_pass = list(batches.shuffled(seed=0, epoch=0))
    masks = [batch.query["attention_mask"] for batch in a_pass]
    computed, used = sum(mask.size for mask in masks), sum(int(mask.sum()) for mask in masks)
    assert batches.padding_share == pytest.approx(1 - used / computed)
    empty = sum(int((mask.sum(axis=-1) == 0).sum()) for mask in masks)
    assert empty < len(a_pass) * num_devices


def test_a_prompt_has_one_row_but_where_its_battles_do_not_fit() -> None:
    _, token_ids, batches = make()
    rows = sum(int((batch.query["attention_mask"].sum(axis=-1) > 0).sum()) for batch in batches.in_order())
    assert len(token_ids) < rows <= len(token_ids) + 40 // 8  # one prompt has 40 battles
    many = data.Preferences.from_names(["a"] * 100 + ["b"], ["x"] * 101, ["y"] * 101, np.tile([1.0, 0, 0], (101, 1)))
    (batch,) = data.TokenBatches(many, [[1], [2]], lengths=(4,), batch_tokens=32).in_order()
    assert batch.query["attention_mask"].sum() == 2


def test_a_pass_can_begin_in_the_middle() -> None:
    _, _, batches = make()
    whole = list(batches.shuffled(seed=3, epoch=2))
    rest = list(batches.shuffled(seed=3, epoch=2, start=5))
    assert len(rest) == len(whole) - 5 > 0
    assert found_in(rest) == found_in(whole[5:])


def test_the_battles_of_batches_are_told_without_making_them() -> None:
    battles, _, batches = make()
    made = list(batches.shuffled(seed=5, epoch=2))
    for start, stop in ((0, 1), (2, 4)):
        rows = batches.battles_of(seed=5, epoch=2, start=start, stop=stop)
        weights = np.concatenate([batch.weight[batch.weight > 0] for batch in made[start:stop]])
        assert sorted(battles.weight[rows]) == sorted(weights)  # by which battles are told apart


def test_a_batch_can_be_made_of_some_of_its_parts() -> None:
    _, _, batches = make(num_devices=4)
    whole_pass = batches.shuffled(seed=0, epoch=1, start=2)
    passes = [batches.shuffled(seed=0, epoch=1, start=2, parts=parts) for parts in (range(2), range(2, 4))]
    for whole, *shares in zip(whole_pass, *passes, strict=True):
        rows = 0
        for share in shares:
            share.query_index[:] += rows
            rows += len(share.query["token_ids"])
        together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *shares)
        jax.tree.map(np.testing.assert_array_equal, together, whole)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    _, _, batches = make()

    def order(seed: int, epoch: int) -> list[tuple]:
        return found_in(list(batches.shuffled(seed=seed, epoch=epoch)))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_padding() -> None:
    _, _, batches = make(padding_id=7)
    for batch in batches.in_order():
        assert (batch.query["token_ids"][batch.query["attention_mask"] == 0] == 7).all()
        assert (batch.outcome.sum(axis=-1) == 1).all()


def test_bad_input() -> None:
    battles, token_ids = token_battles()
    with pytest.raises(InputError, match="expected token ids of 37 prompts, got 36"):
        data.TokenBatches(battles, token_ids[1:], lengths=LENGTHS, batch_tokens=32)
    with pytest.raises(InputError, match="expected at most 8 tokens a prompt, got 16"):
        data.TokenBatches(battles, token_ids, lengths=(4, 8), batch_tokens=32)
