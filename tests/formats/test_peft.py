"""Folders of PEFT, without torch: what cannot be held, or is not computed here, is refused in one line."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError, Router, formats
from routerjax.models import Decoder
from tests.encoders import TEXTS, change_json
from tests.formats.test_hf_decoder import randomised
from tests.routers import tiny_text_router

PAIR: dict[str, Any] = {"strong": "big", "weak": "small", "options": {"models": '["big", "medium", "small"]'}}


def test_only_adapters_on_the_base_under_a_head_without_bias_are_written(tmp_path: Path) -> None:
    plain = tiny_text_router(tmp_path, family="causal")
    with pytest.raises(InputError, match="peft holds low-rank adapters of a causal router"):
        formats.export(plain, tmp_path / "out", "peft")
    biased = randomised(tiny_text_router(tmp_path, family="causal", chosen={"lora_rank": 2}))
    with pytest.raises(InputError, match=r"no bias, and the router's is not 0: .*use_bias=False"):
        formats.export(biased, tmp_path / "out", "peft")
    module: Any = biased.module
    encoder = Decoder(dataclasses.replace(module.encoder.config, added_tokens=1))
    added = dataclasses.replace(biased, module=module.clone(encoder=encoder, parent=None))
    with pytest.raises(InputError, match="the base's own vocabulary, and the router's encoder has tokens more"):
        formats.export(added, tmp_path / "out", "peft")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Router, Path]:
    """A router with label tokens and adapters, and its folder."""
    folder = tmp_path_factory.mktemp("labelled")
    chosen = {"lora_rank": 2, "lora_targets": ("query",)}
    router = tiny_text_router(folder, family="causal", attributes={"head": "tokens"}, chosen=chosen)
    formats.export(router, folder / "peft", "peft")
    return router, folder / "peft"


def test_label_tokens_are_rows_after_the_vocabulary(labelled: tuple[Router, Path], tmp_path: Path) -> None:
    router: Any = labelled[0]
    written = labelled[1]
    size = router.module.encoder.vocab_size
    config = json.loads((written / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("CAUSAL_LM", None)
    assert config["trainable_token_indices"] == {"lm_head": [size, size + 1, size + 2]}
    tensors = safetensors.numpy.load_file(written / "adapter_model.safetensors")
    rows = tensors.pop("base_model.model.lm_head.token_adapter.trainable_tokens_delta")
    np.testing.assert_array_equal(rows, router.variables["params"]["label_embedding"])
    assert all("lora" in name for name in tensors)
    again: Any = formats.read(written, "peft", **PAIR)
    assert again.featurizer.max_length == router.featurizer.max_length == 48
    np.testing.assert_array_equal(again.scores(TEXTS), router.scores(TEXTS))
    formats.export(again, tmp_path / "twice", "peft")
    for file in written.iterdir():
        assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable_token_indices": [95, 96, 97]}, r"must be tokens \d+ to \d+ of lm_head, one for each of 3 models"),
        ({"trainable_token_indices": {"lm_head": [1, 2, 3]}}, r"of lm_head, .* got {'lm_head': \[1, 2, 3\]}"),
        ({"trainable_token_indices": None}, r"trainable_token_indices must be tokens .* got None"),
        ({"trainable_token_indices": {"lm_head": 1}}, r"trainable_token_indices must be tokens .*got {'lm_head': 1}"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save must be empty where labels are tokens, got \['lm_head'\]"),
    ],
)
def test_other_trained_rows_are_refused(
    changes: dict, message: str, labelled: tuple[Router, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(labelled[1], tmp_path / "changed"))
    change_json(folder / "adapter_config.json", **changes)
    with pytest.raises(InputError, match=message):
        formats.read(folder, "peft", **PAIR)


def test_texts_are_cut_as_the_tokenizer_beside_says(labelled: tuple[Router, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(labelled[1], tmp_path / "changed"))
    change_json(folder / "tokenizer_config.json", model_max_length=1e30, truncation_side="left")
    read: Any = formats.read(folder, "peft", **PAIR).featurizer
    assert (read.max_length, read.truncation) == (64, "left")
    change_json(folder / "tokenizer_config.json", truncation_side=["left"])
    with pytest.raises(InputError, match=r"truncation_side must be left or right, got \['left'\]"):
        formats.read(folder, "peft", **PAIR)
    featurizer: Any = labelled[0].featurizer
    middle = dataclasses.replace(featurizer, truncation="middle")
    with pytest.raises(InputError, match="transformers cannot leave out the middle of a text"):
        formats.export(dataclasses.replace(labelled[0], featurizer=middle), tmp_path / "out", "peft")


def test_a_token_table_that_is_not_the_bases_is_refused(labelled: tuple[Router, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(labelled[1], tmp_path / "changed"))
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    base = safetensors.numpy.load_file(Path(labelled[0].featurizer.source) / "model.safetensors")
    rows = np.concatenate([base["model.embed_tokens.weight"], np.ones((3, 16), np.float32)])
    table = {"base_model.model.model.embed_tokens.weight": rows}
    safetensors.numpy.save_file(tensors | table, folder / "adapter_model.safetensors")
    np.testing.assert_array_equal(formats.read(folder, "peft", **PAIR).scores(TEXTS), labelled[0].scores(TEXTS))
    rows[3] += 1
    safetensors.numpy.save_file(tensors | table, folder / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"embed_tokens.weight is not the base's, and the token table is not trained"):
        formats.read(folder, "peft", **PAIR)


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    change_json(config, peft_type="LORA", task_type="TOKEN_CLS", base_model_name_or_path="base")
    with pytest.raises(InputError, match="task_type must be SEQ_CLS or CAUSAL_LM, got 'TOKEN_CLS'"):
        formats.read(tmp_path, "peft")
    change_json(config, task_type="SEQ_CLS", target_modules=["q_proj", "fc"])
    with pytest.raises(InputError, match="names no models: give --strong and --weak"):
        formats.read(tmp_path, "peft")
    with pytest.raises(InputError, match=r"target_modules must be of q_proj, .*got 'fc'"):
        formats.read(tmp_path, "peft", strong="a", weak="b")


def test_settings_that_are_not_known_are_refused_unless_they_are_off(tmp_path: Path) -> None:
    folder = tmp_path / "peft"
    chosen = {"lora_rank": 2, "lora_targets": ("query",)}
    router = tiny_text_router(tmp_path, family="causal", attributes={"use_bias": False}, chosen=chosen)
    formats.export(router, folder, "peft")
    change_json(folder / "adapter_config.json", layer_replication=None, megatron_core="megatron.core", x={})
    assert formats.read(folder, "peft", **PAIR).models == router.models
    with pytest.raises(
        InputError, match=r"scores 3 models, and 2 are named \(big, small\): name all, .*--set models=\["
    ):
        formats.read(folder, "peft", strong="big", weak="small")
    for name, value in {"trainable_token_indices": [1], "use_qalora": True, "lora_bias": True, "x": 1}.items():
        change_json(folder / "adapter_config.json", **{name: value})
        with pytest.raises(InputError, match=f"{name} is not computed here, got"):
            formats.read(folder, "peft", **PAIR)
        change_json(folder / "adapter_config.json", **{name: None})
    change_json(folder / "adapter_config.json", use_rslora="yes")
    with pytest.raises(InputError, match="use_rslora must be True or False, got 'yes'"):
        formats.read(folder, "peft", **PAIR)
