"""Routers of tokens: several devices and micro-batches make the update of one, and layers learn at their own rates."""

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from routerjax import InputError, data, models, training
from routerjax.config import OptimizerConfig, TrainingConfig
from routerjax.families import layer_depths
from routerjax.likelihoods import BradleyTerry
from routerjax.typing import PreferenceBatch
from tests.data.test_loader import token_battles
from tests.training.battles import difference

ENCODER = models.BertEncoder(
    vocab_size=100, width=8, num_layers=1, num_heads=2, mlp_dim=16, max_positions=16, dropout_rate=0.0,
    attention_dropout_rate=0.0, initializer_range=0.3,
)  # fmt: skip
MODULE = models.BertRouter(ENCODER, num_models=3, head="mean", dropout_rate=0.0)
DEEPER = MODULE.clone(encoder=ENCODER.clone(num_layers=2, parent=None), parent=None)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.0, final_fraction=1.0)
BATTLES, TOKEN_IDS = token_battles()
LENGTHS, ONE_LENGTH = (8, 16), (16,)  # each is compiled on its own


def init_params(module: models.BertRouter) -> dict:
    example = {name: jnp.zeros((1, 2), jnp.int32) for name in ("token_ids", "attention_mask")}
    return nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), example)["params"])


@pytest.fixture(scope="module")
def params() -> dict:
    return init_params(MODULE)


@pytest.fixture(scope="module")
def deeper_params() -> dict:
    return init_params(DEEPER)


def batches(num_devices: int = 1, *, battles: data.Preferences = BATTLES, **changes: object) -> data.TokenBatches:
    token_ids = TOKEN_IDS[: len(battles.unique_prompts)]
    arguments = {"lengths": LENGTHS, "batch_tokens": 32} | changes
    return data.TokenBatches(battles, token_ids, num_devices=num_devices, **arguments)


def state_of(params: dict, transformation: object) -> training.TrainState:
    query = next(iter(batches().in_order())).query
    variables = {"params": params}
    return training.create_state(MODULE, query, transformation, key=jax.random.key(0), variables=variables)


def norm(tree: object) -> float:
    return float(np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(tree))))


def without_key_bias(tree: dict) -> dict:
    """A softmax does not change when all its logits shift, so the key's bias has no gradient but rounding.

    Adam scales that rounding up to steps of full size, in any direction.
    """
    flat = flax.traverse_util.flatten_dict(tree)
    return {path: leaf for path, leaf in flat.items() if path[-2:] != ("key", "bias")}


def test_devices_and_micro_batches_make_the_gradient_and_the_update_of_one_batch(params: dict) -> None:
    # 8 devices with 3 micro-batches of two lengths, against one device that takes the same as one batch.
    parts = list(batches(8).shuffled(seed=0, epoch=0))
    steps = [parts, parts[1:], parts[:1]]
    assert len({part.query["token_ids"].shape for part in steps[0]}) == 2

    def joined(step: list[PreferenceBatch]) -> PreferenceBatch:
        """Join the battles of batches into one, always of the same shape."""
        fields, offset = [], 0
        for part in step:
            query = {name: np.pad(leaf, ((0, 0), (0, 16 - leaf.shape[1]))) for name, leaf in part.query.items()}
            fields.append(part._replace(query=query, query_index=part.query_index + offset))
            offset += len(query["token_ids"])
        together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *fields)
        rows = [(0, 64 - offset), (0, 0)]
        query = {name: np.pad(leaf, rows) for name, leaf in together.query.items()}
        more = 10 * 64 - len(together.weight)
        battles = [np.pad(leaf, [(0, more), *[(0, 0)] * (leaf.ndim - 1)]) for leaf in together._replace(query={})[1:]]
        return PreferenceBatch(query, *battles)

    transformation = training.AdamW(OPTIMIZER).transformation(5)
    loss, constant = BradleyTerry(), {"weight_per_step": 2.0}
    many = training.accumulating_step(MODULE, loss, transformation, **constant, wrapper=training.pmap_step)
    one = training.jit_step(training.make_train_step(MODULE, loss, transformation, **constant))
    state_many, state_one = state_of(params, transformation), state_of(params, transformation)
    for step in range(5):
        batch = steps[step % len(steps)]
        state_many, metrics_many = many(state_many, map(training.pmap_step.split, batch), jax.random.key(0))
        state_one, metrics_one = one(state_one, joined(batch), jax.random.key(0))
        if step == 0:
            np.testing.assert_allclose(metrics_many["gradient_norm"], metrics_one["gradient_norm"], rtol=1e-5)
            np.testing.assert_allclose(metrics_many["loss_sum"], metrics_one["loss_sum"], rtol=1e-5)
            # Adam's first moments are a tenth of the first gradients.
            first = difference(state_many.opt_state, state_one.opt_state)
            moments = jax.tree.leaves(state_one.opt_state)
            assert norm(first) <= 1e-5 * norm([leaf for leaf in moments if leaf.dtype == jnp.float32])
    update = without_key_bias(difference(state_one.variables["params"], params))
    between = without_key_bias(difference(state_many.variables["params"], state_one.variables["params"]))
    assert norm(between) <= 1e-3 * norm(update)


