"""Properties of causal routers and of the folders of decoders that they are made of, for any input."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from routerjax import InputError
from routerjax.config import override
from routerjax.display import printable
from routerjax.pipeline import load_config
from routerjax.pipeline.plan_process import plan_here
from tests.encoders import change_json
from tests.fuzz import configs, folders
from tests.fuzz.commands import run
from tests.fuzz.place import PROMPTS, Place, require, train

PAIR = ["--strong", "big", "--weak", "small"]
DECODERS = {
    "hf": PAIR,
    "p2l": ["--strong", "a", "--weak", "b"],
    "peft": [*PAIR, "--set", 'models=["big", "medium", "small"]'],
    "routellm-causal": ["--set", "system=write a poem", "user=prove {prompt} please"],
}
"""Formats of decoders, with the arguments that each needs."""

CAUSAL = (
    *("training.epochs=1", "router.family=causal", "router.attributes={}", "features.max_length=16"),
    "training.batch_tokens=256",
)
TEMPLATES = (
    *("", "{prompt}", "{{ messages }}", "{% for %}", "{{ 1 / 0 }}", "{{ raise_exception('no\nsuch turn') }}"),
    *("{{ messages[9].content }}", "{{ messages[0].content | upper }}", "{{ messages[0].content | nonsense }}"),
    *("{{ messages[0]['content'] }}", "{{ messages[0].content * 2 }}", "[SEP] {{ messages[0].content }}"),
    *("{% include 'x' %}", "{{ ''.__class__.__mro__ }}", "{{ messages[0].content | trim }} [SEP]"),
)
SETTINGS_OF_ADAPTERS = (
    *("r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform", "layer_replication", "lora_bias"),
    *("modules_to_save", "alora_invocation_tokens", "use_qalora", "use_dora", "rank_pattern", "exclude_modules"),
)

templates = st.one_of(st.sampled_from(TEMPLATES), st.text(max_size=10), folders.json_values)


def a_strangers_decoder_format(place: Place, data: st.DataObject, folder: Path) -> None:
    """A folder of a decoder's format that was changed: a router that answers probabilities, or a refusal."""
    kind = data.draw(st.sampled_from(sorted(DECODERS)), label="format")
    source = folders.changed_copy(data, place.root / "decoders" / kind, folder / "source")
    if kind == "peft" and data.draw(st.booleans(), label="another setting"):
        setting = data.draw(st.sampled_from(SETTINGS_OF_ADAPTERS), label="setting")
        _change_setting(source / "adapter_config.json", setting, data.draw(folders.json_values, label="its value"))
    if kind == "p2l" and data.draw(st.booleans(), label="another chat template"):
        _change_setting(source / "tokenizer_config.json", "chat_template", data.draw(templates, label="template"))
    output = folder / "out"
    outcome = run(["import", source, "--format", kind, *DECODERS[kind], "--output", output])
    require(not folders.leaks(output), "a file from outside of the folder was copied")
    if outcome.status != 0:
        require(not output.exists(), "a refused command left its output")
        return
    run(["score", output, "--input", "-"], stdin="\n".join(PROMPTS).encode())


def train_a_decoder(place: Place, data: st.DataObject, folder: Path) -> None:
    """A decoder's folder that was changed, or any setting of one: a router that loads, or a refusal."""
    train(place, folder, ["--set", *CAUSAL, *_settings(place, data, folder)])


def plan_a_decoder(place: Place, data: st.DataObject, folder: Path) -> None:
    """A decoder's folder that was changed, or any setting of one: a plan, or a refusal in one line."""
    config = load_config(place.root / "arena" / "config.py")
    try:
        settings = [*CAUSAL, *_settings(place, data, folder)]
        plan_here(override(config, settings), 10**9, lambda message: None)
    except InputError as error:
        require(printable(str(error)) == str(error) and len(str(error)) < 2000, f"not one short line: {error!r}")


def _settings(place: Place, data: st.DataObject, folder: Path) -> list[str]:
    encoder = place.root / "encoder"
    if data.draw(st.booleans(), label="another folder"):
        encoder = folders.changed_copy(data, encoder, folder / "encoder")
        if data.draw(st.booleans(), label="another chat template"):
            template = data.draw(templates, label="template")
            _change_setting(encoder / "tokenizer_config.json", "chat_template", template)
            return [f"features.encoder={encoder}", "features.template=chat"]
        return [f"features.encoder={encoder}"]
    chosen = data.draw(st.lists(configs.decoder_settings, min_size=1, max_size=2), label="settings")
    return [f"features.encoder={encoder}", *chosen]


def _change_setting(path: Path, name: str, value: object) -> None:
    if path.is_file() and isinstance(folders.json_content(path), dict):  # it may be damaged already
        change_json(path, **{name: json.loads(json.dumps(value))})
