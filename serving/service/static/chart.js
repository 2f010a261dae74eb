// Verdict, histogram and tables: everything that shows numbers.

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

export function tag(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

export function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  return Number(value).toLocaleString("en", { maximumSignificantDigits: digits });
}

/** Says in words what a row's p-value means; `rate` is the share of normal rows that may be flagged. */
export function showVerdict(element, row, rate) {
  element.classList.remove("alarm", "calm");
  if (row.p_value === null) {
    element.replaceChildren(tag("strong", {}, "Nothing to judge"), "Every value is missing.");
    return;
  }
  element.classList.add(row.is_outlier ? "alarm" : "calm");
  const among = row.p_value < 0.001 ? "fewer than 1 in 1,000" : `${number(100 * row.p_value, 2)} %`;
  element.replaceChildren(
    tag("strong", {}, row.is_outlier ? "Anomalous" : "Looks normal"),
    `${among} of normal samples score this high (p = ${number(row.p_value, 2)}; flagged at ${number(rate, 2)} or less).`,
  );
  if (row.clipped) element.append(tag("div", { class: "small" }, `${row.clipped} values lie outside the model's range and were clipped.`));
}

/** Histogram of the scores of held-out normal rows that miss as much, with the sample's own score as a line. */
export function showHistogram(element, calibration, score, missing) {
  const bin = calibration.find(({ missing_up_to }) => missing <= missing_up_to) ?? calibration.at(-1);
  const { edges, counts, rows, threshold } = bin;
  const width = 420, height = 126, left = 8, right = 8, bottom = 32, top = 16;
  const low = Math.min(edges[0], score ?? edges[0]), high = Math.max(edges.at(-1), score ?? edges[0]);
  const x = (value) => left + ((value - low) / (high - low || 1)) * (width - left - right);
  const tallest = Math.max(...counts, 1);
  const y = (count) => top + (1 - count / tallest) * (height - top - bottom);
  const bars = counts.map((count, i) => svg("rect", {
    x: x(edges[i]), width: Math.max(0.5, x(edges[i + 1]) - x(edges[i]) - 1), y: y(count), height: height - bottom - y(count),
    ...(threshold !== null && edges[i] >= threshold ? { class: "beyond" } : {}),
  }));
  const kind = missing ? "normal samples with as many gaps" : "held-out normal samples";
  const label = `Scores of ${rows} ${kind}` + (score === null ? "" : `; this sample scores ${number(score)}`);
  const chart = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    svg("g", { class: "bins" }, ...bars),
    svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    svg("text", { x: left, y: height - 18 }, number(low, 3)),
    svg("text", { x: width - right, y: height - 18, "text-anchor": "end" }, number(high, 3)),
    svg("text", { x: width / 2, y: height - 4, "text-anchor": "middle" }, `score of ${rows.toLocaleString("en")} ${kind}`));
  if (score !== null && score !== undefined) {
    const anchor = x(score) > width * 0.7 ? "end" : "start";
    chart.append(
      svg("line", { class: "marker", x1: x(score), x2: x(score), y1: 2, y2: height - bottom }),
      svg("text", { x: x(score) + (anchor === "end" ? -5 : 5), y: 11, "text-anchor": anchor }, `this sample: ${number(score)}`));
  }
  element.replaceChildren(chart);
}

export function showScores(element, scores) {
  const rows = Object.entries(scores).map(([name, value]) => tag("tr", {}, tag("td", {}, name), tag("td", {}, number(value))));
  element.replaceChildren(tag("details", {}, tag("summary", {}, "All scores"), table(["Score", "Value"], rows)));
}

export function table(titles, rows) {
  const head = tag("thead", {}, tag("tr", {}, ...titles.map((title) => tag("th", { scope: "col" }, title))));
  return tag("div", { class: "wide" }, tag("table", {}, head, tag("tbody", {}, ...rows)));
}

export function meter(share) {
  const bar = tag("span");
  bar.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return tag("td", { class: "meter", "aria-hidden": "true" }, bar);
}
