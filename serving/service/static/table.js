// The page of a table model: a form, ranked columns, filled gaps.

import { ask, latest } from "./api.js";
import { meter, number, showHistogram, showScores, showVerdict, table, tag } from "./chart.js";

const COLUMNS_SHOWN = 30;
const DRAWS = 100;

export function tablePage(model, report) {
  const at = (id) => document.getElementById(id);
  const imputes = model.entries.includes("impute");
  const fields = new Map(model.schema.columns.map((column) => [column.name, field(column)]));
  at("fields").append(...[...fields].map(([name, input]) => tag("label", {}, name, input)));
  at("gaps-card").hidden = at("example").hidden = !imputes;

  const row = () => Object.fromEntries([...fields].map(([name, input]) => [name, read(input)]));

  const update = latest(async (signal) => {
    const given = row(), body = { rows: [given] };
    const [scored, explained] = await Promise.all([ask("v1/score", body, signal), ask("v1/explain", body, signal)]);
    const [verdict] = scored.results;
    showVerdict(at("verdict"), verdict, scored.alpha);
    const gaps = Object.values(given).filter((value) => value === null).length;
    showHistogram(at("histogram"), model.calibration, verdict.score, gaps / fields.size);
    showScores(at("scores"), verdict.scores);
    showContributions(at("contributions"), explained.results[0], given);
    if (imputes) showFilled(at, (await ask("v1/impute", { ...body, draws: DRAWS }, signal)).results[0], given);
  }, report);

  let timer = 0;
  const changed = () => { clearTimeout(timer); timer = setTimeout(update, 150); };
  const set = (values) => {
    for (const [name, input] of fields) input.value = rounded(values[name]);
    changed();
  };
  // A row that the model itself draws, given nothing: no training row is shown.
  const example = latest(async (signal) => {
    const nothing = Object.fromEntries([...fields.keys()].map((name) => [name, null]));
    const seed = Math.floor(Math.random() * 1e9);
    const drawn = await ask("v1/impute", { rows: [nothing], draws: 1, seed }, signal);
    set(drawn.results[0].draws[0]);
  }, report);

  at("fields").addEventListener("input", changed);
  at("fields").addEventListener("submit", (event) => event.preventDefault());
  at("example").addEventListener("click", () => example());
  at("forget").addEventListener("click", () => set({}));
  if (imputes) example(); else changed();
}

function field(column) {
  if (column.categories?.length) {
    const options = column.categories.map((category) => tag("option", { value: category }, String(category)));
    return tag("select", { "data-text": "" }, tag("option", { value: "" }, "missing"), ...options);
  }
  return tag("input", { type: "number", step: "any", placeholder: "missing", inputmode: "decimal" });
}

function read(input) {
  if (input.value === "") return null;
  return "text" in input.dataset ? input.value : Number(input.value);
}

const rounded = (value) => (typeof value === "number" ? Number(value.toPrecision(5)) : value ?? "");

function showContributions(element, explained, given) {
  const ranked = Object.entries(explained.contributions).filter(([name]) => given[name] !== null).sort((a, b) => b[1] - a[1]);
  const top = Math.max(...ranked.map(([, nats]) => nats), 1e-9);
  element.replaceChildren(table(["Column", "Nats", "", "Value", "Expected"],
    ranked.slice(0, COLUMNS_SHOWN).map(([name, nats]) => tag("tr", {}, tag("td", {}, name), tag("td", {}, number(nats, 3)),
      meter(nats / top), tag("td", {}, say(given[name])), tag("td", {}, say(explained.expected[name]))))));
  if (ranked.length > COLUMNS_SHOWN) element.append(tag("p", { class: "quiet small" }, `and ${ranked.length - COLUMNS_SHOWN} more columns`));
}

function showFilled(at, filled, given) {
  const gaps = Object.keys(given).filter((name) => given[name] === null);
  at("gaps-note").textContent = !gaps.length ? "Empty a field to see it filled."
    : `${gaps.length} of ${Object.keys(given).length} values are missing; effective sample size ${number(filled.ess, 3)}.`
      + (filled.flag === "low_ess" ? " Few draws agree with what is given: trust this less." : "")
      + (filled.flag === "nothing_observed" ? " Nothing is given: these are the model's averages." : "");
  at("imputed").replaceChildren(...(gaps.length ? [table(["Column", "Filled with", `Nine of ten of ${DRAWS} draws`], gaps.map((name) =>
    tag("tr", {}, tag("td", {}, name), tag("td", {}, say(filled.values[name])),
      tag("td", {}, range(filled.draws.map((draw) => draw[name]))))))] : []));
}

/** The middle 90 % of numbers; of categories the commonest, with their shares. */
function range(draws) {
  if (draws.every((value) => typeof value === "number")) {
    const sorted = [...draws].sort((a, b) => a - b), cut = Math.floor(0.05 * sorted.length);
    return `${number(sorted[cut])} to ${number(sorted.at(-1 - cut))}`;
  }
  const counts = new Map();
  draws.forEach((value) => counts.set(value, (counts.get(value) ?? 0) + 1));
  return [...counts].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([value, n]) => `${value} ${number((100 * n) / draws.length, 2)} %`).join(", ");
}

const say = (value) => (typeof value === "number" ? number(value) : value ?? "\u2013");
