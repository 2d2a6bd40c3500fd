import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routerjax.config import (
    BattleSource,
    DataConfig,
    ExperimentConfig,
    FeatureConfig,
    GoldenSource,
    OptimizerConfig,
    RouterConfig,
    TrainingConfig,
    identity_of,
    override,
)
from routerjax.errors import InputError
from routerjax.families import find_family
from routerjax.models import typed_choices

CONFIG = ExperimentConfig(
    data=DataConfig(battles=(BattleSource(path="a.parquet"), BattleSource(path="b.csv", weight=2.0))),
    router=RouterConfig(strong="gpt", weak="mix", attributes={"noise_std": 0.1}),
)


def test_override_reaches_every_level() -> None:
    changed = override(
        CONFIG,
        [
            "optimizer.learning_rate=1",
            "training.devices=pmap",
            "data.battles.1.weight=3",
            "router.attributes.noise_std=0.2",
            "optimizer.gradient_clip=1.0",
            "features.embeddings=/tmp/e=1.npy",
            "data.root=2024",
        ],
    )
    assert changed.optimizer.learning_rate == 1.0
    assert isinstance(changed.optimizer.learning_rate, float)
    assert changed.training.devices == "pmap"
    assert changed.data.battles[1] == BattleSource(path="b.csv", weight=3)
    assert changed.data.battles[0] is CONFIG.data.battles[0]
    assert changed.optimizer.gradient_clip == 1.0
    assert changed.features.embeddings == "/tmp/e=1.npy"
    assert changed.data.root == "2024"
    assert override(changed, ["optimizer.gradient_clip=None"]).optimizer.gradient_clip is None
    assert CONFIG.optimizer == OptimizerConfig()
    assert override(changed, ["router.attributes={}"]).router.attributes == {}
    described = {"k": 5, "noise_std": 0.5, "head": "mean", "remat": True}
    assert override(changed, [f"router.attributes={described}"]).router.attributes == described


@pytest.mark.parametrize(
    "text", ["4.10", "2024_10", "None", "True", "007", "1e3", "'quoted'", " ", "[1]", "(a", "\u2028"]
)
def test_text_stays_as_it_is(text: str) -> None:
    changed = override(CONFIG, [f"router.strong={text}", f"data.root={text}", f"data.battles.0.path={text}"])
    assert (changed.router.strong, changed.data.root, changed.data.battles[0].path) == (text, text, text)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_text_stays_as_it_is(text: str) -> None:
    assert override(CONFIG, [f"router.weak={text}"]).router.weak == text


@given(
    st.one_of(
        st.builds(lambda value: ("optimizer.learning_rate", value), st.floats(1e-300, 1e300)),
        st.builds(lambda value: ("training.order_seed", value), st.integers(-(2**70), 2**70)),
        st.builds(lambda value: ("training.epochs", value), st.integers() | st.floats() | st.booleans() | st.none()),
        st.builds(lambda value: ("training.patience", value), st.none() | st.integers(-3, 3) | st.floats(0, 3)),
        st.builds(lambda value: ("features.train_encoder", value), st.booleans() | st.none()),
        st.builds(
            lambda value: ("data.battles.0.drop_where", value),
            st.lists(st.text("ab\"'\\,é")) | st.text("ab") | st.none(),
        ),
    )
)
def test_a_file_and_the_command_line_mean_the_same(setting: tuple[str, object]) -> None:
    """A configuration takes the same values as Python objects and as text, and refuses the same."""
    path, value = setting
    *sections, name = path.split(".")
    section = CONFIG
    for part in sections:
        section = section[int(part)] if part.isdigit() else getattr(section, part)

    def outcome(make) -> object:
        try:
            return make()
        except InputError:
            return "refused"

    written = outcome(lambda: getattr(dataclasses.replace(section, **{name: value}), name))

    def from_text() -> object:
        node = override(CONFIG, [f"{path}={value}"])
        for part in (*sections, name):
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        return node

    assert outcome(from_text) == written
    assert type(outcome(from_text)) is type(written)


