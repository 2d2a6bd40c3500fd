"""A CLS token that is added to a plain decoder: one row more, trained over a frozen base, in every format."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError, Router, formats, load_router
from routerjax.cli import main
from routerjax.config import FeatureConfig
from routerjax.features import open_featurizer
from tests.decoders import CHAT_TEMPLATE, save_tiny_decoder
from tests.encoders import TEXTS, save_tiny_encoder

CLS, ROWS = "<|cls|>", 130
"""The token, and rows of the base's table, some of which have no token."""
PROMPTS = [*TEXTS, f"  poem {CLS} prime ", "poem " * 100]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_decoder(tmp_path_factory.mktemp("cls") / "base", vocab_size=ROWS, num_hidden_layers=1)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "{% if add_generation_prompt %}[SEP] write{% endif %}")
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, arena: Path, tmp_path_factory: pytest.TempPathFactory) -> Router:
    """A router with adapters that was trained from the command line."""
    output = tmp_path_factory.mktemp("run") / "run"
    settings = [
        *("router.family=causal", "router.attributes={'use_bias': False}", "optimizer.learning_rate=1e-2"),
        *(f"features.encoder={base}", "features.max_length=32", "training.epochs=1", "training.batch_tokens=256"),
        *("features.template=chat", f"features.cls_token={CLS}", "features.truncation=left"),
        *("features.encoder_attributes.lora_rank=2", 'features.encoder_attributes.lora_targets=["query"]'),
    ]
    assert main(["train", str(arena / "config.py"), "--set", *settings, "--output", str(output)]) == 0
    return load_router(output / "router")


def test_its_row_alone_is_trained_over_a_frozen_base(base: Path, trained: Router) -> None:
    table = safetensors.numpy.load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(trained.variables["memory"]["encoder"]["token_embedding"], table)
    assert set(trained.variables["params"]["encoder"]) == {"added_embedding", "layers"}
    assert trained.variables["params"]["encoder"]["added_embedding"].shape == (1, 16)
    assert np.ptp(trained.win_prob(PROMPTS)) > 0


def test_it_ends_each_text_and_no_prompt_spells_it(base: Path, trained: Router) -> None:
    spelled, long = trained.featurizer.tokenizer.token_ids([PROMPTS[3], PROMPTS[4]])
    plain = open_featurizer(FeatureConfig(encoder=str(base), template="chat", max_length=64), embeds=False).tokenizer
    (expected,) = plain.tokenizer.encode_batch(["[SEP] user poem <cls> prime [SEP]"], add_special_tokens=False)
    assert spelled == [*expected.ids, ROWS]
    assert (len(long), long[-1]) == (32, ROWS)


def test_it_is_in_every_format(trained: Router, tmp_path: Path) -> None:
    formats.export(trained, tmp_path / "bundle", "stablehlo")
    router = trained
    for place, name in enumerate(["p2l", "hf", "p2l", "p2l"]):
        folder = tmp_path / str(place)
        formats.export(router, folder, name)
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == ROWS + 1
        router = formats.read(folder, name, strong=trained.strong, weak=trained.weak)
        np.testing.assert_allclose(router.win_prob(PROMPTS), trained.win_prob(PROMPTS), rtol=0, atol=1e-6)
    for file in (tmp_path / "2").iterdir():
        assert (tmp_path / "3" / file.name).read_bytes() == file.read_bytes(), file.name


def test_it_is_a_trained_row_of_a_peft_folder(trained: Router, tmp_path: Path) -> None:
    formats.export(trained, tmp_path / "out", "peft")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["task_type"], config["trainable_token_indices"]) == ("SEQ_CLS", [ROWS])
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    row = tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    np.testing.assert_array_equal(row, trained.variables["params"]["encoder"]["added_embedding"])
    options = {"models": list(trained.models)}
    with pytest.raises(InputError, match=r"trainable_token_indices is not computed here, got \[130\]"):
        formats.read(tmp_path / "out", "peft", strong=trained.strong, weak=trained.weak, options=options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": None}, "features.cls_token ends the template of a causal router .*: set .*features.template"),
        ({"cls_token": "cls"}, r"features.cls_token must be a word in < > or \[ \], such as <\|cls\|>, got 'cls'"),
        ({"cls_token": "[SEP]"}, r"features.cls_token: the tokenizer has a token '\[SEP\]' already"),
    ],
)
def test_what_it_is_not_for_is_refused(base: Path, changes: dict, message: str) -> None:
    settings = {"encoder": str(base), "max_length": 32, "template": "chat", "cls_token": CLS, **changes}
    with pytest.raises(InputError, match=message):
        open_featurizer(FeatureConfig(**settings), embeds=False)


def test_other_families_and_heads_are_refused(
    base: Path, arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bert = save_tiny_encoder(tmp_path / "bert")
    plain = ["router.family=causal", "router.attributes={}"]
    refused = {
        "is read by a linear head, got causal.head='tokens'": ["router.attributes.head=tokens"],
        "set router.family=causal": ["router.family=mf", "features.train_encoder=True"],
        "is of a decoder, and bert has its own": ["router.family=bert", f"features.encoder={bert}"],
    }
    new = ["features.template=[CLS] {prompt} [SEP]", f"features.cls_token={CLS}", f"features.encoder={base}"]
    train = ["train", str(arena / "config.py"), "--output", str(tmp_path / "run"), "--set", *plain, *new]
    for message, changes in refused.items():
        assert main([*train, *changes]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
