"""Subcommands of ``routerjax``: each calls the library with parsed arguments, and prints.

Each imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from routerjax.display import printable
from routerjax.errors import InputError, PreemptedError, VerificationError

logger = logging.getLogger(__name__)

# A threshold that sends fewer prompts to the strong model than was asked for, by more than this share, is remarked on.
LARGEST_SHORTFALL = 0.01


def demo(arguments: argparse.Namespace) -> None:
    """Run the demo."""
    from routerjax.config import Seed
    from routerjax.demo import run_demo
    from routerjax.validation import coerce

    run_demo(arguments.output, seed=coerce(arguments.seed, Seed, "--seed"))


def train(arguments: argparse.Namespace) -> None:
    """Train a router, or go on with a run."""
    from routerjax import distributed
    from routerjax.config import override
    from routerjax.pipeline import load_config, train_router

    cluster = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    if cluster != (None, None, None) and not arguments.distributed:
        raise InputError("--coordinator, --num-processes and --process-id go with --distributed")
    if cluster.count(None) not in (0, 3):
        raise InputError("--coordinator, --num-processes and --process-id go together, or are found by JAX")
    profile = [] if arguments.profile is None else [f"training.profile={arguments.profile}"]
    config = override(load_config(arguments.config), [*arguments.set, *profile])
    if arguments.distributed:
        distributed.join(*cluster)
    try:
        train_router(config, arguments.output, resume=arguments.resume, log=arguments.log)
    except PreemptedError:  # in all processes: to the others, the first to end is not to be a lost one
        distributed.leave()
        raise
    if distributed.is_first():
        _say(f"router written to {arguments.output / 'router'}")
    distributed.leave()


def plan(arguments: argparse.Namespace) -> None:
    """Plan a run."""
    import json

    from routerjax.pipeline import Devices, describe_plan, plan_run

    planned = plan_run(arguments.config, arguments.set, Devices.parse(arguments.devices))
    for line in [json.dumps(planned)] if arguments.json else describe_plan(planned):
        _say(line)


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate routers and score files beside the controls."""
    from rich.console import Console

    from routerjax.evaluation import evaluate_routers, print_table
    from routerjax.metrics import Resamples

    results = evaluate_routers(
        arguments.routers,
        benchmarks=arguments.benchmark,
        data_root=arguments.data_root,
        score_files=arguments.scores,
        strong=arguments.strong,
        weak=arguments.weak,
        exclude_smallest=arguments.exclude_smallest,
        resamples=Resamples(arguments.samples, arguments.seed),
        encoder=arguments.encoder,
        output=arguments.output,
    )
    console = Console(highlight=False)
    for result in results:
        print_table(result, console)
    files = "report.html, results.json, results.md and curves.png"
    _say(f"95 % intervals over prompts in brackets; {files} are in {arguments.output}")


def calibrate(arguments: argparse.Namespace) -> None:
    """Calibrate win probabilities, the threshold, or both."""
    import functools

    import numpy as np

    from routerjax.atomic import refuse_existing
    from routerjax.data import read_preferences
    from routerjax.features import EmbeddingCache
    from routerjax.pipeline import CALIBRATION_FIGURES, calibrate_router, score_chunks
    from routerjax.policies import require_share, threshold_for_share
    from routerjax.router import load_router, router_folder, save_router, warn_of_losses
    from routerjax.tables import open_prompts

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
    table = None
    if wants_share:
        table = open_prompts(
            arguments.prompts,
            input_format=arguments.input_format,
            refuse=router.featurizer.require_prompts,
            progress=True,
        )
    if wants_map:
        with EmbeddingCache() as cache:
            battles = read_preferences(arguments.battles, progress=True)
            router = calibrate_router(router, battles, method=arguments.method, cache=cache)
            figures = cast("dict[str, dict[str, float]]", router.provenance["calibration"])
            for name in CALIBRATION_FIGURES:
                _say(f"{name}: {figures[name]['raw']:.4f} raw, {figures[name]['calibrated']:.4f} calibrated (held out)")
    if table is not None:
        # Prompts that the router remembers stand for new ones.
        score = functools.partial(router.win_prob, exclude_own_battles=True)
        win_prob = np.concatenate(list(score_chunks(score, table, progress=True)))
        threshold, attained = threshold_for_share(win_prob, arguments.strong_share)
        _say(f"threshold {threshold!r} sends {attained:.4f} of the {table.rows} rows to {router.strong}")
        if arguments.strong_share - attained > LARGEST_SHORTFALL:
            together = int((win_prob == win_prob[win_prob < threshold].max()).sum())
            logger.warning(
                "%s of them were wanted: the next %d share one win probability, and go to one model together",
                *(arguments.strong_share, together),
            )
        router = router.with_threshold(threshold)
    warn_of_losses(stored, router)
    if arguments.output is not None:
        save_router(router, arguments.output)
        _say(f"router with this calibration written to {arguments.output}")


