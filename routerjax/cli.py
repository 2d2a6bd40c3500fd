"""The ``routerjax`` command: parses, calls the library, prints.

Nothing heavy is imported before a subcommand runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from routerjax.display import printable
from routerjax.errors import InputError, VerificationError
from routerjax.process import fail, interrupts, standard_streams

if TYPE_CHECKING:
    from routerjax.router import Router

logger = logging.getLogger(__name__)

# Exit status where a disk, permissions or memory refused; bad input is 2.
MACHINE_REFUSED = 1

# Those of routerjax.calibration, which imports JAX.
METHODS = ("temperature", "platt", "isotonic")

# A threshold that sends fewer prompts to the strong model than was asked for, by more than this share, is remarked on.
LARGEST_SHORTFALL = 0.01

# Those of routerjax.tables, which imports Arrow.
INPUT_FORMATS = ("text", "jsonl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 done, 2 bad input, 1 the machine refused (disk, memory)."""
    with standard_streams():
        handler = logging.StreamHandler()
        handler.setFormatter(_OneLine())
        logging.basicConfig(handlers=[handler])
        logging.getLogger("routerjax").setLevel(logging.INFO)
        try:
            with interrupts():
                _run(_parser().parse_args(argv))
        except InputError as error:
            return _fail(str(error), 2)
        except (VerificationError, OSError) as error:
            return _fail(str(error), MACHINE_REFUSED)
        except MemoryError as error:
            return _fail(f"out of memory: {error}", MACHINE_REFUSED)
        except RuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):  # XLA's word for memory of a device
                raise
            return _fail(f"out of memory on the device: {error}", MACHINE_REFUSED)
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


def _say(message: str) -> None:
    print(printable(message))


