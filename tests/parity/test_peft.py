"""Adapters in PEFT's format against peft and transformers in torch."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from routerjax import formats
from tests.decoders import save_tiny_decoder
from tests.encoders import TEXTS
from tests.formats.test_hf_decoder import randomised
from tests.routers import NAMES, tiny_text_router

pytestmark = pytest.mark.parity


def scores(base: Path, folder: Path, router) -> np.ndarray:
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, pad_token_id=0)
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    query = router.featurizer.query(TEXTS)
    with torch.inference_mode():
        ids, mask = (torch.from_numpy(query[name]).long() for name in ("token_ids", "attention_mask"))
        return model(input_ids=ids, attention_mask=mask).logits.numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stabilized", [False, True])
def test_a_classifiers_adapters_load_in_peft_and_come_back(stabilized: bool, tmp_path: Path) -> None:
    base = save_tiny_decoder(tmp_path / "encoder")
    chosen = {"lora_rank": 2, "lora_alpha": 3.0, "lora_rank_stabilized": stabilized, "lora_targets": ["query", "up"]}
    router = randomised(tiny_text_router(tmp_path, family="causal", attributes={"use_bias": False}, chosen=chosen))
    assert formats.export(router, tmp_path / "out", "peft")["adapter_model.safetensors"] == 0.0
    np.testing.assert_allclose(scores(base, tmp_path / "out", router), router.scores(TEXTS), rtol=0, atol=1e-4)
    again = formats.read(tmp_path / "out", "peft", strong="big", weak="small", options={"models": NAMES})
    np.testing.assert_allclose(again.scores(TEXTS), router.scores(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_peft_imports(tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    base = save_tiny_decoder(tmp_path / "encoder")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=5, target_modules=["k_proj", "o_proj", "down_proj"])
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "theirs")
    router = formats.read(tmp_path / "theirs", "peft", strong="big", weak="small", options={"models": NAMES})
    np.testing.assert_allclose(scores(base, tmp_path / "theirs", router), router.scores(TEXTS), rtol=0, atol=1e-4)
    formats.export(router, tmp_path / "ours", "peft")
    before, after = (
        safetensors.numpy.load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
