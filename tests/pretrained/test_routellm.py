"""RouteLLM's names, tensors and configuration files."""

import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from routerjax import InputError
from routerjax.pretrained import routellm
from tests.routellm import random_tensors, write_checkpoint


def test_the_models_are_in_ascii_order() -> None:
    assert len(set(routellm.MODELS)) == 64
    assert list(routellm.MODELS) == sorted(routellm.MODELS)
    assert routellm.MODELS.index("gpt-4-1106-preview") == 24
    assert routellm.MODELS.index("mixtral-8x7b-instruct-v0.1") == 36


@pytest.mark.parametrize("naming", ["released", "training"])
def test_every_tensor_has_its_place_bit_for_bit(
    tmp_path: Path, naming: routellm.Naming, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = random_tensors(naming)
    path = write_checkpoint(tmp_path, tensors)
    with caplog.at_level(logging.INFO):
        params = routellm.read_factorization(path)
    models, projection, classifier = (tensors[name] for name in routellm.NAMINGS[naming].values())
    np.testing.assert_array_equal(params["model_embedding"], models)
    np.testing.assert_array_equal(params["prompt_projection"]["kernel"], projection.T)
    np.testing.assert_array_equal(params["classifier"], classifier[0])
    warned = [message for message in caplog.messages if "left out Q.weight, the embeddings of 3 training" in message]
    assert len(warned) == (naming == "training")


def test_other_widths_are_read_off_the_file(tmp_path: Path) -> None:
    params = routellm.read_factorization(write_checkpoint(tmp_path, random_tensors("released", model_dim=4, embed=6)))
    assert params["prompt_projection"]["kernel"].shape == (6, 4)


def test_everything_that_is_wrong_is_listed_at_once(tmp_path: Path) -> None:
    tensors = random_tensors("released", model_dim=4, embed=6)
    del tensors["text_proj.0.weight"]
    tensors |= {"P.weight": np.zeros((63, 4), np.float32), "text_proj.weight": np.zeros((4, 6), np.float32)}
    with pytest.raises(InputError) as caught:
        routellm.read_factorization(write_checkpoint(tmp_path, tensors))
    for line in ("- prompt_projection/kernel", "+ text_proj.weight", "! P.weight: expected shape (64, 4), got (63, 4)"):
        assert line in str(caught.value)
    with pytest.raises(InputError, match=r"- model_embedding; - prompt_projection/kernel; - classifier"):
        routellm.read_factorization(write_checkpoint(tmp_path, {"Q.weight": np.zeros((1, 6), np.float32)}))
    path = tmp_path / "cut.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors)[:900])
    with pytest.raises(InputError, match=r"cut\.safetensors is not a complete safetensors file"):
        routellm.read_factorization(path)


def test_where_a_checkpoint_may_be(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, random_tensors("released", model_dim=4, embed=6))
    assert routellm.find_checkpoint(path) == routellm.find_checkpoint(tmp_path) == path
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty holds no model\.safetensors"):
        routellm.find_checkpoint(tmp_path / "empty")
    with pytest.raises(InputError, match=r"no file .*none\.safetensors"):
        routellm.find_checkpoint(tmp_path / "none.safetensors")


EXAMPLE = """
sw_ranking:
    arena_battle_datasets: [lmsys/lmsys-arena-human-preference-55k]
bert:
    checkpoint_path: routellm/bert_gpt4_augmented
mf:
    checkpoint_path: routellm/mf_gpt4_augmented
    strong_model: gpt-4-0613
"""


def test_a_configuration_and_what_in_it_is_not_imported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.yaml").write_text(EXAMPLE)
    with caplog.at_level(logging.INFO):
        config = routellm.read_config(tmp_path / "config.yaml", "mf", routellm.MatrixFactorizationConfig)
    assert config == routellm.MatrixFactorizationConfig(
        checkpoint_path="routellm/mf_gpt4_augmented", strong_model="gpt-4-0613"
    )
    assert "only mf is imported, not sw_ranking, bert" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mf: [", r"config\.yaml is not YAML"),
        ("- mf", "must be a mapping from router to its settings, got list"),
        ("", "must be a mapping from router to its settings, got NoneType"),
        ("fm: {}", r"no router 'fm' \(did you mean 'mf'\?\); known are mf, sw_ranking, causal_llm, bert, random"),
        ("bert: {checkpoint_path: a/b}", "has no section mf; it has bert"),
        ("mf: a/b", "mf must be a MatrixFactorizationConfig, got 'a/b'"),
        ("mf: {checkpoint_path: a/b, hidden: 3}", r"no setting '.*mf\.hidden': .*\(did you mean 'hidden_size'\?\)"),
        ("mf: {hidden_size: 128}", r"mf\.checkpoint_path must be given"),
        ("mf: {checkpoint_path: a/b, hidden_size: big}", r"mf\.hidden_size must be an integer, got 'big'"),
        ("mf: {checkpoint_path: 3}", r"mf\.checkpoint_path must be text, got 3"),
    ],
)
def test_configurations_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        routellm.read_config(tmp_path / "config.yaml", "mf", routellm.MatrixFactorizationConfig)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*none\.yaml"):
        routellm.read_config(tmp_path / "none.yaml", "mf", routellm.MatrixFactorizationConfig)
