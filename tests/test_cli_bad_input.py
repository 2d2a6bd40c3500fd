"""Unusable input is refused in one line with exit status 2, and nothing is written or lost."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from routerjax.cli import main

PAIR = ["--strong", "sim-large", "--weak", "sim-small"]
ROW = {"prompt": "what is it?", "model_a": "sim-large", "model_b": "sim-small", "winner": "model_a"}
Refused = Callable[..., None]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(arena: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """``refused(message, *arguments)``: the command fails with that message and changes no file."""

    def check(message: str, *arguments: object) -> None:
        before = {**contents(arena), **contents(tmp_path)}
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(f"routerjax: error: .*{message}.*\n", printed.err), printed.err
        assert {**contents(arena), **contents(tmp_path)} == before

    return check


def train(arena: Path, output: Path, *settings: str) -> list[object]:
    return ["train", arena / "config.py", "--output", output, *(["--set", *settings] if settings else [])]


def lines(*rows: dict[str, str]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "promt,model_a,model_b,winner\nhi,a,b,tie\n",
            r"lacks the column 'prompt' \(did you mean 'promt'\?\)",
        ),
        (
            "a.csv",
            "prompt,model_a,winner\nhi,a,tie\n",
            r"lacks the column 'model_b' \(did you mean 'model_a'\?\); it has",
        ),
        ("a.csv", "prompt,model_a,model_b,winer\nhi,a,b,tie\n", "neither column winner nor preference_b .*'winer'"),
        ("a.csv", "", "a.csv is empty"),
        ("a.jsonl", "", "a.jsonl has no rows"),
        ("a.parquet", "", "not a complete parquet file"),
        ("a.csv", "prompt,model_a,model_b,winner\n", "has no rows"),
        ("a.jsonl", lines(ROW, ROW), "one class only"),
        ("a.jsonl", lines(ROW, {**ROW, "winner": "model_c"}), "row 1: column winner must be .* got 'model_c'"),
        ("a.jsonl", lines(ROW, {**ROW, "winner": "tie"}), "leaves one side empty"),
        ("a.jsonl", lines(ROW)[:-9], "line 1 is not JSON"),
        ("a.tsv", "prompt\tmodel_a\n", r"a.tsv: the name must end in .parquet, .csv, .jsonl, got '.tsv'"),
        ("b.csv", "", "no file .*a.csv"),
    ],
)
def test_battles(arena: Path, tmp_path: Path, refused: Refused, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    name = name.replace("b.csv", "a.csv")
    settings = [f"data.root={tmp_path}", f"data.battles.0.path={name}"]
    refused(message, *train(arena, tmp_path / "run", *settings))


def test_truncated_battles(arena: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "battles.parquet").write_bytes((arena / "battles.parquet").read_bytes()[:-100])
    refused("not a complete parquet file", *train(arena, tmp_path / "run", f"data.root={tmp_path}"))


def given(arena: Path, folder: Path, embedding: np.ndarray) -> list[str]:
    np.save(folder / "e.npy", embedding)
    (folder / "e.npy.json").write_text('{"fingerprint": "made up"}')
    path = f"data.battles.0.path={arena / 'battles.parquet'}"
    return [f"data.root={folder}", path, "features.embeddings=e.npy", "training.epochs=1"]


def test_embeddings(arena: Path, tmp_path: Path, refused: Refused) -> None:
    good = np.random.default_rng(0).standard_normal((80, 5)).astype(np.float32)
    bad = good.copy()
    bad[7, 2] = np.nan
    run = tmp_path / "run"
    refused("row 7: the embedding is not finite", *train(arena, run, *given(arena, tmp_path, bad)))
    refused("e.npy holds 79 embeddings, expected 80", *train(arena, run, *given(arena, tmp_path, good[1:])))
    refused(r"must be floats of shape \[prompts, embed\]", *train(arena, run, *given(arena, tmp_path, good[0])))
    settings = given(arena, tmp_path, good)
    (tmp_path / "e.npy").write_bytes((tmp_path / "e.npy").read_bytes()[:-3])
    refused("not a complete .npy file", *train(arena, run, *settings))
    (tmp_path / "e.npy.json").unlink()
    refused("no declared fingerprint", *train(arena, run, *settings))
    ragged = lines(*({"embedding": row[: 4 + (index == 3)].tolist()} for index, row in enumerate(good)))
    (tmp_path / "e.jsonl").write_text(ragged)
    (tmp_path / "e.jsonl.json").write_text('{"fingerprint": "made up"}')
    settings[2] = "features.embeddings=e.jsonl"
    refused("lists of one length, got 4 to 5", *train(arena, run, *settings))


def test_a_run_is_resumed_on_its_own_embeddings_alone(
    arena: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    embedding = np.random.default_rng(0).standard_normal((80, 5)).astype(np.float32)
    arguments = train(arena, tmp_path / "run", *given(arena, tmp_path, embedding))
    assert main([str(argument) for argument in arguments]) == 0
    capsys.readouterr()
    given(arena, tmp_path, embedding[:, :4])
    refused("the run differs in e.npy", *arguments, "--resume")
    (tmp_path / "in.csv").write_text("prompt\nhello\n")
    refused("trained on given embeddings", "score", tmp_path / "run", "--input", tmp_path / "in.csv")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("router.strong=sim-larg", r"'sim-larg' is not one of the 6 models \(did you mean 'sim-large'\?\)"),
        ("router.weak=sim-large", "strong and weak must be different models"),
        ("router.family=m", "the family must be one of .*, got 'm'"),
        ("router.loss=bradley_tery", r"did you mean 'bradley_terry'\?"),
        ("router.readout=half_ty", r"did you mean 'half_tie'\?"),
        ("router.attributes.model_dims=3", r"mf has no attribute 'model_dims' \(did you mean 'model_dim'\?\)"),
        ("optimizer.learning_rat=1", r"did you mean 'learning_rate'\?"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate must be a positive number, got 'fast'"),
        ("training.epochs=0", r"training.epochs must be an integer in \[1, 100000\], got '0'"),
        ("training.epochs", "--set takes NAME=VALUE, got 'training.epochs'"),
        ("features.encoder=./no/encoder", "no folder ./no/encoder"),
        ("training.model_devices=2", "training.model_devices=2 is of a mesh: set training.devices=mesh, got jit"),
        ("features.dollars_per_million_tokens=2", "features.dollars_per_million_tokens is an endpoint's price"),
        ("features.max_length=1000", r"max_length must be in \[2, 64\]"),
        ("data.validation_fraction=1e-9", "leaves one side empty"),
    ],
)
def test_settings(arena: Path, tmp_path: Path, refused: Refused, setting: str, message: str) -> None:
    refused(message, *train(arena, tmp_path / "run", setting))


def test_arguments_that_a_terminal_would_obey(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["train", "c.py", "--output", str(tmp_path / "x"), "-\x1b[2J"],
        ["\x1b[2J"],
        ["score", "r", "\x9b"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        *_, error = capsys.readouterr().err.splitlines()
        assert error.startswith("routerjax")
        assert error.isprintable()


@pytest.mark.parametrize("setting", ["family=mf", "family=sw"])
def test_fields_of_a_module_that_are_no_settings(arena: Path, tmp_path: Path, refused: Refused, setting: str) -> None:
    for name in ("num_models", "encoder", "name"):
        settings = [f"router.{setting}", "router.attributes={}", f"router.attributes.{name}=3"]
        refused(f"has no attribute '{name}'", *train(arena, tmp_path / "run", *settings))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no configuration .*mine.py: expected a Python file .* that defines get_config"),
        ("def get_confg(): pass", "mine.py defines no get_config"),
        ("def get_config(): return 3", "must return an ExperimentConfig, got int"),
        ("import os\ndef get_config(:\n", r"mine.py: SyntaxError: .*\(mine.py, line 2\)"),
        ("def get_config():\n    return 1 / 0\n", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", "mine.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        (
            "from routerjax.config import TrainingConfig\ndef get_config():\n    return TrainingConfig(epochs=-1)\n",
            "mine.py, line 3: training.epochs must be an integer in .*, got -1",
        ),
        ("raise ValueError('first\\nsecond')", "mine.py, line 1: ValueError: first second"),
        ("import sys\ndef get_config():\n    sys.exit('no')\n", "mine.py, line 3: SystemExit: no"),
        ("class Odd(BaseException): pass\nraise Odd", "mine.py, line 2: Odd"),
        ("raise GeneratorExit('x')", "mine.py, line 1: GeneratorExit: x"),
    ],
)
def test_configurations(tmp_path: Path, refused: Refused, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    refused(message, "train", tmp_path / "mine.py", "--output", tmp_path / "run")


def test_what_a_run_wrote_is_no_configuration(arena: Path, tmp_path: Path, refused: Refused) -> None:
    written = arena / "run" / "run.json"
    refused("no configuration .*run.json: expected a Python file", "train", written, "--output", tmp_path / "run")


def test_seeds(tmp_path: Path, refused: Refused) -> None:
    for seed in (-1, 2**64):
        refused("--seed must be an integer in ", "demo", "--output", tmp_path / "demo", f"--seed={seed}")


def test_thresholds_and_shares(arena: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "in.csv").write_text("prompt\nhello\n")
    score = ["score", arena / "run", "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv"]
    for threshold in ("1.5", "-0.1", "nan"):
        refused(
            rf"the threshold must lie in \[0, 1\], or be inf for never; got {threshold}",
            *score,
            f"--threshold={threshold}",
        )
    for share in ("1.5", "-0.1", "nan"):
        calibrate = ["calibrate", arena / "run", "--prompts", tmp_path / "in.csv", f"--strong-share={share}"]
        refused(rf"strong share must lie in \[0, 1\], .*got {share}", *calibrate, "--output", tmp_path / "calibrated")

    # Of two calibrations neither is begun where the other cannot be: nothing is printed.
    both = ["calibrate", arena / "run", "--battles", arena / "battles.parquet", "--method", "platt"]
    refused("no file .*no.csv", *both, "--prompts", tmp_path / "no.csv", "--strong-share=0.5")
    refused("--input-format is of --prompts", *both, "--input-format", "jsonl")


def test_prompts_and_models_to_score(arena: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "in.csv").write_text("promt\nhello\n")
    score = ["score", arena / "run", "--input", tmp_path / "in.csv"]
    refused(r"lacks the column 'prompt' \(did you mean 'promt'\?\)", *score)
    refused(r"'sim-larg' is not one of .* \(did you mean 'sim-large'\?\)", *score, "--strong", "sim-larg")
    refused("must end in .parquet, .csv, .jsonl, got '.txt'", *score, "--output", tmp_path / "out.txt")
    refused("the folder .* does not exist; create it first", *score, "--output", tmp_path / "no" / "out.csv")
    refused("is not a router folder", "score", tmp_path, "--input", tmp_path / "in.csv")
    (tmp_path / "taken.csv").write_text("prompt,model\nHello there,x\n")
    refused("has a column model already", "score", arena / "run", "--input", tmp_path / "taken.csv")


def test_benchmarks(arena: Path, tmp_path: Path, refused: Refused) -> None:
    evaluate = ["evaluate", arena / "run", "--data-root", tmp_path, "--output", tmp_path / "results", "--benchmark"]
    refused(r"benchmark must be one of .*, got 'mmul' \(did you mean 'mmlu'\?\)", *evaluate, "mmul")
    for name in ("mmlu", "gsm8k", "mt_bench"):
        looked = f"no folder .*{name}: expected RouteLLM's .*looked in {tmp_path}; git clone .*--data-root"
        refused(looked, *evaluate, name)
        (tmp_path / name).mkdir()
    refused("must hold 57 files", *evaluate, "mmlu")
    refused("no file .*gsm8k_responses.csv", *evaluate, "gsm8k")
    refused("no file .*judgements.jsonl", *evaluate, "mt_bench")
    (tmp_path / "mt_bench" / "judgements.jsonl").write_text('{"question_id": 1, "model": "m", "turn": 1, "score": 3}')
    refused("no file .*contaminated_prompts.jsonl", *evaluate, "mt_bench")
    (tmp_path / "mt_bench" / "contaminated_prompts.jsonl").write_text('{"eval_prompt": "x"}')
    refused("no file .*question.jsonl", *evaluate, "mt_bench")
    (tmp_path / "mt_bench" / "question.jsonl").write_text('{"question_id": 1, "turns": ["a", "b"]}')
    refused("question 1 needs 2 grades of gpt-4-1106-preview", *evaluate, "mt_bench")

    table = arena / "benchmark.parquet"
    refused(
        "names no strong and no weak model.*--strong, --weak.*; its models are sim-large, sim-small", *evaluate, table
    )
    refused(
        r"'sim-lrge' is not one of the 2 models \(did you mean 'sim-large'\?\)",
        *evaluate,
        table,
        "--strong",
        "sim-lrge",
    )
    scores = tmp_path / "mine.csv"
    scores.write_text("prompt,win_prob\nhello,1.5\n")
    refused(r"row 0: column win_prob must be in \[0, 1\], got 1.5", *evaluate, table, *PAIR, "--scores", scores)
    scores.write_text("prompt,win_prob\nhello,0.5\n")
    refused("no win_prob for 40 of the 40 prompts", *evaluate, table, *PAIR, "--scores", scores)


def test_truncated_files(arena: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "in.csv").write_text("prompt\nhello\n")
    router, encoder = tmp_path / "router", tmp_path / "encoder"
    score = ["score", router, "--input", tmp_path / "in.csv"]
    for name, message in (
        ("router.safetensors", "truncated or exchanged; copy the folder again"),
        ("router.json", "router.json is not JSON"),
    ):
        shutil.copytree(arena / "run" / "router", router)
        (router / name).write_bytes((router / name).read_bytes()[:-100])
        refused(message, *score)
        shutil.rmtree(router)
    shutil.copytree(arena / "encoder", encoder)
    weights = encoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("not a complete safetensors file", "score", arena / "run", *score[2:], "--encoder", encoder)
    refused("not a complete safetensors file", *train(arena, tmp_path / "run", f"features.encoder={encoder}"))


def test_resuming(arena: Path, tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "run"
    resume = [*train(arena, run), "--resume"]
    refused("nothing to resume: .* holds no run", *resume)
    shutil.copytree(arena / "run", run)
    refused("the run differs in training", *train(arena, run, "training.epochs=9"), "--resume")
    description = run / "router" / "router.json"
    content = description.read_bytes()
    description.write_bytes(content[:-100])
    refused("run/router is damaged .*: remove it, and --resume writes it again", *resume)
    description.write_bytes(content)
    checkpoints = run / "training" / "checkpoints"
    before, last = sorted(int(path.name) for path in checkpoints.iterdir())
    damaged = [path for path in (checkpoints / str(last)).rglob("*") if path.is_file()]
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    mend = f"to go on from checkpoint {before}, remove .*checkpoints/{last}"
    refused(f"checkpoint {last} in .* cannot be restored .*: {mend}", *resume)
    content = (run / "run.json").read_bytes()
    sections = json.dumps(json.loads(content) | {"config": {name: [] for name in json.loads(content)["config"]}})
    for damaged in (content[:-100], sections.encode(), b"[" * 100_000):
        (run / "run.json").write_bytes(damaged)
        refused("run.json is damaged; train into another folder", *resume)


def test_outputs_that_exist(arena: Path, tmp_path: Path, refused: Refused) -> None:
    there, table = tmp_path / "there", tmp_path / "there.csv"
    there.mkdir()
    (there / "something").touch()
    table.write_text("prompt\nhello\n")
    for arguments in (
        train(arena, there),
        ["evaluate", arena / "run", "--benchmark", arena / "benchmark.parquet", *PAIR, "--output", there],
        ["calibrate", arena / "run", "--prompts", table, "--strong-share", "0.5", "--output", there],
        ["score", arena / "run", "--input", table, "--output", table],
        ["export", arena / "run", "--format", "stablehlo", "--output", there],
    ):
        refused("exists already", *arguments)
    refused("the output / exists already", *train(arena, Path("/")))
