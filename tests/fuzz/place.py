"""Good inputs, which properties change, and what is required of any outcome."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from routerjax import formats, load_router, save_router
from routerjax.cli import main
from tests.arena import save_arena
from tests.decoders import CHAT_TEMPLATE, save_causal_classifier, save_p2l
from tests.encoders import change_json, save_tiny_classifier
from tests.fuzz.commands import Broken, run, strict_json
from tests.routers import tiny_text_router

STRONG, WEAK = "sim-large", "sim-small"
PAIR = ["--strong", STRONG, "--weak", WEAK]
PROMPTS = ("What is 2 + 2?", "Prove that pi is irrational.", "hello, world")


@dataclass(frozen=True)
class Place:
    """A folder with good inputs.

    Attributes:
        root: holds ``arena/`` (battles, benchmark, encoder, config.py), ``router/``, ``text_router/``, ``classifier/``,
            ``bundle/`` (of ``router``), ``decoder_router/``, its base ``encoder/``, and ``decoders/``: a folder of each
            format in :data:`DECODERS`.
        win_prob: of ``PROMPTS``, by the name of each of the three routers.
    """

    root: Path
    win_prob: Mapping[str, np.ndarray]


def make_place(root: Path) -> Place:
    """Write the good inputs into an empty folder, and score with them."""
    arena = root / "arena"
    arena.mkdir()
    save_arena(arena)
    save_tiny_classifier(root / "classifier", (STRONG, WEAK))
    battles, share = arena / "battles.parquet", "0.3"
    commands = [
        ["train", arena / "config.py", "--output", root / "run"],
        ["calibrate", root / "run", "--prompts", battles, "--strong-share", share, "--output", root / "router"],
        ["import", root / "classifier", "--format", "hf", *PAIR, "--output", root / "text_router"],
        ["export", root / "router", "--format", "stablehlo", "--output", root / "bundle"],
    ]
    for command in commands:
        assert main([str(argument) for argument in command]) == 0
    _save_decoders(root)
    names = ("router", "text_router", "decoder_router")
    return Place(root, {name: load_router(root / name).win_prob(PROMPTS) for name in names})


def _save_decoders(root: Path) -> None:
    """Write a router on a decoder, and a folder of each format of decoders."""
    folder = root / "decoders"
    save_causal_classifier(folder / "routellm-causal")
    save_p2l(folder / "p2l", "rk")
    attributes, chosen = {"head": "linear", "use_bias": False}, {"lora_rank": 2, "lora_targets": ("query", "up")}
    router = tiny_text_router(root, family="causal", attributes=attributes, chosen=chosen)
    change_json(root / "encoder" / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    for name in ("peft", "hf"):
        formats.export(router, folder / name, name)
    save_router(router, root / "decoder_router")


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def require_same_answers(out: str, win_prob: np.ndarray) -> None:
    scored = np.asarray([strict_json(line)["win_prob"] for line in out.splitlines()])
    difference = np.abs(scored - win_prob).max()
    require(bool(difference < 1e-6), f"another router's answers, and no word: {difference}")


def train(place: Place, folder: Path, arguments: list[object], config: Path | None = None) -> None:
    output = folder / "run"
    config = config or place.root / "arena" / "config.py"
    outcome = run(["train", config, "--output", output, *arguments])
    if outcome.status == 0:
        load_router(output / "router")
    shutil.rmtree(output, ignore_errors=True)