class _OneLine(logging.Formatter):
    """A record as one line in which the names of others cannot forge anything."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="routerjax",
        description="Learn LLM routers from preference data: train, evaluate with intervals, export with proof.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole path on a simulated arena, in a few minutes, offline")
    demo.add_argument("--output", type=Path, default=Path("demo_output"), metavar="DIR", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0, help="of the simulated arena; default: %(default)s")
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="train the router that a configuration describes")
    train.add_argument("config", type=Path, metavar="CONFIG.py", help="a Python file that defines get_config()")
    train.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="optimizer.learning_rate=1e-4 ...; a tuple is written as JSON, 'data.battles.0.drop_where=[\"spam\"]'",
    )
    train.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the run")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="cost-quality curves with controls and 95%% intervals")
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
    evaluate.set_defaults(run=_evaluate)

    calibrate = commands.add_parser(
        "calibrate", help="the threshold that sends a wanted share to the strong model; probabilities that hold"
    )
    calibrate.add_argument("router", type=Path, metavar="ROUTER")
    calibrate.add_argument("--prompts", metavar="FILE", help="a table with a column prompt, or -; with --strong-share")
    calibrate.add_argument("--strong-share", type=float, metavar="P", help="in [0, 1]; with --prompts")
    calibrate.add_argument("--battles", metavar="FILE", help="battles of the pair, not trained on; with --method")
    calibrate.add_argument("--method", choices=METHODS, help="how to calibrate win probabilities; with --battles")
    calibrate.add_argument("--output", type=Path, metavar="DIR", help="write the router with what was found stored")
    calibrate.set_defaults(run=_calibrate)

    score = commands.add_parser("score", help="win probabilities of prompts, and the model each is routed to")
    score.add_argument("router", type=Path, metavar="ROUTER")
    score.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help=".jsonl, .csv or .parquet with a column prompt; - is standard input, one prompt a line",
    )
    score.add_argument("--output", default="-", metavar="FILE", help="by its ending; - (default) prints JSON lines")
    score.add_argument("--threshold", type=float, help="in [0, 1]; default: the router's own, if calibrated")
    score.set_defaults(run=_score)

    export = commands.add_parser("export", help="write a serving bundle, verified before it counts as written")
    export.add_argument("router", type=Path, metavar="ROUTER")
    export.add_argument("--format", required=True, choices=["stablehlo", "hf", "routellm"])
    export.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for what is written")
    export.set_defaults(run=_export)

    importing = commands.add_parser("import", help="make a published router a router folder")
    importing.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with model.safetensors, that file, a Hugging Face name, or RouteLLM's config.yaml",
    )
    importing.add_argument("--format", required=True, choices=["hf", "routellm-mf", "routellm-sw", "routellm-bert"])
    importing.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the router")
    importing.set_defaults(run=_import)
    for command in (evaluate, calibrate, score, export):
        command.add_argument(
            "--encoder", metavar="DIR", help="where the routers' sentence encoder is, if elsewhere now"
        )
    for command in (calibrate, score):
        command.add_argument(
            "--input-format",
            choices=INPUT_FORMATS,
            help="of lines: prompts as they are, or JSON objects; default: by the file's ending, text for -",
        )
    for command in (calibrate, score, export, importing):
        command.add_argument("--strong", help="another strong model of the router's vocabulary")
        command.add_argument("--weak", help="another weak model of the router's vocabulary")
    return parser


def _demo(arguments: argparse.Namespace) -> None:
    from routerjax.config import Seed
    from routerjax.demo import run_demo
    from routerjax.validation import coerce

    run_demo(arguments.output, seed=coerce(arguments.seed, Seed, "--seed"))


def _train(arguments: argparse.Namespace) -> None:
    from routerjax.config import override
    from routerjax.pipeline import load_config, train_router

    config = override(load_config(arguments.config), arguments.set)
    train_router(config, arguments.output, resume=arguments.resume)
    _say(f"router written to {arguments.output / 'router'}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from routerjax.evaluation import evaluate_routers, print_table

    results = evaluate_routers(
        arguments.routers,
        benchmarks=arguments.benchmark,
        data_root=arguments.data_root,
        score_files=arguments.scores,
        strong=arguments.strong,
        weak=arguments.weak,
        exclude_smallest=arguments.exclude_smallest,
        num_samples=arguments.samples,
        seed=arguments.seed,
        encoder=arguments.encoder,
        output=arguments.output,
    )
    console = Console(highlight=False)
    for result in results:
        print_table(result, console)
    files = "report.html, results.json, results.md and curves.png"
    _say(f"95 % intervals over prompts in brackets; {files} are in {arguments.output}")


def _calibrate(arguments: argparse.Namespace) -> None:
    import dataclasses

    from routerjax.atomic import refuse_existing
    from routerjax.data import read_preferences
    from routerjax.features import EmbeddingCache
    from routerjax.pipeline import CALIBRATION_FIGURES, calibrate_router
    from routerjax.router import load_router, router_folder, save_router
    from routerjax.routing import require_share, threshold_for_share
    from routerjax.tables import read_prompt_table

    wants_share, wants_map = arguments.strong_share is not None, arguments.method is not None
    if wants_share != (arguments.prompts is not None) or wants_map != (arguments.battles is not None):
        raise InputError("--prompts goes with --strong-share, and --battles with --method")
    if arguments.input_format is not None and not wants_share:
        raise InputError("--input-format is of --prompts")
    if not (wants_share or wants_map):
        raise InputError("nothing to calibrate: give --prompts and --strong-share, --battles and --method, or all four")
    if wants_share:
        require_share(arguments.strong_share)
    if arguments.output is not None:
        refuse_existing(arguments.output)
    stored = load_router(router_folder(arguments.router), encoder=arguments.encoder)
    router = stored.with_pair(arguments.strong, arguments.weak)
    prompts = []
    if wants_share:
        prompts = read_prompt_table(arguments.prompts, input_format=arguments.input_format, progress=True).prompts
    with EmbeddingCache() as cache:
        if wants_map:
            battles = read_preferences(arguments.battles, progress=True)
            router = calibrate_router(router, battles, method=arguments.method, cache=cache)
            found = cast("dict[str, dict[str, float]]", router.provenance["calibration"])
            for name in CALIBRATION_FIGURES:
                _say(f"{name}: {found[name]['raw']:.4f} raw, {found[name]['calibrated']:.4f} calibrated (held out)")
        if wants_share:
            # Prompts that the router remembers stand for new ones.
            win_prob = router.win_prob(prompts, exclude_own_battles=True, cache=cache, progress=True)
            threshold, attained = threshold_for_share(win_prob, arguments.strong_share)
            _say(f"threshold {threshold!r} sends {attained:.4f} of these {len(prompts)} prompts to {router.strong}")
            if arguments.strong_share - attained > LARGEST_SHORTFALL:
                together = int((win_prob == win_prob[win_prob < threshold].max()).sum())
                logger.warning(
                    "%s of them were wanted: the next %d share one win probability, and go to one model together",
                    *(arguments.strong_share, together),
                )
            router = dataclasses.replace(router, threshold=threshold)
        _say_what_is_lost(stored, router)
    if arguments.output is not None:
        save_router(router, arguments.output)
        _say(f"router with this calibration written to {arguments.output}")


def _score(arguments: argparse.Namespace) -> None:
    import dataclasses

    import pyarrow as pa

    from routerjax.features import EmbeddingCache
    from routerjax.router import load_router, router_folder
    from routerjax.routing import route
    from routerjax.tables import read_prompt_table, require_writable

    # All that can be refused is refused before the prompts are encoded.
    require_writable(arguments.output)
    stored = load_router(router_folder(arguments.router), encoder=arguments.encoder)
    router = stored.with_pair(arguments.strong, arguments.weak)
    if arguments.threshold is not None:
        router = dataclasses.replace(router, threshold=arguments.threshold)
    _say_what_is_lost(stored, router)
    table = read_prompt_table(arguments.input, input_format=arguments.input_format, progress=True)
    taken = {"win_prob", "model"} & set(table.columns)
    if taken:
        raise InputError(f"{arguments.input} has a column {min(taken)} already, which score would write: rename it")
    output = table.prepare(arguments.output)
    with EmbeddingCache() as cache:
        win_prob = router.win_prob(table.prompts, cache=cache, progress=True)
    added = {"win_prob": pa.array(win_prob)}
    if router.threshold is not None:
        chosen = [router.strong if is_strong else router.weak for is_strong in route(win_prob, router.threshold)]
        added["model"] = pa.array(chosen, pa.string())
    output.write(added)


def _say_what_is_lost(stored: Router, router: Router) -> None:
    """Name what a router has in its folder and does not keep for another pair, or under another calibration."""
    lost = ["threshold"] if stored.threshold is not None and router.threshold is None else []
    if "calibration" in stored.variables and "calibration" not in router.variables:
        lost.append("calibration")
    if lost:
        is_same = (stored.strong, stored.weak) == (router.strong, router.weak)
        when = "before this calibration" if is_same else f"for {stored.strong} or {stored.weak}"
        logger.warning("left out: the %s of the router, chosen %s", " and ".join(lost), when)


def _export(arguments: argparse.Namespace) -> None:
    from routerjax.export import export_hf, export_routellm, export_stablehlo
    from routerjax.router import load_router, router_folder

    stored = load_router(router_folder(arguments.router), encoder=arguments.encoder)
    router = stored.with_pair(arguments.strong, arguments.weak)
    _say_what_is_lost(stored, router)
    if arguments.format == "hf":
        difference = export_hf(router, arguments.output)
        _say(f"model.safetensors: scores differ from the router's by at most {difference:.1e}")
        loads = "transformers' AutoModelForSequenceClassification and AutoTokenizer load it"
        _say(f"verified and written to {arguments.output}; {loads}")
        return
    if arguments.format == "routellm":
        differences = {"model.safetensors": export_routellm(router, arguments.output)}
        usage = (
            f"in RouteLLM's config: mf: {{checkpoint_path: {arguments.output}, strong_model: {router.strong}, "
            f"weak_model: {router.weak}, hidden_size: {router.variables['params']['classifier'].shape[0]}}}"
        )
    else:
        differences = export_stablehlo(router, arguments.output)
        usage = f'try: python {arguments.output / "load.py"} "A prompt"'
    for name, difference in differences.items():
        _say(f"{name}: win probabilities differ from the router's by at most {difference:.1e}")
    _say(f"verified and written to {arguments.output}; {usage}")


def _import(arguments: argparse.Namespace) -> None:
    from routerjax.importing import IMPORTERS
    from routerjax.router import save_router

    router = IMPORTERS[arguments.format](arguments.source, strong=arguments.strong, weak=arguments.weak)
    save_router(router, arguments.output)
    _say(f"router of {len(router.models)} models written to {arguments.output}: {router.strong} or {router.weak}")
    if router.reader is None:
        _say(f"it reads embeddings of {router.features.source}, {router.features.width} wide")
    else:
        _say(f"it reads text: the first {router.features.max_length} tokens of a prompt")


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
