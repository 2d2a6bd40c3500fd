"""Folders of PEFT, without torch: what cannot be held, or is not computed here, is refused in one line."""

from pathlib import Path

import pytest

from routerjax import InputError, formats
from tests.encoders import change_json
from tests.routers import tiny_text_router


def test_only_adapters_under_a_linear_head_without_bias_are_written(tmp_path: Path) -> None:
    plain = tiny_text_router(tmp_path, family="causal")
    with pytest.raises(InputError, match="peft holds low-rank adapters of a causal router"):
        formats.export(plain, tmp_path / "out", "peft")
    tokens = tiny_text_router(tmp_path, family="causal", attributes={"head": "tokens"}, chosen={"lora_rank": 2})
    with pytest.raises(InputError, match=r"linear without a bias: train with .*use_bias=False"):
        formats.export(tokens, tmp_path / "out", "peft")


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    change_json(config, peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path="base")
    with pytest.raises(InputError, match="task_type must be 'SEQ_CLS', got 'CAUSAL_LM'"):
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
    names = {"strong": "big", "weak": "small", "options": {"models": '["big", "medium", "small"]'}}
    change_json(folder / "adapter_config.json", layer_replication=None, megatron_core="megatron.core", x={})
    assert formats.read(folder, "peft", **names).models == router.models
    for name, value in {"alora_invocation_tokens": [1], "use_qalora": True, "lora_bias": True, "x": 1}.items():
        change_json(folder / "adapter_config.json", **{name: value})
        with pytest.raises(InputError, match=f"{name} is not computed here, got"):
            formats.read(folder, "peft", **names)
        change_json(folder / "adapter_config.json", **{name: None})
    change_json(folder / "adapter_config.json", use_rslora="yes")
    with pytest.raises(InputError, match="use_rslora must be True or False, got 'yes'"):
        formats.read(folder, "peft", **names)
