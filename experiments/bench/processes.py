"""Processes, for the scripts beside this one: memory of one that runs, and a port for several to meet at."""

from __future__ import annotations

import re
import socket
from pathlib import Path


def anonymous_bytes(process: int | str = "self") -> int:
    """Bytes of a process's memory that no file backs; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return 1024 * int((re.findall(r"RssAnon:\s+(\d+)", status) or ["0"])[0])


def free_port() -> int:
    """Port of the host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
