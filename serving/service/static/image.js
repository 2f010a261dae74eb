// The page of an image model: paint, score, fill, walk.

import { infer, latest, tensor } from "./api.js";
import { number, showHistogram, showScores, showVerdict, svg, tag } from "./chart.js";
import { readPicture, show, showHeat, showSample } from "./picture.js";

const WALK = 3.5;

export function imagePage(model, report) {
  const { schema } = model, plane = schema.height * schema.width;
  const at = (id) => document.getElementById(id);
  const sample = { values: new Float32Array(schema.channels * plane).fill(schema.low), observed: new Uint8Array(plane).fill(1) };
  const cursor = { x: Math.floor(schema.width / 2), y: Math.floor(schema.height / 2), size: 1, shown: false };
  const walk = { z: new Float64Array(model.latent_size), own: null };
  const imputes = model.entries.includes("impute");
  if (!imputes) at("gaps-card").hidden = true;

  const inputs = () => [
    tensor("x", schema.dtype === "uint8" ? "UINT8" : "FP32", [1, schema.channels, schema.height, schema.width], sample.values),
    tensor("observed", "BOOL", [1, schema.channels, schema.height, schema.width],
      Array.from({ length: schema.channels }, () => Array.from(sample.observed, Boolean)).flat()),
  ];

  const hidden = () => plane - sample.observed.reduce((sum, seen) => sum + seen, 0);

  const score = latest(async (signal) => {
    const [scored, explained, encoded] = await Promise.all([
      infer(model.name, inputs(), signal),
      infer(`${model.name}-explain`, inputs(), signal),
      infer(`${model.name}-encode`, inputs(), signal),
    ]);
    const row = Object.fromEntries(Object.entries(scored).map(([name, output]) => [name, output.data[0]]));
    row.is_outlier = row.p_value !== null && row.p_value <= model.false_alarm_rate;
    showVerdict(at("verdict"), row, model.false_alarm_rate);
    showHistogram(at("histogram"), model.calibration, row.score, hidden() / plane);
    showScores(at("scores"), Object.fromEntries(model.scores.map((name) => [name, row[`score_${name}`]])));
    show(at("reconstruction"), explained.reconstruction.data, schema);
    const nats = showHeat(at("heatmap"), explained.contributions.data, schema);
    at("heatmap-note").textContent = `Where it was surprised (brightest: ${number(nats, 2)} nats)`;
    walk.own = Float64Array.from(encoded.mean.data);
    home();
  }, report);

  const impute = latest(async (signal) => {
    const gaps = hidden();
    const filled = await infer(`${model.name}-impute`, inputs(), signal);
    show(at("imputed"), filled.mean.data, schema);
    const std = showHeat(at("spread"), filled.std.data, schema);
    at("spread-note").textContent = gaps ? `How unsure it is (brightest: \u00b1${number(std / schema.channels, 2)})` : "How unsure it is";
    const flag = filled.flags?.data[0];
    at("gaps-note").textContent = !gaps ? "Hide some pixels to see them filled."
      : `${gaps} of ${plane} pixels are hidden; effective sample size ${number(filled.ess.data[0], 3)}.`
        + (flag === "low_ess" ? " Few draws agree with what is visible: trust this less." : "")
        + (flag === "nothing_observed" ? " Nothing is visible: this is the model's average picture." : "");
  }, report);

  let timer = 0;
  function changed() {
    redraw();
    clearTimeout(timer);
    timer = setTimeout(() => { score(); if (imputes) impute(); }, 120);
  }
  const redraw = () => showSample(at("sample"), sample.values, sample.observed, schema, cursor.shown ? cursor : null);

  function paint(x, y) {
    const brush = document.querySelector("input[name=brush]:checked").value;
    for (let row = y; row < Math.min(schema.height, y + cursor.size); row++) {
      for (let column = x; column < Math.min(schema.width, x + cursor.size); column++) {
        const i = row * schema.width + column;
        sample.observed[i] = brush === "hide" ? 0 : 1;
        if (brush !== "draw" && brush !== "erase") continue;
        for (let c = 0; c < schema.channels; c++) sample.values[c * plane + i] = brush === "draw" ? schema.high : schema.low;
      }
    }
    changed();
  }

  wirePainting(at("sample"), schema, cursor, paint, redraw);
  at("size").addEventListener("input", (event) => { cursor.size = Number(event.target.value); redraw(); });
  at("size").max = Math.max(2, Math.floor(Math.max(schema.height, schema.width) / 3));
  if (schema.width > 16) { cursor.size = 3; at("size").value = 3; }
  const mask = (keep) => () => { sample.observed = sample.observed.map((_, i) => (keep(i) ? 1 : 0)); changed(); };
  at("lower").addEventListener("click", mask((i) => i < plane / 2));
  at("scatter").addEventListener("click", mask(() => Math.random() < 0.5));
  at("show").addEventListener("click", mask(() => true));
  at("clear").addEventListener("click", () => { sample.values.fill(schema.low); mask(() => true)(); });

  const accept = latest(async (_, blob) => { Object.assign(sample, await readPicture(blob, schema)); changed(); }, report);
  at("file").addEventListener("change", (event) => event.target.files[0] && accept(event.target.files[0]));
  wireDrop(at("drop"), accept);

  const decode = (z, signal) => infer(`${model.name}-decode`, [tensor("z", "FP32", [1, model.latent_size], z)], signal);
  const dream = latest(async (signal) => {
    const dreamt = await decode(Float64Array.from({ length: model.latent_size }, normal), signal);
    sample.values = Float32Array.from(dreamt.reconstruction.data, schema.dtype === "uint8" ? Math.round : undefined);
    sample.observed.fill(1);
    changed();
  }, report);
  at("dream").addEventListener("click", dream);

  const pad = wirePad(at("pad"), at("axis-x"), at("axis-y"), model.latent_size, walk, latest(async (signal) => {
    at("where").textContent = `z${pad.axes[0] + 1} = ${number(walk.z[pad.axes[0]], 2)}, z${pad.axes[1] + 1} = ${number(walk.z[pad.axes[1]], 2)}`;
    const decoded = await decode(walk.z, signal);
    show(at("decoded"), decoded.reconstruction.data, schema);
  }, report));
  function home() { walk.z = Float64Array.from(walk.own); pad.moved(); }
  at("home").addEventListener("click", () => walk.own && home());

  redraw();
  if (imputes) dream(); else changed();
}

