"""The BERT family against transformers: hidden states, logits, gradients, and folders in both directions."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from routerjax import formats, losses, models
from routerjax.families import BERT, pretrained_params
from routerjax.features import load_encoder, load_tokens
from routerjax.models.layers import relative_buckets
from routerjax.policies import Threshold
from routerjax.pretrained import MINILM, bert_names, locate, publish_weights
from routerjax.router import Router
from tests.encoders import TEXTS, make_tokenizer

pytestmark = pytest.mark.parity

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet")
LABELS = ("gpt-4", "llama", "mixtral")


def tiny_config(model_type: str):
    import transformers

    vocab_size = make_tokenizer(model_type).get_vocab_size()
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    if model_type == "distilbert":
        return transformers.DistilBertConfig(
            vocab_size=vocab_size, dim=16, n_layers=2, n_heads=4, hidden_dim=32, max_position_embeddings=64, **named
        )
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    return transformers.AutoConfig.for_model(
        model_type, vocab_size=vocab_size, max_position_embeddings=64, layer_norm_eps=1e-5, **sizes, **named
    )


def random_model(model_type: str, auto_class: str = "AutoModelForSequenceClassification"):
    """Every parameter random, so that none can go unread."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_config(tiny_config(model_type))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model.eval()


def save(model, model_type: str, folder: Path, **arguments) -> Path:
    model.save_pretrained(folder, **arguments)
    make_tokenizer(model_type).save(str(folder / "tokenizer.json"))  # not of the architecture's own kind
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]" if model_type in ("bert", "distilbert") else "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def load(folder: Path) -> Router:
    """Models of the labels' names; how they are routed does not matter here."""
    return formats.read(folder, "hf", strong=LABELS[0], weak=LABELS[2])


def fresh(folder: Path) -> dict:
    """Parameters from a checkpoint that is no classifier."""
    module = BERT.make_module(num_outputs=2, attributes={}, featurizer=load_tokens(folder))
    return pretrained_params(module, folder, key=jax.random.key(0))


