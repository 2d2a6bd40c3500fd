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
