"""Adapters in PEFT's format against peft and transformers in torch."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from routerjax import formats
from routerjax.config import FeatureConfig
from routerjax.families import CAUSAL, pretrained_variables
from routerjax.features import open_featurizer
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_a_cls_token_loads_in_peft(model_type: str, tmp_path: Path) -> None:
    import peft
    import torch

    base = save_tiny_decoder(tmp_path / "encoder", model_type=model_type, vocab_size=130)  # more rows than tokens
    chosen, attributes = {"lora_rank": 2, "lora_targets": ("query", "up")}, {"use_bias": False}
    added = {"template": "[CLS] {prompt} [SEP]", "cls_token": "<|cls|>", "encoder_attributes": chosen}
    featurizer = open_featurizer(FeatureConfig(encoder=str(base), max_length=48, **added), embeds=False)
    module = CAUSAL.make_module(num_outputs=3, attributes=attributes, featurizer=featurizer)
    variables = jax.tree.map(jnp.asarray, pretrained_variables(module, base, jax.random.key(0)))
    router = tiny_text_router(tmp_path, family="causal", attributes=attributes, chosen=chosen)
    router = dataclasses.replace(router, module=module, featurizer=featurizer, variables=variables)
    router = randomised(router)
    assert formats.export(router, tmp_path / "out", "peft")["adapter_model.safetensors"] == 0.0
    sizes = {"num_labels": 3, "pad_token_id": 0}
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", **sizes).eval()
    query = router.featurizer.query(TEXTS)
    with torch.inference_mode():
        ids, mask = (torch.from_numpy(query[name]).long() for name in ("token_ids", "attention_mask"))
        theirs = model(input_ids=ids, attention_mask=mask).logits.numpy()
    assert (query["token_ids"] == 130).sum() == len(TEXTS)
    np.testing.assert_allclose(theirs, router.scores(TEXTS), rtol=0, atol=1e-4)


def label_scores(model, router) -> np.ndarray:
    """Logits of the last three tokens after each prompt's last token, of torch."""
    import torch

    query = router.featurizer.query(TEXTS)
    with torch.inference_mode():
        ids, mask = (torch.from_numpy(query[name]).long() for name in ("token_ids", "attention_mask"))
        logits = model.eval()(input_ids=ids, attention_mask=mask).logits
        return logits[torch.arange(len(ids)), mask.sum(1) - 1, -3:].numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_label_tokens_load_in_peft_and_come_back(model_type: str, tmp_path: Path) -> None:
    import peft
    import transformers

    base = save_tiny_decoder(tmp_path / "encoder", model_type=model_type, vocab_size=130)  # more rows than tokens
    chosen = {"lora_rank": 2, "lora_alpha": 3.0, "lora_targets": ["query", "up"]}
    router = randomised(tiny_text_router(tmp_path, family="causal", attributes={"head": "tokens"}, chosen=chosen))
    assert formats.export(router, tmp_path / "out", "peft")["adapter_model.safetensors"] == 0.0
    resized = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(label_scores(resized, router), router.scores(TEXTS), rtol=0, atol=1e-4)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(133)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "out")
    np.testing.assert_allclose(label_scores(model, router), router.scores(TEXTS), rtol=0, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids([f"<|route:{name}|>" for name in NAMES]) == [130, 131, 132]
    again = formats.read(tmp_path / "out", "peft", strong="big", weak="small", options={"models": NAMES})
    formats.export(again, tmp_path / "twice", "peft")
    for file in (tmp_path / "out").iterdir():
        assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tables", ["auto", False])
@pytest.mark.parametrize(
    ("model_type", "layers"),
    [
        ("llama", ["lm_head"]),
        ("llama", ["lm_head", "embed_tokens"]),
        ("gemma3_text", []),
        ("gemma3_text", ["lm_head"]),
        ("gemma3_text", ["lm_head", "embed_tokens"]),
    ],
)
def test_label_tokens_of_peft_import(model_type: str, layers: list[str], tables: object, tmp_path: Path) -> None:
    import peft
    import torch
    import transformers

    base = save_tiny_decoder(tmp_path / "encoder", model_type=model_type)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    size = model.config.vocab_size
    rows = list(range(size, size + 3))
    model.resize_token_embeddings(size + 3)
    indices = dict.fromkeys(layers, rows) or rows
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["k_proj", "down_proj"], trainable_token_indices=indices
    )
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or "trainable_tokens" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=tables)
    router = formats.read(tmp_path / "theirs", "peft", strong="big", weak="small", options={"models": NAMES})
    np.testing.assert_allclose(label_scores(model, router), router.scores(TEXTS), rtol=0, atol=1e-4)
    formats.export(router, tmp_path / "ours", "peft")
    before, after = (
        safetensors.numpy.load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours")
    )
    labels = [name for name in after if "lora" not in name]
    assert len(labels) == 1
    # Rows of the output layer alone are those of the token table, where the two are one.
    theirs = labels[0] if labels[0] in before else "base_model.model.lm_head.token_adapter.trainable_tokens_delta"
    np.testing.assert_array_equal(after.pop(labels[0]), before[theirs])
    for name, tensor in after.items():
        np.testing.assert_array_equal(before[name], tensor)
