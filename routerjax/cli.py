"""The ``routerjax`` command: its arguments, its exit status, and errors as one line each."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from routerjax import commands
from routerjax.display import printable
from routerjax.errors import InputError, PreemptedError, VerificationError
from routerjax.formats import FORMATS
from routerjax.process import fail, in_child, interrupts, standard_streams

# Exit status where a disk, permissions or memory refused; bad input is 2.
MACHINE_REFUSED = 1

# Exit status after SIGTERM where all is saved: try again (sysexits.h), with --resume.
PREEMPTED = 75

PROCESS_LOST = (
    "another process of this run has ended, was not started or cannot be reached; its log says why: start all of them "
    "again, with --resume if run.json is in --output"
)

# Those of routerjax.calibration, which imports JAX.
METHODS = ("temperature", "platt", "isotonic")

# Those of routerjax.training.hooks, which is beside what imports JAX.
TRACKERS = ("mlflow", "wandb")

# Those of routerjax.tables, which imports Arrow.
INPUT_FORMATS = ("text", "jsonl")

# Those of routerjax.serving, which is beside what imports a web server.
SCORED = ("last", "user_turns", "all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    0: done; 2: bad input; 1: the machine refused (disk, memory), or another process of the run was lost; 130: Ctrl-C;
    75: SIGTERM while training, and what is finished is saved.
    """
    with standard_streams():
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine())
        logging.basicConfig(handlers=[handler])
        logging.getLogger("routerjax").setLevel(logging.INFO)
        arguments = _parser().parse_args(argv)
        if getattr(arguments, "distributed", False):
            return in_child(lambda: _status(arguments), aborted=PROCESS_LOST)
        return _status(arguments)


def _status(arguments: argparse.Namespace) -> int:
    """Run a command; return its exit status."""
    try:
        with interrupts():
            _run(arguments)
    except InputError as error:
        return _fail(str(error), 2)
    except (VerificationError, OSError) as error:
        # What Orbax waits for in vain when it writes a checkpoint is another process.
        is_lost = getattr(arguments, "distributed", False) and isinstance(error, TimeoutError)
        return _fail(f"{PROCESS_LOST} ({error})" if is_lost else str(error), MACHINE_REFUSED)
    except MemoryError as error:
        return _fail(f"out of memory: {error}", MACHINE_REFUSED)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # XLA's word for memory of a device
            return _fail(f"out of memory on the device: {error}", MACHINE_REFUSED)
        if getattr(arguments, "distributed", False) and type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
            return _fail(f"{PROCESS_LOST} ({error})", MACHINE_REFUSED)
        raise
    except PreemptedError:
        return PREEMPTED
    except KeyboardInterrupt:
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    if sys.stdout is None:
        raise InputError("standard output is closed: send it to a file, or to /dev/null")
    arguments.run(arguments)
    sys.stdout.flush()  # what it cannot take must be known here, not when the interpreter ends


def _fail(message: str, status: int) -> int:
    fail(message)
    return status


