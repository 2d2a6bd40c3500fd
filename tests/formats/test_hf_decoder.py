"""Decoders as folders of transformers, and back, without transformers' models."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError, Router, formats
from routerjax.models import describe_encoder, make_encoder, merge_adapters
from routerjax.policies import Threshold
from routerjax.pretrained import ChatTemplate, decoder_json, read_decoder
from tests.decoders import SETTINGS, save_tiny_decoder
from tests.encoders import TEXTS
from tests.routers import tiny_text_router

ADAPTERS = {"lora_rank": 2, "lora_alpha": 3.0, "lora_targets": ["query", "up"]}


def randomised(router: Router) -> Router:
    """The router with adapters that change something, and with nothing that is 0 at the start but a bias."""
    leaves, tree = jax.tree.flatten(router.variables["params"])
    rng = np.random.default_rng(0)
    moved = [leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return dataclasses.replace(router, variables={**router.variables, "params": jax.tree.unflatten(tree, moved)})


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Router:
    folder = tmp_path_factory.mktemp("adapted")
    attributes = {"head": "tokens"}
    return randomised(tiny_text_router(folder, family="causal", attributes=attributes, chosen=ADAPTERS, threshold=0.4))


def test_merged_adapters_score_as_those_beside_the_weights(adapted: Router, tmp_path: Path) -> None:
    config = adapted.module.encoder.config
    variables, plain = merge_adapters(adapted.variables, config)
    assert set(variables) == {"params"}
    assert plain == dataclasses.replace(config, lora_rank=0)
    query = adapted.featurizer.query(TEXTS)
    module = adapted.module.clone(encoder=type(adapted.module.encoder)(plain))
    expected = jax.jit(adapted.module.apply)(adapted.variables, query)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, query), expected, rtol=0, atol=1e-5)
    assert merge_adapters(variables, plain) == (variables, plain)
    fresh = tiny_text_router(tmp_path, family="causal", chosen=ADAPTERS)
    unchanged, _ = merge_adapters(fresh.variables, fresh.module.encoder.config)
    for path in (("layers", "query", "kernel"), ("layers", "up", "kernel"), ("token_embedding",)):
        merged, frozen = unchanged["params"]["encoder"], fresh.variables["memory"]["encoder"]
        for name in path:
            merged, frozen = merged[name], frozen[name]
        np.testing.assert_array_equal(merged, frozen)


@pytest.mark.parametrize("model_type", SETTINGS)
def test_a_configuration_is_written_as_it_was_read(model_type: str, tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    settings = {} if model_type == "gemma3_text" else {"rope_parameters": scaling}
    described = read_decoder(save_tiny_decoder(tmp_path / "base", model_type=model_type, **settings))
    written = decoder_json(describe_encoder(make_encoder(described, "encoder")))
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert read_decoder(tmp_path) == described


def test_label_tokens_are_the_last_rows_of_a_language_model(adapted: Router, tmp_path: Path) -> None:
    assert formats.export(adapted, tmp_path / "out", "hf")["model.safetensors"] < 1e-5
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    vocab_size = adapted.module.encoder.vocab_size
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == vocab_size + 3
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    base = safetensors.numpy.load_file(Path(adapted.featurizer.source) / "model.safetensors")
    np.testing.assert_array_equal(tensors["lm_head.weight"][:-3], base["lm_head.weight"])
    np.testing.assert_array_equal(tensors["lm_head.weight"][-3:], adapted.variables["params"]["label_embedding"])
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"][:-3], base["model.embed_tokens.weight"])
    again = formats.read(tmp_path / "out", "hf")
    assert again.threshold == 0.4
    np.testing.assert_allclose(again.win_prob(TEXTS), adapted.win_prob(TEXTS), rtol=0, atol=1e-5)
    tokenizer = again.featurizer.tokenizer.tokenizer
    assert [tokenizer.token_to_id(f"<|route:{name}|>") for name in adapted.models] == [
        *range(vocab_size, vocab_size + 3)
    ]
    # Read and not trained, it is the same bits again, the rows that no router needs among them.
    assert formats.export(again, tmp_path / "twice", "hf")["model.safetensors"] == 0.0
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_tied_label_tokens_are_rows_of_the_token_table(tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path / "encoder", model_type="gemma3_text", vocab_size=130)  # more rows than tokens
    template = ChatTemplate(prefix="[CLS] prove ", suffix=" please [SEP]", strips=True)
    router = tiny_text_router(tmp_path, family="causal", attributes={"head": "tokens"})
    router = dataclasses.replace(router, featurizer=dataclasses.replace(router.featurizer, template=template))
    formats.export(router, tmp_path / "out", "hf")
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    labels = router.variables["params"]["label_embedding"]
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"][-3:], labels)
    again = formats.read(tmp_path / "out", "hf")
    assert again.featurizer.template == template
    np.testing.assert_array_equal(again.scores(TEXTS), router.scores(TEXTS))


def test_a_linear_head_is_a_classifier_where_it_has_no_bias(tmp_path: Path) -> None:
    router = tiny_text_router(tmp_path, family="causal", loss="three_labels", readout="win", strong="small", weak="big")
    assert formats.export(router, tmp_path / "out", "hf")["model.safetensors"] < 1e-6
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert list(config["id2label"].values()) == ["small wins", "tie", "big wins"]
    tokenizer_config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (config["pad_token_id"], tokenizer_config["pad_token"]) == (0, "[PAD]")
    assert tokenizer_config["padding_side"] == "right"
    again = formats.read(tmp_path / "out", "hf")
    assert not again.module.use_bias
    np.testing.assert_allclose(again.win_prob(TEXTS), router.win_prob(TEXTS), rtol=0, atol=1e-6)
    assert formats.export(again, tmp_path / "twice", "hf")["model.safetensors"] == 0.0
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "twice")]
    assert written[0] == written[1]
    with pytest.raises(InputError, match=r"no bias, and the router's is not 0: export it as p2l or .*use_bias=False"):
        formats.export(randomised(router), tmp_path / "biased", "hf")


def test_what_a_language_model_lacks_is_said(adapted: Router, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="language model whose labels nothing names: import it with --format routell"):
        formats.read(save_base(tmp_path / "base"), "hf")
    moved = dataclasses.replace(adapted.featurizer, source=str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"output layer, which is that of the folder .*came from: no folder .*gone"):
        formats.export(dataclasses.replace(adapted, featurizer=moved), tmp_path / "out", "hf")


def save_base(folder: Path) -> Path:
    return save_tiny_decoder(folder, architectures=["LlamaForCausalLM"])


@pytest.mark.parametrize("loss", ["three_labels", "five_ratings"])
def test_a_pair_the_other_way_round_has_the_same_outcomes_again(loss: str, tmp_path: Path) -> None:
    router = tiny_text_router(tmp_path, family="causal", loss=loss, attributes={"head": "tokens"})
    router = dataclasses.replace(randomised(router), policy=Threshold("small", "big"))
    formats.export(router, tmp_path / "out", "hf")
    again = formats.read(tmp_path / "out", "hf")
    np.testing.assert_allclose(again.outcome_prob(TEXTS), router.outcome_prob(TEXTS), rtol=0, atol=1e-5)


def test_large_weights_are_written_in_shards(adapted: Router, tmp_path: Path) -> None:
    formats.export(adapted, tmp_path / "one", "hf")
    options = {"max_shard_size": "6KB"}
    assert formats.export(adapted, tmp_path / "shards", "hf", options=options)["model.safetensors"] < 1e-5
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    names = {path.name for path in (tmp_path / "shards").glob("*.safetensors")}
    assert names == set(index["weight_map"].values())
    assert len(names) > 2
    whole = safetensors.numpy.load_file(tmp_path / "one" / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    for name in names:
        part = safetensors.numpy.load_file(tmp_path / "shards" / name)
        assert len(part) == 1 or sum(tensor.nbytes for tensor in part.values()) <= 6000
        for tensor, leaf in part.items():
            np.testing.assert_array_equal(leaf, whole.pop(tensor))
    assert not whole
    again = formats.read(tmp_path / "shards", "hf")
    assert again.threshold == 0.4  # of these very weights
    np.testing.assert_array_equal(again.scores(TEXTS), formats.read(tmp_path / "one", "hf").scores(TEXTS))
    for size in ("5", "-1GB", "5 GiB"):
        with pytest.raises(InputError, match="max_shard_size must be such as 500MB or 5GB, got"):
            formats.export(adapted, tmp_path / "out", "hf", options={"max_shard_size": size})
    with pytest.raises(InputError, match="max_shard_size is of export: leave it out"):
        formats.read(tmp_path / "one", "hf", options=options)
