"""A plan says, without weights, what a run keeps on its devices, and what would make it fit."""

import json
from pathlib import Path

import jax
import pytest

from routerjax import InputError, data, models, training
from routerjax.cli import main
from routerjax.config import (
    DataConfig,
    ExperimentConfig,
    FeatureConfig,
    OptimizerConfig,
    RouterConfig,
    TrainingConfig,
    override,
)
from routerjax.likelihoods import make_likelihood
from routerjax.partitioning import make_mesh
from routerjax.pipeline import Devices, describe_plan
from routerjax.pipeline.plan_process import plan_here
from tests.data.test_loader import token_battles
from tests.decoders import save_tiny_decoder
from tests.encoders import save_tiny_encoder

CONFIG = """
from routerjax.config import DataConfig, ExperimentConfig, FeatureConfig, RouterConfig, TrainingConfig

def get_config():
    print("a configuration may print")
    return ExperimentConfig(
        data=DataConfig(),
        features=FeatureConfig(encoder="{encoder}", max_length=16),
        router=RouterConfig(family="causal", strong="big", weak="small"),
        training=TrainingConfig(batch_tokens=32, micro_batches=2, devices="mesh"),
    )
"""
CAUSAL = models.CausalRouter(
    models.Decoder(
        models.DecoderConfig(
            model_type="llama", vocab_size=100, width=16, num_layers=2, num_heads=2, num_key_heads=2, head_dim=8,
            mlp_dim=32, max_positions=16, attention_scale=8**-0.5, windows=(0, 0),
        )
    ),
    num_models=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def settings_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a decoder without its weights."""
    folder = save_tiny_decoder(tmp_path_factory.mktemp("plan") / "decoder")
    (folder / "model.safetensors").unlink()
    return folder


def experiment(encoder: Path, family: str = "causal", **training: object) -> ExperimentConfig:
    return ExperimentConfig(
        data=DataConfig(),
        features=FeatureConfig(encoder=str(encoder), max_length=16),
        router=RouterConfig(family=family, strong="big", weak="small"),
        training=TrainingConfig(batch_tokens=16, **training),
    )


@pytest.mark.parametrize("devices", ["jit", "pmap", "mesh"])
def test_what_is_planned_is_what_a_run_keeps(devices: str) -> None:
    wrapper = training.mesh_step(make_mesh(2)) if devices == "mesh" else getattr(training, f"{devices}_step")
    battles, token_ids = token_battles()
    batches = data.TokenBatches(battles, token_ids, lengths=(16,), batch_tokens=32, num_devices=wrapper.num_parts)
    batch, likelihood = next(batches.in_order()), make_likelihood("davidson")
    optimizer = training.AdamW(OptimizerConfig())
    memory = training.step_memory(CAUSAL, batch, likelihood=likelihood, optimizer=optimizer, wrapper=wrapper)

    transformation = optimizer.with_likelihood(likelihood).transformation(1)
    key = jax.random.key(0)
    state = training.create_state(CAUSAL, batch.query, transformation, key=key, likelihood=likelihood, wrapper=wrapper)

    def places(tree: object) -> object:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)

    def on_first_device(tree: object) -> int:
        first = jax.devices()[0]
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards if shard.device == first]
        return sum(shard.data.nbytes for shard in shards)

    if devices != "jit":  # on one device, an array of which only the shape is known has no place
        assert places(memory.state) == places(state)
    assert memory.parameters == on_first_device(state.variables)
    assert memory.moments == on_first_device(state.opt_state)
    assert memory.gradients == on_first_device(wrapper.zeros(state.trained))
    assert memory.temporaries is not None
    assert memory.temporaries > 0
    nothing = training.step_memory(
        CAUSAL, batch, likelihood=likelihood, optimizer=optimizer, wrapper=wrapper, most_kept=memory.kept - 1
    )
    assert nothing.temporaries is None  # too large whatever they are: nothing is compiled


def test_plan_command(settings_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(encoder=settings_alone))
    assert main(["plan", str(path), "--devices", "2x1GB", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["fits"], plan["would_fit"], plan["tried"]) == (True, None, [])
    assert plan["devices"] == {"count": 2, "used": 2, "memory": 10**9}
    assert plan["step"] == {"prompts": 8, "length": 16, "micro_batches": 2}

    trained = plan["parameters"]["trained"]
    assert plan["parameters"]["frozen"] == 0
    size = plan["bytes"]
    # Fully sharded over the two, norms and the head's bias excepted.
    assert 0.5 <= size["parameters"] / (4 * trained) < 0.6
    assert size["gradients"] == size["parameters"]
    assert size["moments"] == pytest.approx(2 * size["parameters"], abs=16)
    assert size["total"] == sum(size[name] for name in ("parameters", "moments", "gradients", "temporaries"))

    assert main(["plan", str(path), "--set", "features.encoder=nowhere/at/all", "--devices", "2x1GB"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("routerjax: error: no folder nowhere/at/all")


def test_what_would_fit_is_the_least_change(settings_alone: Path) -> None:
    config = experiment(settings_alone, micro_batches=4)
    messages: list[str] = []
    size = plan_here(config, 10**9, messages.append)["bytes"]
    mesh = ["training.devices=mesh"]
    least = plan_here(config, size["total"] - 1, messages.append)
    assert not least["fits"]
    lines = describe_plan(least)
    assert lines[-1].startswith("would fit, 0.00: --set training.devices=mesh")
    assert f"parameters: {least['parameters']['trained']:,} trained, 0 frozen" in lines[0]
    assert [attempt["fits"] for attempt in least["tried"]] == [False] * (len(least["tried"]) - 1) + [True]
    assert least["would_fit"] == least["tried"][-1]["set"]
    assert plan_here(override(config, least["would_fit"]), size["total"] - 1, messages.append)["fits"]
    impossible = plan_here(config, 100, messages.append)
    tried = [attempt["set"] for attempt in impossible["tried"]]
    assert impossible["would_fit"] is None
    assert describe_plan(impossible)[-1] == "nothing that was tried fits: take more devices, or a smaller encoder"
    assert all(attempt["total"] is None for attempt in impossible["tried"])  # nothing was compiled
    remat, bfloat16, stored, adapted = (
        f"features.encoder_attributes.{choice}"
        for choice in ("remat=True", "dtype=bfloat16", "param_dtype=bfloat16", "lora_rank=16")
    )
    moments = "optimizer.moments_dtype=bfloat16"
    shared = [["training.model_devices=" + str(2**n), "training.micro_batches=" + str(4 * 2**n)] for n in (1, 2, 3)]
    alone = [mesh, [*mesh, remat]]
    narrow = [(bfloat16,), (bfloat16, moments), (bfloat16, stored, moments), (bfloat16, stored, adapted)]
    changed = [[*mesh, remat, *names] for names in narrow]
    assert tried == [*alone, *([*alone[-1], *more] for more in shared), *changed, *([*changed[-1], *m] for m in shared)]
    # Sharded over 8 devices, and then with moments, half of what is kept, and parameters, a quarter, in half the bytes.
    kept = [size["total"] - size["temporaries"], *(attempt["kept"] for attempt in impossible["tried"])]
    assert kept[0] > 4 * kept[1]
    assert kept[1] == pytest.approx(16 / 12 * kept[1 + tried.index(changed[1])], rel=0.05)
    assert kept[1] == pytest.approx(16 / 10 * kept[1 + tried.index(changed[2])], rel=0.05)
    assert len(messages) == 4 + len(least["tried"]) + len(tried)


def test_attention_by_cudnn_is_planned_as_plain_operations(settings_alone: Path) -> None:
    plain = experiment(settings_alone)
    chosen = ["features.encoder_attributes.attention=cudnn", "features.encoder_attributes.dtype=bfloat16"]
    messages: list[str] = []
    plan = plan_here(override(plain, chosen), 10**9, messages.append)
    assert messages[0].startswith("attention=cudnn is compiled for GPUs alone: planned with plain attention")
    assert plan["bytes"] == plan_here(override(plain, chosen[1:]), 10**9, messages.append)["bytes"]


def test_a_plan_refuses_what_attention_by_cudnn_does_not_compute(settings_alone: Path) -> None:
    chosen = ["features.encoder_attributes.attention=cudnn"]
    with pytest.raises(InputError, match=r"encoder_attributes\.attention=cudnn computes in bfloat16, got float32"):
        plan_here(override(experiment(settings_alone), chosen), 10**9, print)
    chosen += ["features.encoder_attributes.dtype=bfloat16", "features.encoder_attributes.attention_dropout_rate=0.1"]
    with pytest.raises(InputError, match=r"encoder_attributes\.attention=cudnn has no dropout, got 0\.1"):
        plan_here(override(experiment(settings_alone), chosen), 10**9, print)


def test_families_that_read_no_tokens_need_no_plan(tmp_path: Path, settings_alone: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "encoder")
    (encoder / "model.safetensors").unlink()
    assert plan_here(experiment(encoder, "bert", devices="pmap"), 10**9, print)["fits"]
    with pytest.raises(InputError, match="mf learns from embeddings, and fits wherever they do"):
        plan_here(experiment(encoder, "mf"), 10**9, print)
    with pytest.raises(InputError, match="did you mean 'causal'"):
        plan_here(experiment(encoder, "casual"), 10**9, print)
    (settings_alone.parent / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no config\.json"):
        plan_here(experiment(settings_alone.parent / "empty"), 10**9, print)


@pytest.mark.parametrize("text", ["8", "x80GB", "8x80", "0x80GB", "2000x80GB", "8x0GB", "8x-1GB", "8 x 80GB", "٨x80GB"])
def test_devices_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "config.py", "--devices", text]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("routerjax: error: --devices must be a number of devices")


def test_devices() -> None:
    assert Devices.parse("1x24GiB") == Devices(1, 24 * 2**30)
    assert Devices.parse("16x141.5GB") == Devices(16, 141_500_000_000)
