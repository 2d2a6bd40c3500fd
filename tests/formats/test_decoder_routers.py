"""RouteLLM's causal classifier and P2L's routers: read, scored by their formulas, and written again bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError, Router, formats
from routerjax.cli import main
from routerjax.likelihoods import make_likelihood
from tests.decoders import MODELS, save_causal_classifier, save_p2l
from tests.encoders import TEXTS, change_json, make_tokenizer
from tests.routers import tiny_text_router

TURNS = {"system": "write a poem", "user": "prove {prompt} please"}
PROMPTS = [*TEXTS, "  poem [CLS] prime ", "poem " * 100]


def read_causal(folder: Path, **pair: str) -> Router:
    return formats.read(folder, "routellm-causal", options=TURNS, **pair)


def assert_same_tensors(first: Path, second: Path) -> None:
    before, after = (safetensors.numpy.load_file(folder / "model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)


def test_ratings_are_one_minus_the_two_best(tmp_path: Path) -> None:
    router = read_causal(save_causal_classifier(tmp_path / "theirs"))
    assert router.models == ("gpt-4-1106-preview", "mixtral-8x7b-instruct-v0.1")
    scores = router.scores(PROMPTS)
    prob = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(router.win_prob(PROMPTS), 1 - prob[:, 3] - prob[:, 4], rtol=0, atol=1e-6)
    header = "{}write a poem<|eot_id|>{}prove a please<|eot_id|>"
    begin = (f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user"))
    text = "[CLS]" + header.format(*begin)
    assert router.featurizer.template.render("a") == text
    # The turns hold an "a" of their own, which is not where a prompt goes.
    tokenizer = router.featurizer.tokenizer
    (expected,) = tokenizer.tokenizer.encode_batch([text.replace("prove a", "prove this")], add_special_tokens=False)
    assert tokenizer.token_ids(["this"]) == [expected.ids]
    assert formats.export(router, tmp_path / "ours", "routellm-causal")["model.safetensors"] == 0.0
    assert_same_tensors(tmp_path / "theirs", tmp_path / "ours")
    assert (tmp_path / "theirs" / "tokenizer.json").read_bytes() == (tmp_path / "ours" / "tokenizer.json").read_bytes()
    renamed = read_causal(tmp_path / "ours", strong="x", weak="y")
    assert renamed.likelihood.output_names(renamed.models)[4] == "y rated 5"
    headed = formats.read(tmp_path / "ours", "routellm-causal", options={**TURNS, "assistant_header": "True"})
    assert headed.featurizer.template.suffix.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_only_ratings_as_tokens_are_written_as_routellms(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"needs the turns that the model was trained with.*--set system=TEXT user"):
        formats.read(save_causal_classifier(tmp_path / "theirs"), "routellm-causal")
    with pytest.raises(InputError, match=r"takes system, user, assistant_header, got 'usr'.*did you mean 'user'"):
        formats.read(tmp_path / "theirs", "routellm-causal", options={"usr": "{prompt}"})
    with pytest.raises(InputError, match="the format 'routellm-bert' takes no options, got 'loss'"):
        formats.read(tmp_path / "theirs", "routellm-bert", options={"loss": "bt"})
    router = tiny_text_router(tmp_path, family="causal", attributes={"head": "tokens"})
    with pytest.raises(InputError, match=r"ratings of the weak model .the loss five_ratings"):
        formats.export(router, tmp_path / "out", "routellm-causal")
    with pytest.raises(InputError, match="p2l holds a causal router with head='linear', got head='tokens'"):
        formats.export(router, tmp_path / "out", "p2l")


@pytest.mark.parametrize(("loss", "ours"), [("bt", "bradley_terry"), ("bag", "grounded_rao_kupper")])
def test_p2l_in_and_out(tmp_path: Path, loss: str, ours: str) -> None:
    router = formats.read(save_p2l(tmp_path / "theirs", loss), "p2l", strong="c", weak="a")
    assert router.models == tuple(MODELS)
    assert router.likelihood == make_likelihood(ours)
    assert router.featurizer.max_length == 32
    # The template trims; CLS is the last token, and no prompt spells it.
    (ids,) = router.featurizer.tokenizer.token_ids(["  poem [CLS] prime "])
    tokenizer = make_tokenizer()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    text = "[SEP] user poem <cls> prime [SEP][CLS]"
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert formats.export(router, tmp_path / "ours", "p2l")["model.safetensors"] == 0.0
    assert_same_tensors(tmp_path / "theirs", tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "model_list.json").read_text()) == MODELS


def test_what_a_folder_of_p2l_does_not_say_is_asked_for(tmp_path: Path) -> None:
    folder = save_p2l(tmp_path / "theirs", None)
    with pytest.raises(InputError, match="names no pair: give --strong and --weak"):
        formats.read(folder, "p2l")
    with pytest.raises(InputError, match=r"no training_config.json that says its loss_type: give --set loss=NAME"):
        formats.read(folder, "p2l", strong="a", weak="b")
    with pytest.raises(InputError, match=r"loss_type must be one of bt, .*bag.*got 'rk-reparam'"):
        formats.read(folder, "p2l", strong="a", weak="b", options={"loss": "rk-reparam"})
    command = ["import", str(folder), "--format", "p2l", "--strong", "a", "--weak", "b", "--output"]
    assert main([*command, str(tmp_path / "router"), "--set", "loss=rk"]) == 0
    assert main([*command, str(tmp_path / "again"), "--set", "loss"]) == 2
    change_json(folder / "training_config.json", loss_type="bag")
    with pytest.raises(InputError, match="loss_type is 'bag', but the option loss is 'rk'"):
        formats.read(folder, "p2l", strong="a", weak="b", options={"loss": "rk"})
    with pytest.raises(InputError, match=r"p2l reads a score at the token|must name a cls_token"):
        formats.export(tiny_text_router(tmp_path, family="causal"), tmp_path / "out", "p2l")


def test_a_threshold_that_a_format_has_no_place_for_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    router = read_causal(save_causal_classifier(tmp_path / "base")).with_threshold(0.4)
    with caplog.at_level("WARNING"):
        formats.export(router, tmp_path / "out", "routellm-causal")
    assert "routellm-causal has no place for the threshold 0.4: it is left out" in caplog.text


def test_a_length_of_p2ls_training_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = save_p2l(tmp_path / "theirs", "bt")
    change_json(folder / "training_config.json", max_length=10**6)
    assert formats.read(folder, "p2l", strong="a", weak="b").featurizer.max_length == 64
    for length in ("32", True, 0):
        change_json(folder / "training_config.json", max_length=length)
        with pytest.raises(InputError, match=r"training_config.json: max_length must be an integer in"):
            formats.read(folder, "p2l", strong="a", weak="b")
