"""Access log: one JSON object a request, without the text of prompts unless it is asked for."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, TextIO

logger = logging.getLogger(__name__)


@dataclass
class Record:
    """Request as the access log has it; what is None or empty is left out.

    Attributes:
        request_id: that the client is told, see ``/feedback``.
        method, path, status: of HTTP.
        requested: name of the model that the client asked for.
        chosen: model that the router chose.
        model: model that answered.
        failures: models that failed before it, and why.
        win_prob, threshold: of the decision.
        stream: True of a stream.
        routing_seconds: from the request to the decision, waiting included.
        upstream_seconds: to the first token of a stream, to the whole of another answer.
        prompt_tokens, completion_tokens, dollars: as the upstream counts them.
        error: code of the error that ended it; ``disconnected`` where the client went away, ``cut_off`` where the
            server ended first.
        text: that was scored.
        start: time of ``time.perf_counter``; is_sent: True once the answer is; neither is written.
    """

    method: str = ""
    path: str = ""
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: int | None = None
    requested: str | None = None
    chosen: str | None = None
    model: str | None = None
    failures: list[list[str]] = field(default_factory=list)
    win_prob: float | None = None
    threshold: float | None = None
    stream: bool = False
    routing_seconds: float | None = None
    upstream_seconds: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    dollars: float | None = None
    error: str | None = None
    text: str | None = None
    start: float = field(default_factory=time.perf_counter)
    is_sent: bool = False


class AccessLog:
    """Writer of records.

    Args:
        stream: that they are written to; None for no log.
        with_text: write the text that was scored, too.
    """

    def __init__(self, stream: TextIO | None, *, with_text: bool = False) -> None:
        self._stream, self._with_text = stream, with_text

    def write(self, record: Record) -> None:
        """Write a record as one line; where the stream refuses, that is logged, and the server goes on."""
        if self._stream is None:
            return
        fields = dataclasses.asdict(record)
        del fields["start"], fields["is_sent"]
        if not self._with_text:
            del fields["text"]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        seconds = time.perf_counter() - record.start
        line = {"time": now, **{name: _plain(value) for name, value in fields.items() if value not in (None, [], "")}}
        try:
            self._stream.write(json.dumps({**line, "seconds": round(seconds, 6)}) + "\n")
            self._stream.flush()
        except OSError as error:
            logger.error("a request is not in the access log: %s", error.strerror)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "inf" if value == math.inf else round(value, 6)
    return value
