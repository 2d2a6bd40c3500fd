"""Folders of decoders against transformers' torch: what it saves is read, and it loads what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from routerjax import formats
from tests.decoders import SETTINGS, SIZES, save_causal_classifier, save_p2l, save_tiny_decoder
from tests.encoders import TEXTS, make_tokenizer
from tests.formats.test_decoder_routers import TURNS
from tests.formats.test_hf_decoder import ADAPTERS, randomised
from tests.routers import tiny_text_router

pytestmark = pytest.mark.parity

LABELS = ("gpt-4", "llama", "mixtral")
PROMPTS = [*TEXTS, "poem " * 100]


def logits(folder: Path, kind: str, texts: list[str] = PROMPTS) -> np.ndarray:
    """Logits of the last token, or of a classifier, by transformers."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        result = model(**inputs).logits
    if result.ndim == 3:
        result = result[torch.arange(len(texts)), inputs["attention_mask"].sum(dim=1) - 1]
    return result.numpy()


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_classifiers_in_and_out(model_type: str, tmp_path: Path) -> None:
    import torch
    import transformers

    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    sizes = {**SIZES, **SETTINGS[model_type], "vocab_size": make_tokenizer().get_vocab_size(), "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(model_type, **sizes, **names)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path / "theirs")
    make_tokenizer().save(str(tmp_path / "theirs" / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 48}
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(settings))
    router = formats.read(tmp_path / "theirs", "hf", strong=LABELS[0], weak=LABELS[2])
    np.testing.assert_allclose(
        router.scores(PROMPTS), logits(tmp_path / "theirs", "AutoModelForSequenceClassification"), rtol=0, atol=1e-4
    )
    assert formats.export(router, tmp_path / "ours", "hf")["model.safetensors"] == 0.0
    before, after = (safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    np.testing.assert_allclose(
        logits(tmp_path / "ours", "AutoModelForSequenceClassification"), router.scores(PROMPTS), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_label_tokens_are_the_last_logits(model_type: str, tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path / "encoder", model_type=model_type)
    router = randomised(tiny_text_router(tmp_path, family="causal", attributes={"head": "tokens"}, chosen=ADAPTERS))
    formats.export(router, tmp_path / "out", "hf", options={"max_shard_size": "6KB"})
    assert not (tmp_path / "out" / "model.safetensors").exists()
    expected = logits(tmp_path / "out", "AutoModelForCausalLM")[:, -3:]
    np.testing.assert_allclose(router.scores(PROMPTS), expected, rtol=0, atol=1e-4)


def hidden_states(folder: Path, texts: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Normalised hidden state at the last token of each text, which has its special tokens in it, and all tensors."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder)).eval()
    prefix = "model."
    state = {name[len(prefix) :]: torch.from_numpy(leaf) for name, leaf in tensors.items() if name.startswith(prefix)}
    model.load_state_dict(state)
    states = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, truncation=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states.append(model(ids).last_hidden_state[0, -1].numpy())
    return np.stack(states).astype(np.float64), tensors


def test_routellms_causal_classifier(tmp_path: Path) -> None:
    folder = save_causal_classifier(tmp_path / "theirs")
    router = formats.read(folder, "routellm-causal", options=TURNS)
    system, user = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user"))
    texts = [f"[CLS]{system}write a poem<|eot_id|>{user}prove {prompt} please<|eot_id|>" for prompt in TEXTS]
    hidden, tensors = hidden_states(folder, texts)
    ratings = np.exp(hidden @ tensors["lm_head.weight"][-5:].T.astype(np.float64))
    expected = 1 - ratings[:, 3:].sum(axis=1) / ratings.sum(axis=1)
    np.testing.assert_allclose(router.win_prob(TEXTS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", ["bt", "bag"])
def test_p2l(loss: str, tmp_path: Path) -> None:
    folder = save_p2l(tmp_path / "theirs", loss)
    router = formats.read(folder, "p2l", strong="a", weak="c")
    prompts = [*TEXTS, " prove [CLS] it "]
    texts = [f"[SEP] user {prompt.replace('[CLS]', '<cls>').strip()} [SEP][CLS]" for prompt in prompts]
    hidden, tensors = hidden_states(folder, texts)
    beta = hidden @ tensors["head.head.weight"].T.astype(np.float64) + tensors["head.head.bias"]
    strong, weak = np.exp(beta[:, 0]), np.exp(beta[:, 2])
    if loss == "bt":
        expected = strong / (strong + weak)
    else:
        eta = hidden @ tensors["head.eta_head.weight"][0].astype(np.float64) + tensors["head.eta_head.bias"][0]
        theta = np.exp(eta) + 1.000001
        wins, loses = strong / (strong + theta * weak + 1), weak / (weak + theta * strong + 1)
        expected = (1 + wins - loses) / 2
    np.testing.assert_allclose(router.win_prob(prompts), expected, rtol=0, atol=1e-5)