def fit(params: dict, directory: Path, **changes: object) -> training.FitResult:
    config = TrainingConfig(epochs=4, micro_batches=3)
    arguments = {"training": config, "optimizer": dataclasses.replace(OPTIMIZER, learning_rate=1e-2), "resume": False}
    arguments |= changes
    shapes = {name: arguments.pop(name) for name in ("lengths", "batch_tokens") if name in arguments}
    train, validation = arguments.pop("train", None), arguments.pop("validation", None)
    resume = arguments.pop("resume")
    return training.fit(
        MODULE,
        train or batches(training.wrapper_of(arguments["training"]).num_parts, **shapes),
        validation or batches(**shapes),
        variables={"params": params},
        directory=training.Resume(directory) if resume else directory,
        **arguments,
    )


class Interrupting:
    """Batches during whose making Ctrl-C is pressed, once or more."""

    def __init__(self, batches: data.TokenBatches, method: str, at: tuple[int, ...]) -> None:
        self.batches, self.method, self.at, self.made = batches, method, at, 0

    def __getattr__(self, name: str) -> object:
        return self._interrupted if name == self.method else getattr(self.batches, name)

    def _interrupted(self, **arguments: int) -> Iterator[PreferenceBatch]:
        for batch in getattr(self.batches, self.method)(**arguments):
            self.made += 1
            if self.made in self.at:
                signal.raise_signal(signal.SIGINT)
            yield batch