def score(arguments: argparse.Namespace) -> None:
    """Score a table of prompts."""
    from routerjax.pipeline import require_part, score_table
    from routerjax.pretrained import file_sha256
    from routerjax.router import DESCRIPTION_FILE, load_router, router_folder, warn_of_losses
    from routerjax.tables import require_writable

    # All that can be refused is refused before the prompts are encoded.
    require_writable(arguments.output)
    require_part(arguments.output, resume=arguments.resume)
    folder = router_folder(arguments.router)
    stored = load_router(folder, encoder=arguments.encoder)
    router = stored.with_pair(arguments.strong, arguments.weak)
    if arguments.threshold is not None:
        router = router.with_threshold(arguments.threshold)
    warn_of_losses(stored, router)
    score_table(
        router,
        arguments.input,
        arguments.output,
        router_sha256=file_sha256(folder / DESCRIPTION_FILE),
        input_format=arguments.input_format,
        resume=arguments.resume,
        progress=True,
    )


def export(arguments: argparse.Namespace) -> None:
    """Export a router, and say how far its scores differ."""
    from routerjax import formats
    from routerjax.router import load_router, router_folder, warn_of_losses

    options = _assignments(arguments.set)
    format = formats.find_format(arguments.format, formats.WritableFormat, options)
    stored = load_router(router_folder(arguments.router), encoder=arguments.encoder)
    router = stored.with_pair(arguments.strong, arguments.weak)
    warn_of_losses(stored, router)
    for name, difference in formats.export(router, arguments.output, arguments.format, options=options).items():
        _say(f"{name}: {format.compared} differ from the router's by at most {difference:.1e}")
    _say(f"verified and written to {arguments.output}; {format.usage(router, arguments.output)}")


def verify(arguments: argparse.Namespace) -> None:
    """Check a bundle's files, and compare it with the scores that it was written with."""
    from routerjax.runtime import BundleError, load

    if not os.path.isdir(arguments.bundle):
        raise InputError(f"no folder {arguments.bundle}: expected a bundle, as routerjax export writes it")
    try:
        bundle = load(arguments.bundle)
        _say(bundle.summary(bundle.verify()))
    except BundleError as error:
        raise VerificationError(str(error)) from error


def import_router(arguments: argparse.Namespace) -> None:
    """Make a published router a router folder."""
    from routerjax import formats
    from routerjax.router import save_router

    options = _assignments(arguments.set)
    router = formats.read(
        arguments.source, arguments.format, strong=arguments.strong, weak=arguments.weak, options=options
    )
    save_router(router, arguments.output)
    _say(f"router of {len(router.models)} models written to {arguments.output}: {router.strong} or {router.weak}")
    _say(f"it reads {router.featurizer.description}")


def serve(arguments: argparse.Namespace) -> None:
    """Serve a router's models behind OpenAI's API."""
    from routerjax.errors import require_extra

    for package in ("starlette", "uvicorn", "prometheus_client", "re2"):
        require_extra("serve", package, "routerjax serve")

    import contextlib
    import sys

    from routerjax.atomic import open_log
    from routerjax.serving.app import Server
    from routerjax.serving.config import read_config
    from routerjax.serving.conversation import Conversations
    from routerjax.serving.preferences import PreferenceLog
    from routerjax.serving.run import listen
    from routerjax.serving.run import serve as run_server
    from routerjax.serving.text_scoring import open_scorer

    if not 0 <= arguments.port < 2**16:
        raise InputError(f"--port must be in [0, {2**16 - 1}], got {arguments.port}")
    if not 0 <= arguments.grace < math.inf:
        raise InputError(f"--grace must be a number of seconds, got {arguments.grace}")
    config = read_config(arguments.config)
    Conversations(arguments.scored, arguments.strip)  # a pattern that is none is refused before the router is loaded
    scorer = open_scorer(
        arguments.router,
        threshold=arguments.threshold,
        strong=arguments.strong,
        weak=arguments.weak,
        encoder=arguments.encoder,
        threads=arguments.threads,
    )
    with contextlib.ExitStack() as stack:
        preferences = None
        if arguments.log_preferences is not None:
            preferences = PreferenceLog(arguments.log_preferences, scorer, with_text=arguments.preferences_text)
            stack.callback(preferences.close)
        elif arguments.preferences_text:
            raise InputError("--preferences-text goes with --log-preferences")
        log = sys.stdout
        if arguments.access_log != "-":
            log = stack.enter_context(open(open_log(Path(arguments.access_log), os.O_WRONLY), "a", encoding="utf-8"))
            if arguments.log_preferences is not None and os.path.samefile(
                arguments.access_log, arguments.log_preferences
            ):
                raise InputError("--access-log and --log-preferences must be two different files")
        server = Server(
            scorer,
            config,
            scored=arguments.scored,
            strip=arguments.strip,
            access_log=log,
            log_text=arguments.access_log_text,
            preferences=preferences,
        )
        listening = stack.enter_context(listen(arguments.host, arguments.port))
        host, port = listening.getsockname()[:2]
        if config.token_env is None and not ipaddress.ip_address(host).is_loopback:
            logger.warning("any machine that reaches %s may use the upstreams' keys: set token_env", host)
        logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
        if not run_server(server, listening, grace=arguments.grace):
            raise OSError("the router could not be made ready")


def _assignments(assignments: Sequence[str]) -> dict[str, str]:
    """Options of a format by name."""
    options = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator:
            raise InputError(f"--set takes NAME=VALUE, got {assignment!r}")
        if options.setdefault(name, value) != value:
            raise InputError(f"--set has {name!r} twice, with different values: leave one out")
    return options


def _say(message: str) -> None:
    print(printable(message))
