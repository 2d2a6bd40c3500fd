import pytest

from routerjax.config import (
    BattleSource,
    DataConfig,
    ExperimentConfig,
    OptimizerConfig,
    RouterConfig,
    TrainingConfig,
    override,
)
from routerjax.errors import InputError

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
    assert changed.router.attributes == {"noise_std": 0.2}
    assert changed.optimizer.gradient_clip == 1.0
    assert changed.features.embeddings == "/tmp/e=1.npy"
    assert changed.data.root == "2024"
    assert override(changed, ["optimizer.gradient_clip=None"]).optimizer.gradient_clip is None
    assert CONFIG.optimizer == OptimizerConfig()
    assert override(changed, ["router.attributes={}"]).router.attributes == {}
    described = {"k": 5, "noise_std": 0.5, "head": "mean", "remat": True}
    assert override(changed, [f"router.attributes={described}"]).router.attributes == described


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimizer.learning_rat=1", "did you mean 'learning_rate'"),
        ("optimizer.learning_rate=fast", r"optimizer.learning_rate takes float, got 'fast'"),
        ("optimizer.learning_rate=True", "takes float"),
        ("training.epochs=1.5", "takes int"),
        ("training.epochs=0", "training.epochs must be positive, got 0"),
        ("training.devices=tpu", "training.devices must be one of jit, pmap, got .tpu."),
        ("data.battles.2.weight=1", "expected an index below 2"),
        ("data.battles.0.weight=-1", "weight must be positive"),
        ("data.battles.0.weight=heavy", "data.battles.0.weight takes float"),
        ("training.epochs.more=1", "nothing lies below int"),
        ("training.epochs", "NAME=VALUE"),
        ("router.attributes=5", "router.attributes takes Mapping, got 5"),
        ("router.attributes={'k': [1]}", r"router.attributes.k takes a boolean, a number or text, got \[1\]"),
        ("router.attributes={'k': None}", "router.attributes.k takes a boolean, a number or text, got None"),
    ],
)
def test_override_refuses(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(CONFIG, [assignment])


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainingConfig(batch_size=0),
        lambda: DataConfig(validation_fraction=1.0),
        lambda: OptimizerConfig(warmup_fraction=-0.1),
        lambda: OptimizerConfig(gradient_clip=0.0),
        lambda: OptimizerConfig(learning_rate=float("nan")),
    ],
)
def test_configs_validate_themselves(make) -> None:
    with pytest.raises(InputError, match="must be"):
        make()
