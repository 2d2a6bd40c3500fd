"""Page of the server: a prompt box, the curve of the threshold, live counts. One file, that asks this server alone."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Iterator

from prometheus_client import Counter
from starlette.responses import HTMLResponse

from routerjax.serving.config import ServeConfig
from routerjax.serving.metrics import Metrics
from routerjax.serving.text_scoring import TextScorer


def page() -> HTMLResponse:
    """Make the response: its style and its script are in it, and a browser runs and asks nothing else."""
    folder = importlib.resources.files("routerjax.serving")
    text, style, script = ((folder / f"page.{ending}").read_text(encoding="utf-8") for ending in ("html", "css", "js"))
    policy = {
        "default-src": "'none'",
        "style-src": _hash_source(style),
        "script-src": _hash_source(script),
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return HTMLResponse(text.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script), headers=headers)


def status(scorer: TextScorer, config: ServeConfig, metrics: Metrics, *, is_ready: bool) -> dict[str, object]:
    """State of the server, as JSON holds it: the policy, prices, counts, and the last win probabilities.

    Args:
        scorer, config, metrics: of the server.
        is_ready: if decisions are made without compiling.

    Returns:
        ``strong``, ``weak``, ``threshold`` (None of a policy without a pair, ``"inf"`` for never), ``answering``: the
        configured model of each of these; ``models``, each with its prices and counts; ``win_prob``;
        ``tokens_an_answer``, means of the answers that upstreams counted, or None; ``routing_ms``, a mean; ``running``,
        ``failures`` and ``fallbacks``.
    """
    decisions, tokens, dollars = (_counts(counter) for counter in (metrics.decisions, metrics.tokens, metrics.dollars))
    pair = scorer.pair
    names = dict.fromkeys((*config.models, *(labels[0] for labels in decisions)))
    models = []
    for name in names:
        upstream = config.models.get(name)
        models.append(
            {
                "name": name,
                "prompt_dollars": 0.0 if upstream is None else upstream.prompt_dollars,
                "completion_dollars": 0.0 if upstream is None else upstream.completion_dollars,
                "policy": decisions.get((name, "policy"), 0),
                "threshold": decisions.get((name, "threshold"), 0),
                "name_asked": decisions.get((name, "name"), 0),
                "prompt_tokens": tokens.get((name, "prompt"), 0),
                "completion_tokens": tokens.get((name, "completion"), 0),
                "dollars": dollars.get((name,), 0.0),
            }
        )
    answers = sum(_counts(metrics.counted).values())
    means = {
        kind: sum(count for labels, count in tokens.items() if labels[1] == kind) / max(answers, 1)
        for kind in ("prompt", "completion")
    }
    routed, seconds = (_sample(metrics, f"routerjax_routing_seconds_{part}") for part in ("count", "sum"))
    return {
        "is_ready": is_ready,
        "about": scorer.about,
        "strong": None if pair is None else pair.strong,
        "weak": None if pair is None else pair.weak,
        "threshold": None if pair is None else pair.to_dict()["threshold"],
        "answering": {} if pair is None else {model: config.answering(model) for model in (pair.strong, pair.weak)},
        "models": models,
        "win_prob": list(metrics.recent_win_prob),
        "tokens_an_answer": means if answers else None,
        "routing_ms": 1000 * seconds / routed if routed else None,
        "running": _sample(metrics, "routerjax_running_requests"),
        "failures": sum(_counts(metrics.upstream_failures).values()),
        "fallbacks": sum(_counts(metrics.fallbacks).values()),
    }


def _hash_source(content: str) -> str:
    """Source of a content security policy that allows this text alone."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _counts(counter: Counter) -> dict[tuple[str, ...], float]:
    """Values of a counter by its labels, in their order."""
    return dict(_samples(counter))


def _samples(counter: Counter) -> Iterator[tuple[tuple[str, ...], float]]:
    for metric in counter.collect():
        for sample in metric.samples:
            if sample.name.endswith("_total"):
                yield tuple(sample.labels.values()), sample.value


def _sample(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0
