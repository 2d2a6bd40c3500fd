"""Causal language models as routers: templates, padding, adapters, layers, and a run from the command line."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from routerjax import InputError, features, formats, load_router, save_router
from routerjax.cli import main
from routerjax.config import FeatureConfig
from routerjax.families import CAUSAL, pretrained_variables
from routerjax.features import load_tokens, open_featurizer
from routerjax.formats.golden import golden_query
from routerjax.pretrained import ChatTemplate, read_encoder
from tests.decoders import save_causal_classifier, save_tiny_decoder
from tests.encoders import TEXTS, change_json
from tests.routers import tiny_text_router

CHAT = "{% for turn in messages %}[CLS]{{ turn['role'] }} {{ turn['content'] | trim }} [SEP]{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_decoder(tmp_path_factory.mktemp("causal") / "decoder", shards=2)
    (folder / "chat_template.jinja").write_text(CHAT)
    return folder


def test_a_template_is_never_cut_and_the_tokenizer_adds_nothing_to_it(folder: Path) -> None:
    template = "[CLS] what is {prompt} [SEP]"
    config = FeatureConfig(encoder=str(folder), max_length=10, template=template, truncation="left")
    tokenizer = open_featurizer(config, embeds=False).tokenizer
    whole = tokenizer.tokenizer.encode
    for text in ("a poem", "a poem " * 30):
        ids = whole(template.replace("{prompt}", text), add_special_tokens=False).ids
        expected = ids if len(ids) <= 10 else [*ids[:3], *ids[-7:]]
        assert tokenizer.token_ids([text]) == [expected]


def test_the_chat_template_of_the_tokenizer(folder: Path) -> None:
    config = FeatureConfig(encoder=str(folder), max_length=32, template="chat", instruction="write")
    tokenizer = open_featurizer(config, embeds=False).tokenizer
    rendered = "[CLS]system write [SEP][CLS]user a poem [SEP]"
    assert tokenizer.token_ids(["  a poem\n"]) == [tokenizer.tokenizer.encode(rendered, add_special_tokens=False).ids]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "no place"}, "a template must have {prompt} in one place, got 'no place'"),
        (
            {"instruction": "judge"},
            "features.instruction is a turn of a chat template: set features.template=chat",
        ),
        ({"template": "{prompt} " + "what " * 40}, "max_length must be at least the 40 tokens of the template"),
        ({"template": "what{prompt}"}, "the tokenizer joins the prompt with the template around it.*got 'what'"),
        ({"pooling": "mean"}, "features.pooling='mean' is of embeddings, and this family has a head of its own"),
        ({"layer": 4}, "features.layer must be at most the encoder's 3 layers, got 4"),
        ({"encoder_attributes": {"scan_layers": True}}, "of llama takes attention, .*got 'scan_layers'"),
        (
            {"encoder_attributes": {"lora_targets": ("query", "keys")}},
            "lora_targets must be among query, key, .*got 'keys'",
        ),
        ({"encoder_attributes": {"lora_rank": 2, "lora_targets": ()}}, "lora_targets must be one or more different"),
        ({"encoder_attributes": {"lora_rank": 10**9}}, r"lora_rank must be at most the width \(16\), got 1000000000"),
        ({"encoder_attributes": {"lora_alpha": 8.0}}, "lora_alpha changes nothing without lora_rank: set features.enc"),
        ({"encoder_attributes": {"remat_policy": "dots"}}, "remat_policy changes nothing without remat: set features"),
    ],
)
def test_choices_that_are_refused(folder: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_featurizer(FeatureConfig(**{"encoder": str(folder), "max_length": 32, **changes}), embeds=False)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("router.attributes={'head': 'tokens', 'use_bias': False}", "causal.use_bias is of a linear head"),
        ("training.model_devices=1000003", "training.model_devices must divide the "),
        ("features.dollars_per_million_tokens=2", "dollars_per_million_tokens is an endpoint's price"),
    ],
)
def test_settings_that_are_refused_before_anything_is_written(
    folder: Path, arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    settings = ["router.family=causal", "router.attributes={}", f"features.encoder={folder}", "training.devices=mesh"]
    arguments = ["train", str(arena / "config.py"), "--output", str(tmp_path / "run"), "--set", *settings, setting]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("head", ["tokens", "linear"])
def test_padding_on_either_side_gives_the_same_scores(folder: Path, head: str) -> None:
    featurizer = load_tokens(folder)
    module = CAUSAL.make_module(num_outputs=3, attributes={"head": head}, featurizer=featurizer)
    variables = jax.tree.map(np.asarray, pretrained_variables(module, folder, jax.random.key(0)))
    right = featurizer.query(TEXTS)
    left = {
        name: np.stack([np.roll(row, -int(n)) for row, n in zip(leaf, right["attention_mask"].sum(1), strict=True)])
        for name, leaf in right.items()
    }
    score = jax.jit(module.apply)
    np.testing.assert_allclose(score(variables, left), score(variables, right), rtol=0, atol=1e-5)


def test_adapters_that_are_not_trained_yet_change_nothing_and_the_base_is_no_parameter(tmp_path: Path) -> None:
    plain = tiny_text_router(tmp_path, family="causal")
    adapted = tiny_text_router(tmp_path, family="causal", chosen={"lora_rank": 2, "lora_targets": ("query", "down")})
    np.testing.assert_allclose(adapted.scores(TEXTS), plain.scores(TEXTS), rtol=0, atol=1e-6)
    layers = adapted.variables["params"]["encoder"]["layers"]
    both = {"lora_a", "lora_b"}
    assert {name: set(leaves) for name, leaves in layers.items()} == {"query": both, "down": both}
    assert "kernel" in adapted.variables["memory"]["encoder"]["layers"]["gate"]


def test_a_lower_layer_is_the_hidden_state_that_transformers_calls_by_its_number(folder: Path) -> None:
    deep, low = (features.load_encoder(folder, max_length=32, layer=layer, pooling="lasttoken") for layer in (3, 2))
    assert deep.fingerprint == features.load_encoder(folder, max_length=32, pooling="lasttoken").fingerprint
    assert low.fingerprint != deep.fingerprint
    assert low.encoder.variables["params"]["encoder"]["layers"]["query"]["kernel"].shape[0] == 2
    assert low.encode(TEXTS).shape == (3, 16)


def test_a_run_from_the_command_line(
    folder: Path, arena: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"lora_rank": 2, "remat": True, "dtype": "bfloat16"}
    settings = [
        *(
            "router.family=causal",
            "router.attributes={'head': 'tokens'}",
            "router.loss=grounded_rao_kupper",
        ),
        *(f"features.encoder={folder}", "features.max_length=16", "training.epochs=2", "training.batch_tokens=256"),
        *(f"features.encoder_attributes.{name}={value}" for name, value in chosen.items()),
        'features.encoder_attributes.lora_targets=["query", "value"]',
        "features.template=chat",
    ]
    train = ["train", str(arena / "config.py"), "--set", *settings, "--output", str(tmp_path / "run")]
    assert main(train) == 0
    router = load_router(tmp_path / "run" / "router")
    assert np.ptp(router.win_prob(TEXTS)) > 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"router", "run.json", "training"}  # no control
    trained = router.variables["params"]["encoder"]["layers"]["query"]["lora_b"]
    assert np.abs(trained).max() > 0
    assert json.loads((tmp_path / "run" / "router" / "router.json").read_text())["family"] == "causal"
    formats.export(router, tmp_path / "bundle", "stablehlo")
    # A template that writes the date is rendered otherwise when the run is resumed; its prompts stand where they stood.
    shutil.rmtree(tmp_path / "run" / "router")
    tomorrow = ChatTemplate(prefix="prime ", suffix="")
    monkeypatch.setattr("routerjax.features.open.read_chat_template", lambda *_, **__: tomorrow)
    assert main([*train, "--resume"]) == 0
    resumed = load_router(tmp_path / "run" / "router")
    assert resumed.featurizer.to_dict() == router.featurizer.to_dict()
    np.testing.assert_array_equal(resumed.win_prob(TEXTS), router.win_prob(TEXTS))


def test_ties_may_have_a_score_of_each_prompt(folder: Path, arena: Path, tmp_path: Path) -> None:
    settings = [
        *("router.family=causal", "router.attributes={'head': 'tokens'}", "router.loss=three_outcome"),
        *(f"features.encoder={folder}", "features.max_length=16", "training.epochs=1", "training.batch_tokens=256"),
    ]
    command = ["train", str(arena / "config.py"), "--output", str(tmp_path / "run"), "--set", *settings]
    assert main(command) == 0
    router = load_router(tmp_path / "run" / "router")
    assert router.variables["params"]["label_embedding"].shape == (len(router.models) + 1, 16)
    prob = router.outcome_prob(TEXTS)
    assert prob.shape == (3, 3)
    np.testing.assert_allclose(prob.sum(axis=1), 1, rtol=0, atol=1e-6)
    assert np.ptp(prob[:, 1]) > 0
    formats.export(router, tmp_path / "hf", "hf")
    np.testing.assert_allclose(formats.read(tmp_path / "hf", "hf").outcome_prob(TEXTS), prob, rtol=0, atol=1e-6)
    refused = {
        "p2l": "p2l holds the losses bradley_terry, .*, got three_outcome",
        "peft": "for no other loss than bradley_terry, got three_outcome",
        "routellm-causal": "the loss five_ratings, .*got the loss three_outcome",
    }
    for name, message in refused.items():
        with pytest.raises(InputError, match=message):
            formats.export(router, tmp_path / "out", name)


@pytest.mark.parametrize("chosen", [{}, {"lora_rank": 2}])
def test_a_router_in_bfloat16_is_stored_and_scored_in_it(tmp_path: Path, chosen: dict) -> None:
    router = tiny_text_router(tmp_path, family="causal", chosen={"param_dtype": "bfloat16", **chosen})
    save_router(router, tmp_path / "saved")
    loaded = load_router(tmp_path / "saved")
    weights = loaded.variables["memory" if chosen else "params"]["encoder"]["layers"]["up"]["kernel"]
    assert (str(weights.dtype), str(loaded.featurizer.encoder.config.dtype)) == ("bfloat16", "bfloat16")
    np.testing.assert_array_equal(loaded.win_prob(TEXTS), router.win_prob(TEXTS))
    wide = tiny_text_router(tmp_path, family="causal", chosen=chosen)
    np.testing.assert_allclose(loaded.win_prob(TEXTS), wide.win_prob(TEXTS), rtol=0, atol=0.05)
    formats.export(loaded, tmp_path / "bundle", "stablehlo")


def test_layers_of_a_kind_that_is_not_computed_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_decoder(tmp_path / "decoder", model_type="qwen3")
    config = json.loads((folder / "config.json").read_text())
    kinds = ["full_attention", "chunked_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps({**config, "layer_types": kinds}))
    with pytest.raises(InputError, match="layer_types must be of sliding_attention, full_attention, got 'chunked_att"):
        read_encoder(folder)


@pytest.mark.parametrize("layers", [1025, 10**9, 1e30, 10**400])
def test_a_number_of_layers_that_would_fill_the_memory_is_refused(tmp_path: Path, layers: float) -> None:
    folder = save_tiny_decoder(tmp_path / "decoder")
    change_json(folder / "config.json", num_hidden_layers=layers)
    with pytest.raises(InputError, match="num_hidden_layers must be at most 1024, got 1"):
        read_encoder(folder)


def test_layers_that_the_configuration_does_not_count_are_refused_unless_a_lower_one_is_chosen(tmp_path: Path) -> None:
    folder = save_causal_classifier(tmp_path / "decoder")
    assert features.load_encoder(folder, max_length=8, layer=1, pooling="lasttoken").encode(["a"]).shape == (1, 16)
    change_json(folder / "config.json", num_hidden_layers=2)
    featurizer = load_tokens(folder)
    module = CAUSAL.make_module(num_outputs=2, attributes={}, featurizer=featurizer)
    turns = {"system": "write a poem", "user": "prove {prompt} please"}
    for read in (
        lambda: features.load_encoder(folder, max_length=8, pooling="lasttoken").encode(["a"]),
        lambda: features.load_encoder(folder, max_length=8, layer=1, pooling="lasttoken").encode(["a"]),
        lambda: pretrained_variables(module, folder, jax.random.key(0)),
        lambda: formats.read(folder, "routellm-causal", options=turns),
    ):
        with pytest.raises(InputError, match=r"does not hold the expected tensors .*\+ model.layers.2.input_layernorm"):
            read()


def test_long_prompts_are_padded_to_the_next_of_a_few_lengths(tmp_path: Path) -> None:
    folder = save_tiny_decoder(tmp_path / "decoder", max_position_embeddings=4096)
    tokenizer = load_tokens(folder, max_length=2000).tokenizer
    (batch,) = tokenizer.batches(tokenizer.token_ids(["poem " * 600]))
    assert batch[1]["token_ids"].shape == (1, 768)
    assert tokenizer.lengths[-4:] == (768, 1024, 1536, 2000)


@pytest.mark.parametrize("length", [900, 4097])
def test_an_export_is_compared_on_a_prompt_that_is_cut(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny_decoder(tmp_path / "encoder", max_position_embeddings=8192)
    router = tiny_text_router(tmp_path, family="causal")
    router = dataclasses.replace(router, featurizer=load_tokens(folder, max_length=length))
    with caplog.at_level("INFO"):
        prompts = golden_query(router)
    is_cut = router.featurizer.tokenizer.read(prompts).is_cut
    assert is_cut.tolist() == [False] * (len(prompts) - 1) + [length == 900]
    assert ("no prompt of the comparison is cut" in caplog.text) == (length > 900)
