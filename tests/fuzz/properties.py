"""Properties of each command for any input. A property takes a place with good inputs, draws, and a new folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from hypothesis import strategies as st

from routerjax import load_router
from tests.fuzz import configs, folders, tables
from tests.fuzz.commands import run, run_bundle, strict_json
from tests.fuzz.decoders import a_strangers_decoder_format, plan_a_decoder, train_a_decoder
from tests.fuzz.place import PAIR, PROMPTS, STRONG, WEAK, Place, require, require_same_answers, train


def score_a_table(place: Place, data: st.DataObject, folder: Path) -> None:
    """Whatever table is scored: every row comes out with a probability, and the other columns as they came in."""
    rows = [{"prompt": prompt, "id": f"{index:03}"} for index, prompt in enumerate(PROMPTS)]
    path = tables.write(data, rows, folder, "prompts")
    output = folder / f"out.{data.draw(st.sampled_from(['csv', 'jsonl', 'parquet']))}"
    outcome = run(["score", place.root / "router", "--input", path, "--output", output])
    if outcome.status != 0:
        require(not output.exists(), "a refused command left its output")
        return
    require(output.is_file(), "exit 0 without output")
    if output.suffix == ".jsonl":
        scored = [strict_json(line) for line in output.read_text(encoding="utf-8").splitlines()]
        require(all(0 <= row["win_prob"] <= 1 for row in scored), f"win_prob outside [0, 1]: {scored}")
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8-sig", errors="surrogatepass").split("\n")
            given = [json.loads(line) for line in lines if line.strip()]
            require(len(given) == len(scored), f"{len(given)} rows in, {len(scored)} out")
    elif output.suffix == ".csv" and path.suffix == ".csv":
        given, scored = (
            list(csv.reader(io.StringIO(file.read_text("utf-8-sig"), newline=""))) for file in (path, output)
        )
        given = [row for row in given if row]
        columns = len(given[0])
        require([row[:columns] for row in scored] == given, f"columns changed: {given} came out as {scored}")


def score_standard_input(place: Place, data: st.DataObject, folder: Path) -> None:
    """Any bytes on standard input: as many lines of strict JSON as prompts, or a refusal."""
    lines = st.one_of(tables.texts, st.sampled_from(['{"prompt": "hi"}', '{"prompt": 1}', "[" * 100_000]))
    text = "\n".join(data.draw(st.lists(lines, max_size=5), label="lines"))
    stdin = tables.damaged(data, text.encode("utf-8", "surrogatepass"))
    formats = data.draw(st.sampled_from([[], ["--input-format", "jsonl"], ["--input-format", "text"]]))
    outcome = run(["score", place.root / "router", "--input", "-", *formats], stdin=stdin)
    if outcome.status == 0:
        rows = [strict_json(line) for line in outcome.out.splitlines()]
        require(bool(rows), "exit 0 without output")
        require(all(0 <= row["win_prob"] <= 1 for row in rows), f"win_prob outside [0, 1]: {rows}")


def calibrate(place: Place, data: st.DataObject, folder: Path) -> None:
    """Any table of prompts, or of battles: a router that loads and answers probabilities, or a refusal."""
    output = folder / "calibrated"
    if data.draw(st.booleans(), label="by battles"):
        path = tables.write(data, _battles(data), folder, "battles")
        method = data.draw(st.sampled_from(["temperature", "platt", "isotonic"]))
        arguments = ["--battles", path, "--method", method]
    else:
        path = tables.write(data, [{"prompt": prompt} for prompt in PROMPTS], folder, "prompts")
        share = data.draw(st.sampled_from(["0", "1", "0.5", "-1", "nan", "inf", "1e-300", "x", ""]))
        arguments = ["--prompts", path, "--strong-share", share]
    outcome = run(["calibrate", place.root / "router", *arguments, "--output", output])
    if outcome.status == 0:
        win_prob = load_router(output).win_prob(PROMPTS)
        require(bool(((win_prob >= 0) & (win_prob <= 1)).all()), f"win_prob outside [0, 1]: {win_prob}")
    else:
        require(not output.exists(), "a refused command left its output")


def evaluate(place: Place, data: st.DataObject, folder: Path) -> None:
    """Any benchmark table and any outside scores: results in strict JSON, or a refusal."""
    rows = [
        {
            "prompt_id": str(index),
            "prompt": f"{PROMPTS[index % 3]} {index}",
            "model": model,
            "score": float(index % 3 == shift),
        }
        for index in range(6)
        for shift, model in enumerate((STRONG, WEAK))
    ]
    benchmark = tables.write(data, rows, folder, "benchmark")
    scores = [{"prompt": row["prompt"], "win_prob": 0.1 * index} for index, row in enumerate(rows[::2])]
    arguments: list[object] = ["--benchmark", benchmark, *PAIR, "--samples", "20"]
    if data.draw(st.booleans(), label="outside scores"):
        arguments += ["--scores", tables.write(data, scores, folder, "scores")]
    else:
        arguments = [place.root / "router", *arguments]
    output = folder / "evaluated"
    outcome = run(["evaluate", *arguments, "--output", output])
    if outcome.status == 0:
        strict_json((output / "results.json").read_text(encoding="utf-8"))
    else:
        require(not output.exists(), "a refused command left its output")


def train_on_a_table(place: Place, data: st.DataObject, folder: Path) -> None:
    """Any table of battles: a router that loads, or a refusal."""
    path = tables.write(data, _battles(data), folder, "battles")
    settings = [f"data.root={folder}", f"data.battles.0.path={path.name}", "training.epochs=1"]
    family = data.draw(st.sampled_from(["mf", "sw", "knn"]), label="family")
    settings += [f"router.family={family}", "router.attributes={}"]
    train(place, folder, ["--set", *settings])


def train_with_settings(place: Place, data: st.DataObject, folder: Path) -> None:
    """Any ``--set``: a router that loads, or a refusal."""
    settings = data.draw(st.lists(configs.settings, min_size=1, max_size=2), label="settings")
    train(place, folder, ["--set", "training.epochs=1", *settings])


def train_with_attributes(place: Place, data: st.DataObject, folder: Path) -> None:
    """Any attribute of any family: a router that loads, or a refusal."""
    family = data.draw(st.sampled_from(["mf", "sw", "knn"]), label="family")
    settings = ["training.epochs=1", f"router.family={family}", "router.attributes={}"]
    train(place, folder, ["--set", *settings, data.draw(configs.attributes, label="attribute")])


def train_with_a_configuration(place: Place, data: st.DataObject, folder: Path) -> None:
    """Any value in a configuration file: a router that loads, or a refusal."""
    text = (place.root / "arena" / "config.py").read_text()
    path = folder / "config.py"
    path.write_text(configs.changed(data, text), encoding="utf-8", errors="surrogatepass")
    train(place, folder, [], config=path)


def a_strangers_router(place: Place, data: st.DataObject, folder: Path) -> None:
    """A router folder that was changed: it answers as it did, or it is refused; it reads no file but its own."""
    name = data.draw(st.sampled_from(sorted(place.win_prob)), label="router")
    router = folders.changed_copy(data, place.root / name, folder / "router")
    stdin = "\n".join(PROMPTS).encode()
    if data.draw(st.booleans(), label="calibrate it"):
        arguments = ["--prompts", "-", "--strong-share", "0.5", "--output", folder / "out"]
        run(["calibrate", router, *arguments], stdin=stdin)
        require(not folders.leaks(folder / "out"), "a file from outside of the router's folder was copied")
        return
    outcome = run(["score", router, "--input", "-"], stdin=stdin)
    if outcome.status == 0:
        require_same_answers(outcome.out, place.win_prob[name])


def a_strangers_classifier(place: Place, data: st.DataObject, folder: Path) -> None:
    """A Hugging Face folder that was changed: a router that answers probabilities, or a refusal."""
    source = folders.changed_copy(data, place.root / "classifier", folder / "classifier")
    output = folder / "out"
    outcome = run(
        ["import", source, "--format", data.draw(st.sampled_from(["hf", "routellm-bert"])), *PAIR, "--output", output]
    )
    require(not folders.leaks(output), "a file from outside of the folder was copied")
    if outcome.status == 0:
        run(["score", output, "--input", "-"], stdin="\n".join(PROMPTS).encode())


def a_strangers_encoder(place: Place, data: st.DataObject, folder: Path) -> None:
    """A sentence encoder's folder that was changed: a router is trained on it, or it is refused."""
    encoder = folders.changed_copy(data, place.root / "arena" / "encoder", folder / "encoder")
    train(place, folder, ["--set", "training.epochs=1", f"features.encoder={encoder}", "features.max_length=16"])


