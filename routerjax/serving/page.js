"use strict";
// Names and prompts of others become text nodes alone: nothing here makes HTML of them.
const SVG = "http://www.w3.org/2000/svg";
const PLOT = { left: 60, right: 730, top: 14, bottom: 222 };
const MOST_SCORES = 10; // of a decision by score and cost that are listed; there may be dozens
const at = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const number = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 0 });
const dollars = (value) => value.toLocaleString("en-US", { style: "currency", currency: "USD", maximumSignificantDigits: 3 });

let token = null; // kept in this page alone
let state = null; // last answer of /status
let threshold = null; // that is looked at; null: that of the server
let decision = null; // last answer of /route
let isDragging = false;

class Refusal extends Error {}

async function ask(path, fields) {
  const headers = { ...(fields && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
  let answer;
  try {
    answer = await fetch(path, fields ? { method: "POST", headers, body: JSON.stringify(fields) } : { headers });
  } catch {
    throw new Refusal("The server does not answer.");
  }
  if (answer.status === 401) {
    at("token-form").hidden = false;
    throw new Refusal(token ? "The token is wrong." : "This server asks for a token.");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refusal(content.error?.message ?? `The server answers with ${answer.status}.`);
  at("token-form").hidden = true;
  return content;
}

// A region that is read aloud is read again when its text is set, so it is set where it differs.
function put(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;
}

function say(problem) {
  put("problem", problem ?? "");
  at("problem").hidden = !problem;
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// JSON has no infinity: the server writes the threshold that sends nothing to the strong model as "inf".
const read = (value) => (value === "inf" ? Infinity : value);
const current = () => threshold ?? read(state.threshold);

// Share of the sorted win probabilities that are at least a threshold.
function share(winProb, least) {
  let low = 0, high = winProb.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (winProb[middle] >= least) high = middle;
    else low = middle + 1;
  }
  return (winProb.length - low) / winProb.length;
}

// Range of thresholds that is drawn: that of the win probabilities, which may lie close together.
function range(winProb) {
  const known = [read(state.threshold), threshold].filter((value) => value !== null && value <= 1);
  if (winProb.length) known.push(winProb[0], winProb.at(-1));
  const low = Math.min(...known), high = Math.max(...known);
  if (!winProb.length || low === high) return [0, 1];
  return [Math.max(0, low - 0.04 * (high - low)), Math.min(1, high + 0.04 * (high - low))];
}

function draw(winProb, [low, high]) {
  const x = (value) => PLOT.left + ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (PLOT.right - PLOT.left);
  const y = (value) => PLOT.bottom - value * (PLOT.bottom - PLOT.top);
  const parts = [];
  for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
    parts.push(shape("path", { class: tick ? "grid" : "axis", d: `M${PLOT.left},${y(tick)}H${PLOT.right}` }));
    parts.push(shape("text", { x: PLOT.left - 8, y: y(tick) + 4, "text-anchor": "end" }, `${100 * tick} %`));
    const value = low + tick * (high - low);
    const label = value.toFixed(Math.min(Math.max(2, 2 - Math.floor(Math.log10(high - low))), 6));
    parts.push(shape("text", { x: x(value), y: PLOT.bottom + 18, "text-anchor": "middle" }, label));
  }
  parts.push(shape("text", { x: (PLOT.left + PLOT.right) / 2, y: PLOT.bottom + 40, "text-anchor": "middle" }, `threshold; share that goes to ${state.strong}`));
  if (winProb.length) {
    let path = `M${x(low)},${y(1)}`;
    winProb.forEach((value, row) => {
      if (value !== winProb[row + 1]) path += `H${x(value).toFixed(2)}V${y((winProb.length - 1 - row) / winProb.length).toFixed(2)}`;
    });
    path += `H${x(high)}`;
    parts.push(shape("path", { class: "area", d: `${path}V${y(0)}H${x(low)}Z` }), shape("path", { class: "line", d: path }));
  }
  const line = (value, name) => shape("path", { class: name, d: `M${x(value)},${PLOT.top}V${PLOT.bottom}` });
  parts.push(line(read(state.threshold), "server"), line(current(), "chosen"));
  if (winProb.length) parts.push(shape("circle", { class: "dot", cx: x(current()), cy: y(share(winProb, current())), r: 5 }));
  const title = at("curve-text");
  at("curve").replaceChildren(title, ...parts);
}

// Dollars of a call of a model, by its prices and so many tokens.
function callDollars(model) {
  const tokens = [at("prompt-tokens"), at("answer-tokens")].map((input) => Math.max(0, Number(input.value) || 0));
  return (tokens[0] * model.prompt_dollars + tokens[1] * model.completion_dollars) / 1e6;
}

function showCurve() {
  if (state.strong === null) return;
  at("curve-section").hidden = false;
  const winProb = state.win_prob, limits = range(winProb), value = current();
  const strong = state.models.find((model) => model.name === state.answering[state.strong]);
  const weak = state.models.find((model) => model.name === state.answering[state.weak]);
  if (!isDragging) {
    [at("slider").min, at("slider").max] = limits;
    at("slider").step = (limits[1] - limits[0]) / 500;
  }
  if (document.activeElement !== at("slider")) at("slider").value = Math.min(value, limits[1]);
  if (document.activeElement !== at("threshold")) at("threshold").value = Number.isFinite(value) ? value : "";
  draw(winProb, limits);
  const seen = winProb.length ? `The last ${number(winProb.length)} win probabilities of ${state.strong} against ${state.weak}.` : "No prompt was routed yet: ask the router above, or send it requests.";
  put("seen", `${seen} The broken line is the server's threshold, ${state.threshold}.`);
  const called = winProb.length ? share(winProb, value) : null;
  put("share-name", `of these prompts to ${state.strong}`);
  put("share", called === null ? "–" : percent(called));
  put("curve-text", called === null ? "No win probability was seen yet." : `At the threshold ${value}, ${percent(called)} of the prompts go to ${state.strong}.`);
  const costs = [strong, weak].map((model) => 1000 * callDollars(model));
  const hasPrices = [strong, weak].some((model) => model.prompt_dollars || model.completion_dollars);
  put("cost-strong", hasPrices ? dollars(costs[0]) : "no prices");
  put("cost-weak", hasPrices ? dollars(costs[1]) : "no prices");
  put("cost", !hasPrices ? "no prices" : called === null ? "–" : dollars(called * costs[0] + (1 - called) * costs[1]));
  const tokens = state.tokens_an_answer ? "Tokens are the means of the answers so far." : "Tokens are assumed: no answer was counted yet.";
  const written = Number.isFinite(value) ? String(value) : "inf";
  const prices = hasPrices ? tokens : "prompt_dollars and completion_dollars in the configuration give costs.";
  put("use", `${prices} A client asks for this threshold by model="router-${written}"; the server takes it by --threshold ${written}.`);
}

function showDecision() {
  if (decision === null) return;
  at("chosen").hidden = false;
  const rows = Object.entries(decision.scores ?? {}).sort((one, other) => other[1] - one[1]);
  const listed = rows.filter(([name], row) => row < MOST_SCORES || name === decision.model);
  at("scores").hidden = !rows.length;
  put("scores-caption", rows.length > listed.length ? `The highest of ${rows.length} scores, in nats` : "Scores, in nats");
  at("scores").tBodies[0].replaceChildren(...listed.map(([name, score]) => {
    const row = element("tr", "");
    row.append(element("th", name, { scope: "row" }), element("td", score.toFixed(4)));
    return row;
  }));
  if (decision.win_prob === null || decision.win_prob === undefined || state === null || state.strong === null) {
    put("model", decision.model);
    put("why", "by its score and its cost.");
    return;
  }
  const isStrong = decision.win_prob >= current();
  put("model", isStrong ? state.strong : state.weak);
  put("why", `by its win probability, ${decision.win_prob.toFixed(4)}, which is ${isStrong ? "at least" : "below"} the threshold ${current()}${threshold === null ? "." : " that is looked at."}`);
}

function showCounts() {
  const facts = [
    ["decisions", number(state.models.reduce((sum, model) => sum + model.policy + model.threshold, 0))],
    ["ms from a request to its decision", state.routing_ms === null ? "–" : state.routing_ms.toFixed(1)],
    ["other requests in progress", number(state.running - 1)],
    ["failed tries of upstreams", number(state.failures)],
    ["answers of another model", number(state.fallbacks)],
  ];
  at("counts").replaceChildren(...facts.map(([name, value]) => {
    const fact = element("div", "");
    fact.append(element("dt", name), element("dd", value));
    return fact;
  }));
  at("models").tBodies[0].replaceChildren(...state.models.map((model) => {
    const row = element("tr", "");
    row.append(element("th", model.name, { scope: "row" }));
    for (const key of ["policy", "threshold", "name_asked", "prompt_tokens", "completion_tokens"]) row.append(element("td", number(model[key])));
    row.append(element("td", model.dollars ? dollars(model.dollars) : "–"));
    return row;
  }));
}

function show() {
  if (state === null) return;
  const among = state.strong === null ? `${state.models.length} models, by score and cost` : `${state.strong} or ${state.weak}, from the win probability ${state.threshold} on`;
  put("summary", `${state.is_ready ? "Ready" : "Starting"}: ${among}. ${state.about}.`);
  at("decide").disabled = !state.is_ready;
  const tokens = state.tokens_an_answer ?? { prompt: 500, completion: 300 };
  for (const [id, value] of [["prompt-tokens", tokens.prompt], ["answer-tokens", tokens.completion]]) {
    if (!at(id).dataset.edited) at(id).value = Math.round(value);
  }
  showCurve();
  showDecision();
  showCounts();
}

async function refresh() {
  try {
    state = await ask("status");
    state.win_prob.sort((one, other) => one - other);
    say(null);
    show();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    say(error.message);
  }
}

async function follow() {
  for (;;) {
    if (!document.hidden && (token !== null || at("token-form").hidden)) await refresh();
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}

function look(value) {
  threshold = value;
  showCurve();
  showDecision();
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  at("decide").disabled = true;
  try {
    decision = await ask("route", { prompt: at("prompt").value });
    await refresh();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    say(error.message);
  } finally {
    at("decide").disabled = false;
  }
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value;
  refresh();
});
at("slider").addEventListener("pointerdown", () => { isDragging = true; });
for (const end of ["pointerup", "pointercancel"]) window.addEventListener(end, () => { isDragging = false; });
at("slider").addEventListener("input", () => look(Number(Number(at("slider").value).toPrecision(6))));
at("threshold").addEventListener("input", () => { if (at("threshold").value !== "" && at("threshold").validity.valid) look(Number(at("threshold").value)); });
at("reset").addEventListener("click", () => { look(null); at("slider").value = Math.min(current(), at("slider").max); });
for (const id of ["prompt-tokens", "answer-tokens"]) at(id).addEventListener("input", () => { at(id).dataset.edited = "yes"; showCurve(); });
follow();
