"""The guide to more devices names settings, flags and columns that there are."""

import re
import typing
from pathlib import Path

import pytest

from routerjax import cli
from routerjax.config import ExperimentConfig
from routerjax.models.encoders import BERT_CHOICES, DECODER_CHOICES
from routerjax.training.throughput import FIGURES
from routerjax.validation import field_types

GUIDE = (Path(__file__).resolve().parents[1] / "docs" / "scaling.md").read_text()


def test_settings_are_there() -> None:
    sections = typing.get_type_hints(ExperimentConfig)
    named = set(re.findall(r"\b(training|optimizer|features)\.(\w+)", GUIDE))
    assert len(named) > 10
    for section, name in named:
        assert name in field_types(sections[section]), f"{section}.{name}"
    assert set(re.findall(r"encoder_attributes\.(\w+)", GUIDE)) <= {*BERT_CHOICES, *DECODER_CHOICES}


def test_columns_are_there() -> None:
    shortened = {name for name in FIGURES if name.startswith("step_seconds_p") and not name.endswith("50")}
    for name in {*FIGURES, "skipped_steps"} - shortened:
        assert f"`{name}`" in GUIDE, name


def test_flags_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "plan"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        offered = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        written = " ".join(re.findall(rf"routerjax {command} (?:.*\\\n)*.*", GUIDE))
        assert set(re.findall(r"--[a-z-]+", written)) <= offered
    assert {"--distributed", "--resume", "--profile", "--log"} <= set(re.findall(r"--[a-z-]+", GUIDE))