class _OneLine(logging.Formatter):
    """A record as one line in which the names of others cannot forge anything."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


class _Parser(argparse.ArgumentParser):
    """Parser of arguments whose refusal is one line, whatever the arguments hold."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="routerjax",
        description="Learn LLM routers from preference data: train, evaluate with intervals, export with proof.",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = subparsers.add_parser("demo", help="the whole path on a simulated arena, in a few minutes, offline")
    demo.add_argument("--output", type=Path, default=Path("demo_output"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0, help="of the simulated arena; default: %(default)s")
    demo.set_defaults(run=commands.demo)

    train = subparsers.add_parser("train", help="train the router that a configuration describes")
    plan = subparsers.add_parser("plan", help="memory and operations of a run, before it, and what would make it fit")
    for command in (train, plan):
        command.add_argument("config", type=Path, metavar="CONFIG.py", help="a Python file that defines get_config()")
    train.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the run")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    train.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes, found on SLURM, Open MPI, TPU pods and GKE, or given by the next three",
    )
    train.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 is reached; with --distributed")
    train.add_argument("--num-processes", type=int, metavar="N", help="of the run; with --distributed")
    train.add_argument("--process-id", type=int, metavar="I", help="of this one, from 0; with --distributed")
    train.add_argument(
        "--profile", metavar="START:STOP", help="trace these steps of the run, for TensorBoard, Perfetto"
    )
    train.add_argument("--log", action="append", default=[], choices=TRACKERS, help="send the figures of epochs there")
    train.set_defaults(run=commands.train)
    plan.add_argument("--devices", required=True, metavar="NxMEMORY", help="to train on, such as 8x80GB")
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(run=commands.plan)

    evaluate = subparsers.add_parser("evaluate", help="cost-quality curves with controls and 95%% intervals")
    evaluate.add_argument("routers", nargs="*", type=Path, metavar="ROUTER", help="router folders, or runs of train")
    evaluate.add_argument(
        "--benchmark",
        nargs="+",
        required=True,
        metavar="NAME",
        help="mmlu, gsm8k, mt_bench; or a table of scores (.parquet, .csv, .jsonl)",
    )
    evaluate.add_argument("--data-root", type=Path, default=Path("."), metavar="DIR", help="RouteLLM's evals folder")
    evaluate.add_argument("--scores", nargs="+", type=Path, default=[], metavar="FILE", help="columns prompt, win_prob")
    evaluate.add_argument("--strong", help="the strong model of a benchmark table")
    evaluate.add_argument("--weak", help="the weak model of a benchmark table")
    evaluate.add_argument(
        "--exclude-smallest",
        type=int,
        default=0,
        metavar="N",
        help="leave out the N prompts with the smallest SHA-256 (those that a golden source of N prompts trained on)",
    )
    evaluate.add_argument("--samples", type=int, default=1000, help="bootstrap resamples; default: %(default)s")
    evaluate.add_argument("--seed", type=int, default=0, help="of the bootstrap; default: %(default)s")
    evaluate.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the results")
    evaluate.set_defaults(run=commands.evaluate)

    calibrate = subparsers.add_parser(
        "calibrate", help="the threshold that sends a wanted share to the strong model; probabilities that hold"
    )
    calibrate.add_argument("router", type=Path, metavar="ROUTER")
    calibrate.add_argument("--prompts", metavar="FILE", help="a table with a column prompt, or -; with --strong-share")
    calibrate.add_argument("--strong-share", type=float, metavar="P", help="in [0, 1]; with --prompts")
    calibrate.add_argument("--battles", metavar="FILE", help="battles of the pair, not trained on; with --method")
    calibrate.add_argument("--method", choices=METHODS, help="how to calibrate win probabilities; with --battles")
    calibrate.add_argument("--output", type=Path, metavar="DIR", help="write the router with what was found stored")
    calibrate.set_defaults(run=commands.calibrate)

    score = subparsers.add_parser("score", help="win probabilities of prompts, and the model each is routed to")
    score.add_argument("router", type=Path, metavar="ROUTER")
    score.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help=".jsonl, .csv or .parquet with a column prompt; - is standard input, one prompt a line",
    )
    score.add_argument("--output", default="-", metavar="FILE", help="by its ending; - (default) prints JSON lines")
    score.add_argument(
        "--resume", action="store_true", help="go on with a run that was killed, from OUTPUT.part beside its output"
    )
    score.add_argument("--threshold", type=float, help="in [0, 1]; default: the router's own, if calibrated")
    score.set_defaults(run=commands.score)

    export = subparsers.add_parser("export", help="write a serving bundle, verified before it counts as written")
    export.add_argument("router", type=Path, metavar="ROUTER")
    export.add_argument("--format", required=True, choices=FORMATS, metavar="FORMAT", help="%(choices)s")
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for what is written")
    export.set_defaults(run=commands.export)

    verify = subparsers.add_parser("verify", help="check a bundle's files, and its scores by the golden prompts")
    verify.add_argument("bundle", type=Path, metavar="BUNDLE")
    verify.set_defaults(run=commands.verify)

    importing = subparsers.add_parser("import", help="make a published router a router folder")
    importing.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with model.safetensors, that file, a Hugging Face name, or RouteLLM's config.yaml",
    )
    importing.add_argument("--format", required=True, choices=FORMATS, metavar="FORMAT", help="%(choices)s")
    importing.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the router")
    importing.set_defaults(run=commands.import_router)

    serve = subparsers.add_parser("serve", help="OpenAI's API in front of the models that the router chooses among")
    serve.add_argument("router", type=Path, metavar="ROUTER", help="a router folder, a run, or an exported bundle")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE.yaml", help="the upstream of each model")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s, this machine")
    serve.add_argument("--port", type=int, default=8000, help="0 is any free one; default: %(default)s")
    serve.add_argument("--threshold", type=float, help="in [0, 1]; default: the router's own, if calibrated")
    serve.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="for one decision of a bundle in ONNX; default: as many as there are cores",
    )
    serve.add_argument(
        "--scored", choices=SCORED, default="last", help="part of a conversation that is scored; default: %(default)s"
    )
    serve.add_argument(
        "--strip",
        action="append",
        default=[],
        metavar="PATTERN",
        help="a regular expression; what it matches in a turn is not scored: scaffolding of agents",
    )
    serve.add_argument(
        "--access-log", default="-", metavar="FILE", help="JSON lines, appended; - (default) is standard output"
    )
    serve.add_argument("--access-log-text", action="store_true", help="with the text that was scored")
    serve.add_argument(
        "--log-preferences", metavar="FILE.jsonl", help="append decisions and feedback, which train reads as battles"
    )
    serve.add_argument(
        "--preferences-text", action="store_true", help="with the text that was scored; default: its SHA-256 alone"
    )
    serve.add_argument(
        "--grace", type=float, default=300.0, metavar="SECONDS", help="to finish in after SIGTERM; default: %(default)s"
    )
    serve.set_defaults(run=commands.serve)

    configured = "optimizer.learning_rate=1e-4 ...; a tuple is written as JSON, 'data.battles.0.drop_where=[\"spam\"]'"
    options = {
        train: configured,
        plan: configured,
        export: "of the format: licence=... of bundles; weights=int8 activations=int8 benchmark=FILE of onnx; "
        "max_shard_size=1GB of hf",
        importing: "of the format: loss=bag of p2l; system=..., user=... {prompt} of routellm-causal",
    }
    for command, named in options.items():
        command.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=named)
    for command in (evaluate, calibrate, score, export, serve):
        command.add_argument(
            "--encoder", metavar="DIR", help="where the routers' sentence encoder is, if elsewhere now"
        )
    for command in (calibrate, score):
        command.add_argument(
            "--input-format",
            choices=INPUT_FORMATS,
            help="of lines: prompts as they are, or JSON objects; default: by the file's ending, text for -",
        )
    for command in (calibrate, score, export, importing, serve):
        command.add_argument("--strong", help="another strong model of the router's vocabulary")
        command.add_argument("--weak", help="another weak model of the router's vocabulary")
    return parser


def command() -> None:
    """Run the command line as a process of its own."""
    status = main()
    if status == MACHINE_REFUSED:
        # All is said: threads of TensorStore that could not write to a full disk would have their say while the
        # interpreter ends.
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    command()