function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

function wirePainting(canvas, schema, cursor, paint, redraw) {
  let last = "";
  const pixel = (event) => {
    const box = canvas.getBoundingClientRect(), back = Math.floor((cursor.size - 1) / 2);
    const place = (offset, length, pixels) => Math.floor((offset / length) * pixels) - back;
    return [place(event.clientX - box.left, box.width, schema.width), place(event.clientY - box.top, box.height, schema.height)]
      .map((value) => Math.max(0, value));
  };
  const dab = (event) => {
    const spot = pixel(event);
    if (spot.join() !== last) paint(...spot);
    last = spot.join();
  };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); last = ""; cursor.shown = false; dab(event); });
  canvas.addEventListener("pointermove", (event) => { if (event.buttons) dab(event); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step) {
      cursor.x = Math.max(0, Math.min(schema.width - 1, cursor.x + step[0]));
      cursor.y = Math.max(0, Math.min(schema.height - 1, cursor.y + step[1]));
    } else if (event.key === " ") paint(cursor.x, cursor.y);
    else return;
    event.preventDefault();
    cursor.shown = true;
    redraw();
  });
  canvas.addEventListener("blur", () => { cursor.shown = false; redraw(); });
}

function wireDrop(area, accept) {
  area.addEventListener("dragover", (event) => { event.preventDefault(); area.classList.add("over"); });
  area.addEventListener("dragleave", () => area.classList.remove("over"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    area.classList.remove("over");
    if (event.dataTransfer.files[0]) accept(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) accept(file);
  });
}

function wirePad(pad, selectX, selectY, size, walk, moved) {
  const axes = [0, Math.min(1, size - 1)];
  const dot = svg("circle", { class: "dot", r: 0.18 });
  pad.append(...[1, 2, 3].map((r) => svg("circle", { class: "grid", r })),
    svg("path", { class: "grid", d: "M-4 0H4M0-4V4" }), dot);
  const refresh = () => {
    dot.setAttribute("cx", clamp(walk.z[axes[0]]));
    dot.setAttribute("cy", -clamp(walk.z[axes[1]]));
    moved();
  };
  [selectX, selectY].forEach((select, axis) => {
    select.append(...Array.from({ length: size }, (_, i) => tag("option", { value: i }, `z${i + 1}`)));
    select.value = axes[axis];
    select.addEventListener("change", () => { axes[axis] = Number(select.value); refresh(); });
  });
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = pad.getBoundingClientRect();
    walk.z[axes[0]] = clamp(((event.clientX - box.left) / box.width) * 8 - 4);
    walk.z[axes[1]] = clamp(4 - ((event.clientY - box.top) / box.height) * 8);
    refresh();
  };
  pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); drag(event); });
  pad.addEventListener("pointermove", drag);
  pad.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 1], ArrowDown: [1, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    walk.z[axes[step[0]]] = clamp(walk.z[axes[step[0]]] + step[1] * 0.2);
    refresh();
  });
  return { axes, moved: refresh };
}

const clamp = (value) => Math.max(-WALK, Math.min(WALK, value));