def test_tuples_are_json_or_python_literals() -> None:
    for text in ('("winner",)', '["winner"]', "['winner']"):
        assert override(CONFIG, [f"data.battles.0.drop_where={text}"]).data.battles[0].drop_where == ("winner",)
    assert override(CONFIG, ["data.battles=()"]).data.battles == ()
    changed = override(CONFIG, ['data.battles=[{"path": "c.csv", "weight": 2}]', "data.battles.0.drop_where=[]"])
    assert changed.data.battles == (BattleSource(path="c.csv", weight=2.0),)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimizer.learning_rat=1", "did you mean 'learning_rate'"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate must be a positive number, got 'fast'"),
        ("optimizer.learning_rate=True", "must be a positive number, got 'True'"),
        ("optimizer.learning_rate=inf", "must be a positive number, got 'inf'"),
        ("optimizer.gradient_clip=", "must be a positive number or None, got ''"),
        ("training.epochs=1.5", r"training.epochs must be an integer in \[1, 100000\], got '1.5'"),
        ("training.epochs=2.0", "training.epochs must be an integer in .* got '2.0'"),
        ("training.epochs=1_000", "training.epochs must be an integer in .* got '1_000'"),
        ("optimizer.learning_rate=1_0", "optimizer.learning_rate must be a positive number, got '1_0'"),
        ("training.epochs=0", "training.epochs must be an integer in .* got '0'"),
        ("training.epochs=1000000000000", "training.epochs must be an integer in .* got '1000000000000'"),
        ("training.epochs=" + "9" * 5000, "training.epochs must be an integer in .* got '9+[.]{3}9+'"),
        ("training.init_seed=-1", r"training.init_seed must be an integer in \[0, 4294967295\], got '-1'"),
        ("data.seed=18446744073709551616", "data.seed must be an integer in"),
        ("training.devices=tpu", "training.devices must be one of jit, pmap, mesh, got .tpu."),
        ("training.devices=jti", r"got 'jti' \(did you mean 'jit'\?\)"),
        ("data.battles.2.weight=1", "expected an index below 2"),
        ("data.battles.².weight=1", "expected an index below 2"),
        ("data.battles.0.weight=-1", "data.battles.0.weight must be a number in .* got '-1'"),
        ("data.battles.0.weight=heavy", "data.battles.0.weight must be a number in"),
        ("data.battles.0.drop_where=winner", "data.battles.0.drop_where must be a tuple, each item text, got 'winner'"),
        ("data.battles.0.drop_where=[5]", "data.battles.0.drop_where.0 must be text, got 5"),
        ("data.battles=[5]", "data.battles.0 must be a BattleSource, got 5"),
        ("data.battles=[{}]", "data.battles.0.path must be given: text"),
        ('data.battles=[{"path": "a", "wait": 1}]', r"no setting 'data.battles.0.wait'.*did you mean 'weight'"),
        ('data.battles=[{"path": "a", "weight": "1"}]', "data.battles.0.weight must be a number in .* got '1'"),
        ("data.battles=" + "[" * 100_000, "data.battles must be a tuple"),
        ("data.battles={b'a': 1}", "data.battles must be a tuple"),
        ("training.epochs.more=1", "nothing lies below int"),
        ("training.epochs", "NAME=VALUE"),
        ("data.root=a\0b", "data.root must be text without null characters"),
        ("data.root=a\udcff", "data.root must be text without .*in UTF-8"),
        ("router.attributes=5", "router.attributes must be a mapping of names, each value .*, got '5'"),
        ("router.attributes={'k': [1]}", r"router.attributes.k must be True or False, .* got \[1\]"),
        ("router.attributes={'k': None}", r"router.attributes.k must be True or False, .* got None"),
        ("router.attributes.k.more=1", "'k' has nothing below it"),
    ],
)
def test_override_refuses(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        override(CONFIG, [assignment])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainingConfig(batch_size=0), "training.batch_size must be an integer in .* got 0"),
        (lambda: TrainingConfig(epochs=2.5), "training.epochs must be an integer in .* got 2.5"),
        (lambda: TrainingConfig(epochs=2.0), "training.epochs must be an integer in .* got 2.0"),
        (lambda: TrainingConfig(epochs="2"), "training.epochs must be an integer in .* got '2'"),
        (lambda: TrainingConfig(epochs=True), "training.epochs must be an integer in .* got True"),
        (lambda: TrainingConfig(epochs=10**12), "training.epochs must be an integer in"),
        (lambda: TrainingConfig(noise_seed=2**64), "training.noise_seed must be an integer in"),
        (lambda: TrainingConfig(order_seed=-1), "training.order_seed must be an integer in"),
        (
            lambda: DataConfig(validation_fraction=1.0),
            r"data.validation_fraction must be a number in \[0, 1\), got 1.0",
        ),
        (lambda: DataConfig(root=5), "data.root must be text, got 5"),
        (lambda: DataConfig(root=b"a"), "data.root must be text, got b'a'"),
        (lambda: DataConfig(battles="x"), "data.battles must be a tuple, each item a BattleSource, got 'x'"),
        (lambda: DataConfig(battles=BattleSource(path="a")), "data.battles must be a tuple, .* got BattleSource"),
        (lambda: DataConfig(battles=("a.csv",)), "data.battles.0 must be a BattleSource, got 'a.csv'"),
        (lambda: BattleSource(path="a", drop_where="bad"), "data.battles.drop_where must be a tuple"),
        (lambda: BattleSource(path=None), "data.battles.path must be text, got None"),
        (lambda: GoldenSource(benchmark="mmlu", root=".", strong="a", weak="b", num_prompts=0), "num_prompts must be"),
        (lambda: FeatureConfig(encoder_attributes=[1]), "features.encoder_attributes must be a mapping"),
        (lambda: RouterConfig(strong=1, weak="b"), "router.strong must be text, got 1"),
        (lambda: RouterConfig(strong="a", weak="b", attributes=[1]), "router.attributes must be a mapping"),
        (lambda: RouterConfig(strong="a", weak="b", attributes={1: 2}), "router.attributes must be a mapping"),
        (lambda: OptimizerConfig(warmup_fraction=-0.1), "optimizer.warmup_fraction must be a number in"),
        (
            lambda: OptimizerConfig(gradient_clip=0.0),
            "optimizer.gradient_clip must be a positive number or None, got 0.0",
        ),
        (
            lambda: OptimizerConfig(learning_rate=float("nan")),
            "optimizer.learning_rate must be a positive number, got nan",
        ),
        (lambda: OptimizerConfig(learning_rate=10**400), "optimizer.learning_rate must be a positive number"),
        (lambda: ExperimentConfig(data=None, router=None), "data must be a DataConfig, got None"),
        (
            lambda: dataclasses.replace(CONFIG, training=CONFIG.optimizer),
            "training must be a TrainingConfig, got Optim",
        ),
    ],
)
def test_configurations_check_themselves(make, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_paths_and_lists_become_plain() -> None:
    config = ExperimentConfig(
        data=DataConfig(
            root=Path("here"), battles=[BattleSource(path=Path("a.csv"), drop_where=["bad"])], seed=np.int64(3)
        ),
        router=RouterConfig(strong=np.str_("a"), weak="b", attributes={"k": np.int32(5)}),
        optimizer=OptimizerConfig(learning_rate=np.float32(0.5), warmup_fraction=0),
    )
    plain = ExperimentConfig(
        data=DataConfig(root="here", battles=(BattleSource(path="a.csv", drop_where=("bad",)),), seed=3),
        router=RouterConfig(strong="a", weak="b", attributes={"k": 5}),
        optimizer=OptimizerConfig(learning_rate=0.5, warmup_fraction=0.0),
    )
    assert json.dumps(dataclasses.asdict(config)) == json.dumps(dataclasses.asdict(plain))


def test_attributes_have_the_types_of_their_module() -> None:
    changed = override(CONFIG, ["router.attributes.noise_std=1", "router.attributes.model_dim=8"])
    typed = find_family("mf").typed_attributes(changed.router.attributes)
    assert json.dumps(typed) == '{"noise_std": 1.0, "model_dim": 8}'
    assert find_family("sw").typed_attributes({"normalize": "train"}) == {"normalize": "train"}
    with pytest.raises(InputError, match=r"knn\.k must be an integer in .*, got '2\.5'"):
        find_family("knn").typed_attributes({"k": "2.5"})
    with pytest.raises(InputError, match=r"knn has no attribute 'kk' \(did you mean 'k'\?\)"):
        find_family("knn").typed_attributes({"kk": "2"})
    chosen = {"remat": "True", "dtype": "bfloat16", "dropout_rate": "0"}
    assert json.dumps(typed_choices(chosen)) == '{"remat": true, "dtype": "bfloat16", "dropout_rate": 0.0}'
    with pytest.raises(InputError, match=r"features\.encoder_attributes\.remat must be True or False, got 'maybe'"):
        typed_choices({"remat": "maybe"})


def test_identity_is_what_a_run_learns() -> None:
    elsewhere = override(
        CONFIG, ["data.root=/moved", "training.checkpoint_every=7", "features.dollars_per_million_tokens=2"]
    )
    assert identity_of(elsewhere) == identity_of(CONFIG)
    for setting in ("training.epochs=11", "router.strong=x", "data.seed=1", "data.battles.0.weight=2"):
        assert identity_of(override(CONFIG, [setting])) != identity_of(CONFIG)
    assert json.loads(json.dumps(identity_of(CONFIG))) == identity_of(CONFIG)