def padded(padding_id: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    token_ids, mask = np.full((4, 13), padding_id), np.zeros((4, 13), np.int64)
    for row, length in enumerate((1, 4, 9, 13)):
        token_ids[row, :length] = rng.integers(4, 40, length)
        mask[row, :length] = 1
    return {"token_ids": token_ids, "attention_mask": mask}


def torch_inputs(query: dict[str, np.ndarray]) -> dict:
    import torch

    return {"input_ids": torch.tensor(query["token_ids"]), "attention_mask": torch.tensor(query["attention_mask"])}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_hidden_states_and_logits(model_type: str, tmp_path: Path) -> None:
    import torch

    model = random_model(model_type)
    loaded = load(save(model, model_type, tmp_path / "tiny"))
    encoder = loaded.module.encoder
    assert loaded.models == LABELS
    query = padded(encoder.padding_id)
    with torch.no_grad():
        hidden = model.base_model(**torch_inputs(query)).last_hidden_state.numpy()
        logits = model(**torch_inputs(query)).logits.numpy()
    actual = encoder.clone(parent=None).apply({"params": loaded.variables["params"]["encoder"]}, query)
    is_token = query["attention_mask"] > 0
    np.testing.assert_allclose(actual[is_token], hidden[is_token], rtol=0, atol=1e-4)
    np.testing.assert_allclose(loaded.module.apply(loaded.variables, query), logits, rtol=0, atol=1e-4)
    full = {name: np.ones((1, encoder.max_length), np.int64) * 5 for name in query}
    with torch.no_grad():
        logits = model(**torch_inputs(full)).logits.numpy()
    np.testing.assert_allclose(loaded.module.apply(loaded.variables, full), logits, rtol=0, atol=1e-4)


def test_distances_are_in_the_buckets_of_mpnet() -> None:
    import torch
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    position = torch.arange(514)
    expected = MPNetEncoder.relative_position_bucket(position[None, :] - position[:, None]).numpy()
    np.testing.assert_array_equal(relative_buckets(514), expected)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_gradient_of_every_parameter(model_type: str, tmp_path: Path) -> None:
    import torch

    model = random_model(model_type)
    loaded = load(save(model, model_type, tmp_path / "tiny"))
    query = padded(loaded.module.encoder.padding_id)
    label = np.asarray([1.0, 0.0, 0.5, 0.8], np.float32)

    def loss(params: dict) -> jax.Array:
        scores = loaded.module.apply({"params": params}, query)
        return losses.bradley_terry(scores[:, 0] - scores[:, 2], label).mean()

    ours, gradient = jax.value_and_grad(loss)(loaded.variables["params"])
    logits = model(**torch_inputs(query)).logits
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0] - logits[:, 2], torch.tensor(label))
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    published = publish_weights(gradient, bert_names(model_type, head=True))
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert published.keys() == expected.keys()
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for name, leaf in expected.items():
        if name.endswith(("key.bias", "k_lin.bias", "attn.k.bias")):
            # The softmax over the keys does not see it: zero but for rounding.
            assert max(np.abs(leaf).max(), np.abs(published[name]).max()) < 1e-5 * largest, name
        else:
            assert np.abs(leaf).max() > 0, name
            np.testing.assert_allclose(published[name], leaf, rtol=0, atol=1e-3 * np.abs(leaf).max(), err_msg=name)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_folder_read_and_written_again_is_the_same_bits_and_loads_in_torch(model_type: str, tmp_path: Path) -> None:
    import torch
    import transformers

    model = random_model(model_type)
    loaded = load(save(model, model_type, tmp_path / "tiny"))
    assert formats.export(loaded, tmp_path / "out", "hf")["model.safetensors"] == 0.0
    before, after = (safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("tiny", "out"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
        assert after[name].dtype == tensor.dtype
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "tiny" / "tokenizer.json").read_bytes()

    written, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values())
    assert written.config.id2label == dict(enumerate(LABELS))
    assert written.config.label2id == {label: index for index, label in enumerate(LABELS)}
    config, old = written.config.to_dict(), model.config.to_dict()
    differing = {name for name in old if config.get(name) != old[name]}
    assert differing <= {"_name_or_path", "dtype", "problem_type", "transformers_version", "classifier_dropout"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    fast = tokenizers.Tokenizer.from_file(str(tmp_path / "tiny" / "tokenizer.json"))
    fast.no_padding()
    fast.no_truncation()
    inputs = tokenizer([*TEXTS, "poem"], padding=True, return_tensors="pt")
    for row, text in enumerate([*TEXTS, "poem"]):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row] > 0]
        assert ids.tolist() == fast.encode(text).ids
    with torch.no_grad():
        logits = written.eval()(**inputs).logits.numpy()
    query = {"token_ids": inputs["input_ids"].numpy(), "attention_mask": inputs["attention_mask"].numpy()}
    np.testing.assert_allclose(loaded.module.apply(loaded.variables, query), logits, rtol=0, atol=1e-5)


def test_a_trained_scanned_classifier_is_written_too(tmp_path: Path) -> None:
    import torch
    import transformers

    loaded = load(save(random_model("roberta"), "roberta", tmp_path / "tiny"))
    params = jax.tree.map(lambda leaf: leaf + 0.01, loaded.variables["params"])
    encoder = loaded.featurizer.encoder.clone(scan_layers=True, remat=True, parent=None)
    trained = dataclasses.replace(
        loaded,
        variables={"params": {**params, "encoder": models.stack_layers(params["encoder"])}},
        module=loaded.module.clone(encoder=encoder),
        featurizer=dataclasses.replace(loaded.featurizer, encoder=encoder),
    )
    assert formats.export(trained, tmp_path / "out", "hf")["model.safetensors"] < 1e-5
    written = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert list(written.config.id2label.values()) == list(LABELS)
    query = padded(1)
    with torch.no_grad():
        logits = written(**torch_inputs(query)).logits.numpy()
    np.testing.assert_allclose(trained.module.apply(trained.variables, query), logits, rtol=0, atol=1e-5)


