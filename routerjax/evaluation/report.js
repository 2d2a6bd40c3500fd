"use strict";

// The page's only script: the cost calculator. These four know nothing of the page. A price that is not filled in is
// NaN, and so is every cost that depends on it.
const price = (text) => (text === "" ? NaN : Math.max(0, Number(text) || 0));
const dollars = (value) =>
  Number.isNaN(value) ? "–" : "$" + value.toLocaleString("en-US", { maximumFractionDigits: value < 100 ? 2 : 0 });
const requestCost = (inputTokens, outputTokens, inputPrice, outputPrice) =>
  (inputTokens * inputPrice + outputTokens * outputPrice) / 1e6;
const monthlyCost = (requests, share, strong, weak) => 30 * requests * (share * strong + (1 - share) * weak);

const start = () => {
  const benchmarks = JSON.parse(document.getElementById("curves").textContent);
  const form = document.getElementById("calculator");
  const read = (name) => Math.max(0, Number(form.elements[name].value) || 0);

  const update = () => {
    const [strong, weak] = ["strong", "weak"].map((model) =>
      requestCost(
        read("input_tokens"), read("output_tokens"),
        price(form.elements[model + "_input"].value), price(form.elements[model + "_output"].value)));
    const always = monthlyCost(read("requests"), 1, strong, weak);
    for (const row of form.querySelectorAll("tbody tr")) {
      const benchmark = benchmarks[Number(row.closest("tbody").dataset.benchmark)];
      const put = (name, text) => { row.querySelector("." + name).textContent = text; };
      const slider = row.querySelector("input");
      const share = slider ? Number(slider.value) / 100 : Number(row.dataset.share);
      const cost = monthlyCost(read("requests"), share, strong, weak);
      if (slider) {
        const curve = benchmark.routers[Number(row.dataset.router)];
        const [quality, threshold] = [curve.quality[Number(slider.value)], curve.threshold[Number(slider.value)]];
        put("share", slider.value + " %");
        put("threshold", threshold === null ? "none" : threshold.toPrecision(4));
        put("quality", quality.toFixed(4));
        put("recovered", (100 * (quality - benchmark.weak) / (benchmark.strong - benchmark.weak)).toFixed(1) + " %");
      }
      put("cost", dollars(cost));
      put("saving", always > 0 ? (100 * (1 - cost / always)).toFixed(1) + " %" : "");
    }
  };
  const choose = () => {
    for (const body of form.querySelectorAll("tbody")) body.hidden = body.dataset.benchmark !== form.elements.benchmark.value;
  };
  form.addEventListener("input", update);
  form.elements.benchmark.addEventListener("change", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  choose();
  update();
};

if (typeof document !== "undefined") start();
