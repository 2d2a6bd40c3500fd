"""End exports at random moments: each leaves nothing under its name, or a whole bundle.

    python experiments/bench/export_kills.py --kills 20 --formats onnx stablehlo vector --output FILE.md

SIGKILL comes at a random moment between the start of ``routerjax export`` and the time that a whole export took. What
is there under the output's name is then verified as ``routerjax verify`` does. The router is matrix factorisation on a
tiny encoder, so that most of the time is imports, tracing, conversion and verification, as it is of any router.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from routerjax import save_router
from routerjax.runtime import load
from tests.routers import tiny_router


def export(router: Path, folder: Path, format: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "routerjax.cli",
        "export",
        str(router),
        "--format",
        format,
        "--output",
        str(folder),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--formats", nargs="+", default=["onnx", "stablehlo", "vector"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        save_router(tiny_router(root, threshold=0.5), root / "router")
        seconds = {}
        for format in arguments.formats:
            began = time.time()
            if export(root / "router", root / f"whole_{format}", format).wait() != 0:
                raise SystemExit(f"the export to {format} fails")
            seconds[format] = time.time() - began
        counts = {"nothing": 0, "a whole bundle": 0}
        begun = 0
        for kill in range(arguments.kills):
            format = arguments.formats[kill % len(arguments.formats)]
            folder = root / f"killed_{kill}"
            process = export(root / "router", folder, format)
            time.sleep(draw.uniform(0, 1.05 * seconds[format]))
            os.killpg(process.pid, signal.SIGKILL)  # of this process and of those that it started
            process.wait()
            begun += bool(list(root.glob(f".killed_{kill}.*.tmp")))
            if folder.exists():
                load(folder).verify()
            counts["a whole bundle" if folder.exists() else "nothing"] += 1
    text = (
        f"Measured on {datetime.date.today()} by `python experiments/bench/export_kills.py --kills {arguments.kills} "
        f"--formats {' '.join(arguments.formats)} --output FILE.md`: of {arguments.kills} exports that were ended "
        f"by SIGKILL at random moments, {counts['nothing']} left nothing under the output's name and "
        f"{counts['a whole bundle']} a whole bundle, which verifies; {begun} were ended while the bundle was written "
        "or compared, and left a hidden folder `.NAME.*.tmp` beside it.\n"
    )
    arguments.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