def test_it_learns_and_an_interrupted_run_goes_on_from_its_last_step_bit_for_bit(params: dict, tmp_path: Path) -> None:
    whole = fit(params, tmp_path / "whole")
    assert whole.history[-1]["validation_loss"] < whole.history[0]["validation_loss"]
    row, tokens = whole.history[0], sum(int(batch.query["attention_mask"].sum()) for batch in batches().in_order())
    assert row["tokens_per_second"] / row["battles_per_second"] == pytest.approx(tokens / len(BATTLES))
    run = tmp_path / "stopped"
    checkpoints, count = run / "checkpoints", batches().num_batches
    steps = -(-count // 3)
    assert count % 3  # the last step of an epoch has fewer micro-batches
    # Within the first epoch; within the second; in the validation after it.
    for train_at, validation_at in (((5,), ()), ((count + 2,), ()), ((), (2,))):
        with pytest.raises(KeyboardInterrupt):
            fit(
                params,
                run,
                train=Interrupting(batches(), "shuffled", train_at),
                validation=Interrupting(batches(), "in_order", validation_at),
                resume=checkpoints.exists(),
            )
    newest = max(int(path.name) for path in checkpoints.glob("[0-9]*"))
    assert newest == (steps + 1) + steps  # the second epoch's steps, but not its validation
    other = dataclasses.replace(BATTLES, weight=2 * BATTLES.weight)
    with pytest.raises(InputError, match=r"train_weight was .*, is .*; resume with the same configuration"):
        fit(params, run, resume=True, train=batches(battles=other))
    fewer = BATTLES.select(np.arange(len(BATTLES)) < len(BATTLES) // 2)
    with pytest.raises(InputError, match=r"validation_battles was .*, is .*; resume with the same configuration"):
        fit(params, run, resume=True, validation=batches(battles=fewer))
    resumed = fit(params, run, resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, whole.variables)
    for one, other in zip(resumed.history, whole.history, strict=True):
        assert {name: one[name] for name in ("loss", "validation_loss", "gradient_norm")}.items() <= other.items()
        assert 0 < one["input_wait_share"] < 1
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_eight_devices_train_as_one(params: dict, tmp_path: Path) -> None:
    # One step an epoch, so that the order of the battles is that on one device.
    arguments = {"lengths": ONE_LENGTH, "batch_tokens": 1024}
    one = fit(params, tmp_path / "one", training=TrainingConfig(epochs=3), **arguments)
    with jax.transfer_guard_device_to_device("disallow"):  # the state is placed once, not at each call
        eight = fit(params, tmp_path / "eight", training=TrainingConfig(epochs=3, devices="pmap"), **arguments)
    for name in ("loss", "validation_loss", "gradient_norm"):
        values = [[row[name] for row in result.history] for result in (one, eight)]
        np.testing.assert_allclose(*values, rtol=1e-4)
    assert eight.history[-1]["loss"] < eight.history[0]["loss"]


def test_it_stops_when_validation_gets_no_better(params: dict, tmp_path: Path) -> None:
    config = TrainingConfig(epochs=12, patience=2)
    optimizer = dataclasses.replace(OPTIMIZER, learning_rate=0.3)
    result = fit(params, tmp_path, training=config, optimizer=optimizer, lengths=ONE_LENGTH)
    validation = [row["validation_loss"] for row in result.history]
    best = int(np.argmin(validation))
    assert result.best_epoch == best + 1
    assert len(validation) == min(12, best + 1 + 2)
    assert len(validation) < 12


def rates_of(params: dict, **changes: float) -> dict:
    return training.AdamW(OptimizerConfig(**changes), layer_depths(params)).rates()


def test_learning_rates_by_layer(deeper_params: dict) -> None:
    rates = rates_of(deeper_params, encoder_rate=0.5, layer_decay=0.1)
    assert rates["classifier"]["kernel"] == 1.0
    assert rates["encoder"]["layer_1"]["mlp_in"]["kernel"] == pytest.approx(0.5)
    assert rates["encoder"]["layer_0"]["mlp_in"]["kernel"] == pytest.approx(0.05)
    assert rates["encoder"]["token_embedding"] == pytest.approx(0.005)
    kernel = rates_of(stacked(deeper_params), encoder_rate=0.5, layer_decay=0.1)["encoder"]["layers"]["mlp_in"][
        "kernel"
    ]
    np.testing.assert_allclose(np.ravel(kernel), [0.05, 0.5])


def stacked(params: dict) -> dict:
    return {**params, "encoder": models.stack_layers(params["encoder"])}


def transformation_of(params: dict, **changes: object) -> optax.GradientTransformation:
    config = dataclasses.replace(OPTIMIZER, **changes)
    return training.AdamW(config, layer_depths(params)).transformation(5)


def update_of(transformation: optax.GradientTransformation, gradient: dict, params: dict) -> dict:
    return jax.jit(lambda gradient: transformation.update(gradient, transformation.init(params), params)[0])(gradient)


def test_the_update_is_scaled_and_what_is_frozen_stays(deeper_params: dict) -> None:
    gradient = jax.tree.map(np.ones_like, deeper_params)

    def update(**changes: object) -> dict:
        return update_of(transformation_of(deeper_params, weight_decay=0.0, **changes), gradient, deeper_params)

    plain, scaled = update(), update(encoder_rate=0.5, layer_decay=0.1)
    rates = rates_of(deeper_params, encoder_rate=0.5, layer_decay=0.1)
    jax.tree.map(
        lambda one, rate, other: np.testing.assert_allclose(one * rate, other, rtol=1e-5), plain, rates, scaled
    )
    frozen = update(frozen_layers=1)
    for name in ("token_embedding", "layer_0"):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(frozen["encoder"][name]))
    assert all((leaf != 0).all() for leaf in jax.tree.leaves(frozen["encoder"]["layer_1"]))
    with pytest.raises(InputError, match="frozen_layers must be at most the encoder's 2, got 3"):
        update(frozen_layers=3)
    with pytest.raises(InputError, match="are for routers that train an encoder"):
        training.AdamW(OptimizerConfig(layer_decay=0.9), layer_depths({"classifier": np.ones(2)}))


@pytest.mark.parametrize("form", [lambda params: params, stacked])
def test_frozen_parameters_have_no_part_in_the_norm_that_is_clipped(deeper_params: dict, form: Callable) -> None:
    params = form(deeper_params)
    transformation = transformation_of(params, frozen_layers=1, gradient_clip=1.0)

    def gradient(of_frozen: float) -> dict:
        plain = jax.tree.map(lambda leaf: np.full_like(leaf, 1e-3), deeper_params)
        frozen = {name: tree for name, tree in plain["encoder"].items() if name != "layer_1"}
        frozen = jax.tree.map(lambda leaf: np.full_like(leaf, of_frozen), frozen)
        return form({**plain, "encoder": {**plain["encoder"], **frozen}})

    one, other = (update_of(transformation, gradient(of_frozen), params) for of_frozen in (1e-3, 1e6))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_is_frozen_has_no_moments(deeper_params: dict) -> None:
    shapes = jax.eval_shape(transformation_of(deeper_params, frozen_layers=1).init, deeper_params)
    learning = {**deeper_params, "encoder": {"layer_1": deeper_params["encoder"]["layer_1"]}}
    expected = [leaf.shape for leaf in jax.tree.leaves(learning)]
    moments = [leaf.shape for leaf in jax.tree.leaves(shapes) if leaf.shape != ()]
    assert sorted(moments) == sorted(2 * expected)
