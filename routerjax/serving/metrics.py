"""Metrics of the server in Prometheus' text format; labels are configured models and fixed words."""

from __future__ import annotations

import collections

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

SHORT = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5)
LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
SHARES = tuple(place / 20 for place in range(1, 21))

# Win probabilities that the page draws.
MOST_RECENT = 2000

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """Counters and histograms of one server.

    Attributes:
        decisions: by model, and by what was asked for: ``policy``, ``threshold``, ``name`` (no decision of the router).
        routing: seconds from a request to its decision, waiting included.
        batch_seconds, batch_rows: of the micro-batches.
        win_prob: win probabilities of decisions; recent_win_prob: the last ones themselves.
        first_token, answer: seconds of upstreams, to the first token of a stream and to a whole answer.
        upstream_failures: tries that failed, by reason; retries: tries after them; fallbacks: to another model.
        tokens, dollars: as upstreams count them, at the prices of the configuration; counted: answers that they are of.
        requests: by path and status.
        running: requests that are being answered.
        disconnects: requests whose client went away first.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = self._counter("decisions", "Requests by the model that they were routed to.", "model", "by")
        self.routing = self._histogram("routing_seconds", "Seconds from a request to its decision.", SHORT)
        self.batch_seconds = self._histogram("routing_batch_seconds", "Seconds of a micro-batch.", SHORT)
        self.batch_rows = self._histogram("routing_batch_rows", "Texts of a micro-batch.", (1, 2, 4, 8))
        self.win_prob = self._histogram("win_prob", "Win probabilities of the strong model.", SHARES)
        self.recent_win_prob: collections.deque[float] = collections.deque(maxlen=MOST_RECENT)
        self.first_token = self._histogram("first_token_seconds", "Seconds to a stream's first token.", LONG, "model")
        self.answer = self._histogram("answer_seconds", "Seconds to an answer that is no stream.", LONG, "model")
        self.upstream_failures = self._counter("upstream_failures", "Failed tries.", "model", "reason")
        self.retries = self._counter("retries", "Tries after a failed one.", "model")
        self.fallbacks = self._counter("fallbacks", "Requests sent on to another model.", "model", "to")
        self.tokens = self._counter("tokens", "Tokens, as upstreams count them.", "model", "kind")
        self.dollars = self._counter("dollars", "Price of these tokens.", "model")
        self.counted = self._counter("counted_answers", "Answers whose tokens are counted.", "model")
        self.requests = self._counter("requests", "Requests answered.", "path", "status")
        self.disconnects = self._counter("disconnects", "Requests whose client went away first.")
        self.running = Gauge("routerjax_running_requests", "Requests in progress.", registry=self.registry)

    def observe_batch(self, rows: int, seconds: float) -> None:
        """Count a micro-batch."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def observe_win_prob(self, win_prob: float) -> None:
        """Count the win probability of a decision."""
        self.win_prob.observe(win_prob)
        self.recent_win_prob.append(win_prob)

    def content(self) -> bytes:
        """Return all of them in the text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"routerjax_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"routerjax_{name}", text, labels, registry=self.registry, buckets=buckets)