def a_strangers_bundle(place: Place, data: st.DataObject, folder: Path) -> None:
    """A bundle that was changed, but for its program: it answers as the router does, or it is refused."""
    bundle = folders.changed_copy(data, place.root / "bundle", folder / "bundle", keep="routerjax_runtime.py")
    outcome = run_bundle(bundle, PROMPTS)
    if outcome.status == 0:
        require_same_answers(outcome.out, place.win_prob["router"])


PROPERTIES: Mapping[str, Callable[[Place, st.DataObject, Path], None]] = {
    function.__name__: function
    for function in (
        score_a_table,
        score_standard_input,
        calibrate,
        evaluate,
        train_on_a_table,
        train_with_settings,
        train_with_attributes,
        train_with_a_configuration,
        a_strangers_router,
        a_strangers_classifier,
        a_strangers_encoder,
        a_strangers_bundle,
        a_strangers_decoder_format,
        train_a_decoder,
        plan_a_decoder,
    )
}


def _battles(data: st.DataObject) -> list[tables.Row]:
    # Few numbers of rows: another one is another compilation.
    winners = ("model_a", "model_b", "tie")
    return [
        {"prompt": f"{PROMPTS[row % 3]} {row}", "model_a": STRONG, "model_b": WEAK, "winner": winners[row % 3]}
        for row in range(12)
    ]