def test_the_released_classifier_of_routellm(tmp_path: Path) -> None:
    """Its own win probability: 1 minus the last two of three labels' softmax."""
    import torch
    import transformers

    folder = save(random_model("xlm-roberta"), "xlm-roberta", tmp_path / "tiny")
    router = formats.read(folder, "routellm-bert")
    assert (router.strong, router.weak, router.featurizer.max_length) == (*router.models, 62)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", model_max_length=62
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    prompts = [*TEXTS, "poem " * 100]
    expected = []
    for prompt in prompts:  # one at a time, as RouteLLM does
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt", padding=True, truncation=True)).logits.numpy()[0]
        softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        expected.append(1 - softmax[-2:].sum())
    np.testing.assert_allclose(router.win_prob(prompts), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_pretraining_checkpoint_gives_its_encoder(model_type: str, tmp_path: Path) -> None:
    model = random_model(model_type, "AutoModelForPreTraining" if model_type == "bert" else "AutoModelForMaskedLM")
    folder = save(model, model_type, tmp_path / "tiny")
    params = fresh(folder)
    again = fresh(save(model.base_model, model_type, tmp_path / "bare"))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    published = publish_weights(params, bert_names(model_type, head=True))
    saved = safetensors.numpy.load_file(folder / "model.safetensors")
    shared = published.keys() & saved.keys()
    assert {name for name in published if name not in saved} == {
        name for name in published if "classifier" in name and "bert.pooler" not in name
    }
    for name in shared:
        np.testing.assert_array_equal(published[name], saved[name])


def test_shards_and_sixteen_bits_from_transformers(tmp_path: Path) -> None:
    import torch

    model = random_model("bert")
    one = load(save(model, "bert", tmp_path / "one"))
    many = load(save(model, "bert", tmp_path / "many", max_shard_size="4KB"))
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    jax.tree.map(np.testing.assert_array_equal, many.variables, one.variables)
    half = load(save(model.to(torch.bfloat16), "bert", tmp_path / "half"))
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), one.variables)
    jax.tree.map(np.testing.assert_array_equal, half.variables, rounded)


def test_minilm(tmp_path: Path) -> None:
    import torch
    import transformers

    encoder = load_encoder(MINILM)
    model = transformers.AutoModel.from_pretrained(locate(MINILM)).eval()
    query = encoder.tokenize([*TEXTS, "primes " * 300])
    with torch.no_grad():
        hidden = model(**torch_inputs(query)).last_hidden_state.numpy()
    module, variables, _ = encoder.encoder
    params = variables["params"]["encoder"]
    actual = module.encoder.clone(parent=None).apply({"params": params}, query)
    is_token = query["attention_mask"] > 0
    np.testing.assert_allclose(actual[is_token], hidden[is_token], rtol=0, atol=1e-4)

    # The pre-trained encoder with a new head, as a classifier of transformers with its own tokenizer files.
    folder = locate(MINILM)
    params = fresh(folder)
    featurizer = load_tokens(MINILM, max_length=256)
    router = Router(
        module=BERT.make_module(num_outputs=2, attributes={}, featurizer=featurizer),
        featurizer=featurizer,
        models=("strong", "weak"),
        policy=Threshold("strong", "weak"),
        variables={"params": params},
    )
    assert formats.export(router, tmp_path / "out", "hf")["model.safetensors"] < 1e-5
    for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    written = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompts = [*TEXTS, "primes " * 300]
    inputs = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    np.testing.assert_array_equal(inputs["input_ids"].numpy(), encoder.tokenize(prompts)["token_ids"])
    with torch.no_grad():
        logits = written(**inputs).logits.numpy()
    np.testing.assert_allclose(router.scores(prompts), logits, rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "strong", "1": "weak"}
