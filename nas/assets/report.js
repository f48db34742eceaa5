"use strict";
// Lays out the data that nas/page.py wrote into the page. Text goes in as text nodes only.

const DATA = JSON.parse(document.getElementById("data").textContent);
const STUDIES = DATA.studies;
const AXES = { size_kb: "KB", latency_ms: "Latency", macs: "MACs", peak_ram_kb: "RAM" };
const SHADES = { complete: 100, repeated: 68, stopped: 46, infeasible: 27, failed: 14 };
const $ = (id) => document.getElementById(id);
const NONE = "\u2013";

// --- small tools

function node(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((c) => c !== null && c !== undefined));
  return made;
}

const known = (v) => v !== null && v !== undefined;
/** Three figures as the terminal prints them, more for whole numbers: 0.420, 8.60, 38.2, 1,234. */
const figures = (v) =>
  !known(v) ? NONE : Math.abs(v) >= 99.95 ? Math.round(v).toLocaleString("en") : v ? v.toPrecision(3) : "0";
const whole = (v) => (known(v) ? v.toLocaleString("en") : NONE);
const percent = (v) => (known(v) ? (100 * v).toFixed(1) : NONE);
const kb = (bytes) => (known(bytes) ? figures(bytes / 1024) + " KB" : NONE);
const millions = (v) => (known(v) ? figures(v / 1e6) + " M" : NONE);
/** No line break inside a figure and its unit or inside a range. */
const tidy = (text) =>
  text.replace(/ (%|KB|ms|points)/g, "\u00a0$1").replace(/(\d)-(\d)/g, "$1\u2060\u2013\u2060$2");
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

/** One trial as an object, from the columns. */
function trialOf(study, index) {
  const columns = STUDIES[study].columns;
  return Object.fromEntries(Object.keys(columns).map((key) => [key, columns[key][index]]));
}

const interval = (t) => `${percent(t.accuracy_low)}\u2013${percent(t.accuracy_high)}`;
const milliseconds = (t) => (known(t.latency_ms) ? figures(t.latency_ms) + " ms" : NONE);
const isEstimate = (t) => t.latency_kind === "estimated";
/** The stages in short: "conv 16, ds 3x32" is a plain convolution, then three blocks of 32. */
const blocks = (t) => t.architecture.split("/").slice(1, -2).map((stage) => {
  const [kind, ...keys] = stage.split("_");
  const value = (letter) => keys.find((k) => k.startsWith(letter))?.slice(1) || "1";
  return `${kind} ${value("n") > 1 ? value("n") + "\u00d7" : ""}${value("c")}`;
}).join(", ");
const scheme = (t) => t.architecture.split("/").pop();
const breakable = (text) => text.split("/").flatMap((p, i) => (i ? ["/", node("wbr"), p] : [p]));
const swatch = (study) => node("span", { class: "swatch", style: `background:var(--study${study % 4})` });
const several = STUDIES.length > 1;

function table(heads, rows, attributes) {
  const cell = (tag, value, text) => {
    const [content, style] = Array.isArray(value) ? value : [value, ""];
    return node(tag, { class: [text ? "text" : "", style].join(" ").trim() || null }, content);
  };
  const left = heads.map((h) => h.startsWith("<"));
  const head = heads.map((h, i) => cell("th", h.replace("<", ""), left[i]));
  const body = rows.map(([attrs, ...cells]) =>
    node("tr", attrs, cells.map((c, i) => cell("td", c, left[i]))));
  return node("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table" },
    node("table", attributes, node("thead", null, node("tr", null, head)), node("tbody", null, body)));
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = node("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

const copyable = (label, text) =>
  node("div", { class: "line" }, node("code", null, breakable(text)),
    node("button", { class: "copy", type: "button", "aria-label": `Copy ${label}`,
      onclick: (event) => copy(text, event.currentTarget) }, "Copy"));

const trialButton = (study, index, text) =>
  node("button", { class: "trial", type: "button", onclick: () => show(study, index, true) },
    text || `${trialOf(study, index).trial}`);

// --- the head

function head() {
  document.body.classList.toggle("several", several);
  STUDIES.forEach((study, i) => {
    $("answers").append(node("div", { class: "study" }, node("h1", null,
      several ? swatch(i) : null, several ? study.name + ": " : "", tidy(study.answer))));
    if (study.note) $("notes").append(node("p", { class: "note" }, `${several ? study.name + ": " : ""}${study.note}`));
    if (study.caveat && !several) $("notes").append(node("p", { class: "caveat" }, tidy(study.caveat)));
    const facts = Object.entries(study.facts).map(([key, value]) =>
      node("div", null, node("dt", null, key), node("dd", null, value)));
    if (several) facts.unshift(node("div", null, node("dt", null, "Study"), node("dd", null, swatch(i), study.name)));
    $("facts").append(node("dl", { class: "facts" }, facts));
  });
  if (DATA.warning) $("notes").prepend(node("p", { class: "note" }, DATA.warning));
}

// --- plots

/** A copy of a figure with every "$name" colour as the style sheet has it now. */
function painted(part) {
  if (typeof part === "string") return part.startsWith("$") ? css(part.slice(1)) : part;
  if (Array.isArray(part)) return typeof part[0] === "object" ? part.map(painted) : part;
  if (part === null || typeof part !== "object") return part;
  return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, painted(value)]));
}

function hasWebGL() {
  const gl = document.createElement("canvas").getContext("webgl");
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return Boolean(gl);
}

const CONFIG = { displaylogo: false, responsive: true, displayModeBar: "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "toImage"] };
const narrow = () => innerWidth < 600;

function draw(id, figure) {
  if (!window.Plotly) return; // its script has not run yet
  const { data, layout } = painted(figure);
  for (const t of data) if (t.x.length > 1000 && hasWebGL()) t.type = "scattergl";
  // On a phone the names of the published networks would cover the front; pointing shows them.
  for (const t of data) if (narrow() && t.text) t.mode = "markers";
  layout.dragmode = narrow() ? false : "zoom";
  if (matchMedia("print").matches) layout.width = 690; // A4; a plot cannot follow the paper itself
  Plotly.react($(id), data, layout, CONFIG);
}

let axis = "size_kb";
let shown = null; // [study, index] of the open card

function drawFront() {
  const figure = DATA.figures[axis];
  draw("chart", { data: [...figure.data, selection()], layout: figure.layout });
}

/** The open card's trial as a mark of its own, empty when it has no place on this axis. */
function selection() {
  const mark = { type: "scatter", mode: "markers", hoverinfo: "skip", showlegend: false, x: [], y: [],
    marker: { color: "$ink", size: 11, symbol: "circle" } };
  if (!shown) return mark;
  for (const t of DATA.figures[axis].data) {
    const at = t.meta === shown[0] ? t.customdata.indexOf(shown[1]) : -1;
    if (at >= 0) return { ...mark, x: [t.x[at]], y: [t.y[at]] };
  }
  return mark;
}

function axisSwitch() {
  for (const [key, label] of Object.entries(AXES)) {
    if (!DATA.figures[key].data.length) continue; // no trial or mark has a figure for it
    $("axis").append(node("label", null,
      node("input", { type: "radio", name: "axis", value: key, onchange: () => setAxis(key) }), label));
  }
}

function setAxis(key) {
  axis = key;
  $("axis").querySelectorAll("input").forEach((input) => (input.checked = input.value === key));
  drawFront();
  remember();
}

function listen() {
  const chart = $("chart");
  chart.on("plotly_hover", ({ points: [point], event }) => showTip(point, event));
  chart.on("plotly_unhover", () => ($("tip").hidden = true));
  chart.on("plotly_click", ({ points: [point] }) => {
    if (known(point.data.meta)) show(point.data.meta, point.customdata, true);
  });
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    stepAlong(step);
  });
}

function stepAlong(step) {
  const stops = DATA.figures[axis].data.filter((t) => t.error_y)
    .flatMap((t) => t.customdata.map((index) => [t.meta, index]));
  const here = stops.findIndex(([s, i]) => shown && s === shown[0] && i === shown[1]);
  const next = stops[here < 0 ? 0 : Math.min(Math.max(here + step, 0), stops.length - 1)];
  if (next) show(...next, false);
}

function showTip(point, event) {
  const tip = $("tip");
  tip.replaceChildren(...(known(point.data.meta)
    ? tipOf(point.data.meta, point.customdata) : [point.data.hovertext[point.pointNumber]]));
  tip.hidden = false;
  const left = event.clientX + 16, top = event.clientY + 14;
  tip.style.left = Math.max(6, Math.min(left, innerWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = (top + tip.offsetHeight > innerHeight ? top - tip.offsetHeight - 28 : top) + "px";
}

function tipOf(study, index) {
  const t = trialOf(study, index);
  const lows = t.lowest.map(([name, share]) => `${name} ${percent(share)}`).join(", ");
  const accuracy = known(t.accuracy) ? `${percent(t.accuracy)} % (${interval(t)})` : `stopped: ${t.reason}`;
  const lines = [
    [node("b", null, `${several ? STUDIES[study].name + ", t" : "T"}rial ${t.trial}`), ` ${accuracy}`],
    [`${figures(t.size_kb)} KB, ${milliseconds(t)}${isEstimate(t) ? " (estimated)" : ""}, ` +
      `${millions(t.macs)} MACs, ${kb(t.peak_ram_bytes)} RAM`],
    lows ? [`lowest: ${lows} %`] : [],
  ];
  return [...lines.map((line) => node("div", null, line)), node("code", null, breakable(t.architecture))];
}

// --- the card

function show(study, index, byUser) {
  shown = [study, index];
  $("card").replaceChildren(...cardOf(study, index));
  document.querySelectorAll("tr[data-trial]").forEach((row) =>
    row.classList.toggle("open", row.dataset.trial === `${study}/${index}`));
  drawFront();
  remember();
  if (byUser && innerWidth < 1100) $("card").scrollIntoView({ block: "start" });
  if (byUser) $("card").focus({ preventScroll: true });
}

function cardOf(study, index) {
  const s = STUDIES[study], t = trialOf(study, index), detail = s.details[index] || {};
  const parts = [
    node("h2", { id: "card-title" }, several ? `${s.name}, trial ${t.trial}` : `Trial ${t.trial}`),
    node("div", { class: "tags" }, tags(s, t, index).map((text) => node("span", null, text))),
    t.reason ? node("p", { class: "hint" }, t.reason) : null,
    node("dl", { class: "figures" }, figuresOf(s, t, detail)),
    t.state === "complete" ? titled("Ship it", copyable("the export command", s.export + t.trial)) : null,
    titled("Architecture", copyable("the architecture", t.architecture)),
    lossOf(t),
    detail.rungs?.length > 1 ? titled("Accuracy while training", rungs(detail.rungs)) : null,
    weakest("Weakest classes", t.lowest),
    weakest("Weakest groups", detail.groups),
    detail.confusion?.length ? titled("Confusion, rows are the truth", confusion(s.classes, detail.confusion)) : null,
    detail.layers?.length ? titled("Layers", layers(detail.layers)) : null,
  ];
  return parts.flat().filter(Boolean);
}

const titled = (text, body) => [node("h3", null, text), body];

function tags(s, t, index) {
  return [
    s.ship === index ? "recommended" : null,
    s.front.includes(index) ? "on the front" : null,
    t.state === "complete" ? null : t.state,
    scheme(t).replaceAll("_", " "),
  ].filter(Boolean);
}

function figuresOf(s, t, detail) {
  const spread = known(t.latency_p95_ms) ? `median ${figures(t.latency_median_ms)}, p95 ${figures(t.latency_p95_ms)}` : "";
  const rows = [
    ["Accuracy", known(t.accuracy) ? percent(t.accuracy) + " %" : NONE, known(t.accuracy) ? interval(t) : ""],
    detail.test ? ["Test split", percent(detail.test[0]) + " %", `${percent(detail.test[1])}\u2013${percent(detail.test[2])}`] : null,
    [s.size, known(t.size_kb) ? figures(t.size_kb) + " KB" : NONE,
      known(t.file_bytes) ? `file ${whole(t.file_bytes)} B` : "estimated"],
    ["Latency", milliseconds(t), isEstimate(t) ? "estimated" : spread],
    ["MACs", millions(t.macs), ""],
    ["Peak RAM", kb(t.peak_ram_bytes), "estimated"],
    ["Parameters", whole(t.parameters), known(t.parameter_bytes) ? kb(t.parameter_bytes) : ""],
    ["Trial took", figures(t.seconds) + " s", ""],
  ];
  return rows.filter(Boolean).map(([name, value, small]) =>
    node("div", null, node("dt", null, name), node("dd", null, value, small ? node("small", null, small) : null)));
}

function lossOf(t) {
  if (!known(t.float_accuracy) || !known(t.accuracy) || scheme(t) === "float32") return null;
  const change = 100 * (t.accuracy - t.float_accuracy);
  const words = `${percent(t.float_accuracy)} % in float, ${percent(t.accuracy)} % as ` +
    `${scheme(t).split("_")[0]}: ${change < 0 ? "\u2212" : "+"}${Math.abs(change).toFixed(1)} points`;
  return titled("What the number format costs", node("p", null, words));
}

const weakest = (title, rows) => rows?.length
  ? titled(title, node("p", null, rows.map(([name, share]) => `${name} ${percent(share)} %`).join(", "))) : null;

function rungs(points) {
  const make = (tag, attributes, text) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    if (text) made.textContent = text;
    return made;
  };
  const epochs = points.map((p) => p[0]), values = points.map((p) => p[1]);
  const low = Math.min(...values), high = Math.max(...values);
  const x = (e) => 8 + 300 * (e - epochs[0]) / Math.max(1, epochs.at(-1) - epochs[0]);
  const y = (v) => 62 - 50 * (v - low) / Math.max(1e-9, high - low);
  const svg = make("svg", { class: "rungs", viewBox: "0 0 360 90", role: "img",
    "aria-label": points.map(([e, v]) => `epoch ${e}: ${percent(v)} %`).join(", ") });
  svg.append(make("polyline", { fill: "none", stroke: "var(--study0)", "stroke-width": 2,
    points: points.map(([e, v]) => `${x(e)},${y(v)}`).join(" ") }));
  for (const [e, v] of points) {
    svg.append(make("circle", { cx: x(e), cy: y(v), r: 3, fill: "var(--study0)" }));
    svg.append(make("text", { x: x(e), y: 84, "text-anchor": "middle" }, `${e}`));
  }
  svg.append(make("text", { x: 318, y: y(values.at(-1)) + 4 }, percent(values.at(-1)) + " %"));
  return svg;
}

function confusion(classes, counts) {
  const dense = classes.length > 14;
  const rows = counts.map((row, i) => {
    const total = row.reduce((a, b) => a + b, 0) || 1;
    const cells = row.map((n, j) => node("td", {
      title: `${classes[i]} heard as ${classes[j]}: ${n} of ${total}`,
      style: `background:color-mix(in srgb, var(${i === j ? "--study0" : "--budget"}) ${Math.round(n / total * 75)}%, transparent)`,
    }, n && !dense ? `${n}` : ""));
    return node("tr", null, node("th", { class: "text", scope: "row" }, classes[i]), cells);
  });
  const heads = classes.map((name) => node("th", { scope: "col" }, name));
  const grid = node("table", { class: dense ? "confusion dense" : "confusion" },
    node("thead", null, node("tr", null, node("td"), heads)), node("tbody", null, rows));
  return node("div", null, node("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Confusion matrix" }, grid),
    node("p", { class: "hint" }, mistakes(classes, counts)));
}

function mistakes(classes, counts) {
  const pairs = counts.flatMap((row, i) => row.map((n, j) => [n, i, j])).filter(([n, i, j]) => n && i !== j);
  const worst = pairs.sort((a, b) => b[0] - a[0]).slice(0, 3);
  const words = worst.map(([n, i, j]) => `${classes[i]} heard as ${classes[j]} (${n})`);
  return words.length ? "Most often: " + words.join(", ") : "No mistake.";
}

const layers = (rows) => table(["<layer", "<output", "params", "MACs", "bytes", "live bytes"],
  rows.map((l) => [null, l.name, l.output_shape.join("\u00d7"),
    ...[l.parameters, l.macs, l.bytes, l.live_bytes].map(whole)]), { class: "layers" });

// --- the tables

const rowOf = (study, index) => {
  const t = trialOf(study, index), s = STUDIES[study];
  const attributes = { "data-trial": `${study}/${index}`, class: s.ship === index ? "ship" : null };
  const role = s.ship === index ? "recommended" : null;
  return [attributes, node("span", null, trialButton(study, index), role ? node("small", null, role) : null), percent(t.accuracy), interval(t), figures(t.size_kb), known(t.latency_ms)
    ? figures(t.latency_ms) + (isEstimate(t) ? " est." : "") : NONE,
    known(t.macs) ? figures(t.macs / 1e6) : NONE, known(t.peak_ram_bytes) ? figures(t.peak_ram_bytes / 1024) : NONE,
    scheme(t).split("_")[0], [blocks(t), "blocks"]];
};
const HEADS = ["<trial", "accuracy, %", "95 % range", "KB", "ms", "MMACs", "RAM, KB", "<format", "<blocks \u00d7 channels"];

function tables() {
  STUDIES.forEach((s, study) => {
    const title = several ? node("h3", null, swatch(study), s.name) : null;
    const rows = s.front.map((index) => rowOf(study, index));
    $("front-table").append(...[title, rows.length ? table(HEADS, rows)
      : node("p", null, s.answer)].filter(Boolean));
    margins(s, study, title?.cloneNode(true));
    states(s, study, title?.cloneNode(true));
  });
}

function margins(s, study, title) {
  const rows = s.margins.map(([limit, index]) => known(index)
    ? [null, `${Number(limit.toPrecision(4))} KB`, ...brief(study, index)] : [null, `${Number(limit.toPrecision(4))} KB`, "nothing fits", "", "", ""]);
  if (known(s.smallest)) rows.push([null, ["smallest in the best's 95 % range", "wrap"], ...brief(study, s.smallest)]);
  $("margins").append(...[title, table(["<within", "<trial", "accuracy, %", "95 % range", "KB"], rows)].filter(Boolean));
}

function brief(study, index) {
  const t = trialOf(study, index);
  return [trialButton(study, index), percent(t.accuracy), interval(t), figures(t.size_kb)];
}

const shade = (state) => `background:color-mix(in srgb, var(--study0) ${SHADES[state]}%, var(--surface));` +
  `box-shadow:inset 0 0 0 1px color-mix(in srgb, var(--study0) 55%, var(--surface))`;

function states(s, study, title) {
  const order = Object.keys(SHADES).filter((state) => s.states[state]);
  const bar = order.map((state) => node("div", { style: `flex:${s.states[state]};${shade(state)}`, title: `${state}: ${s.states[state]}` }));
  const keys = order.map((state) => node("span", { class: "num" },
    node("span", { class: "swatch", style: shade(state) }), `${whole(s.states[state])} ${state}`));
  const reasons = s.reasons.slice(0, 12).map(([state, n, text]) => [null, state, whole(n), [text, "wrap"]]);
  if (!order.length) keys.push("None yet.");
  $("states").append(...[title, node("div", { class: "stack", "aria-hidden": "true" }, bar), node("div", { class: "keys" }, keys),
    reasons.length ? table(["<state", "trials", "<reason, for example"], reasons) : null].filter(Boolean));
}

// --- progress, importance, parallel coordinates

const BASE = { paper_bgcolor: "$surface", plot_bgcolor: "$surface", font: { color: "$ink", size: 12, family: "system-ui, sans-serif" },
  hoverlabel: { bgcolor: "$surface", bordercolor: "$line", font: { color: "$ink" } } };

function drawHypervolume() {
  const hours = Math.max(...STUDIES.flatMap((s) => s.hypervolume.map((p) => p[0])));
  const [unit, scale] = hours > 2 ? ["hours", 1] : ["minutes", 60];
  const data = STUDIES.map((s, i) => ({
    type: "scatter", mode: "lines", name: s.name, showlegend: several,
    x: s.hypervolume.map((p) => p[0] * scale), y: s.hypervolume.map((p) => p[1]),
    customdata: s.hypervolume.map((p) => p[2]),
    hovertemplate: "%{y:.3f} after %{customdata} trials<extra></extra>",
    line: { color: `$study${i % 4}`, width: 2, shape: "hv", dash: ["solid", "dash", "dot", "dashdot"][i % 4] },
  }));
  const line = { gridcolor: "$grid", zeroline: false, linecolor: "$line" };
  draw("hypervolume", { data, layout: { ...BASE, margin: { l: 46, r: 12, t: 8, b: 40 },
    xaxis: { ...line, title: { text: `Computing, ${unit}` }, rangemode: "tozero" },
    yaxis: { ...line, rangemode: "tozero" }, legend: { orientation: "h", y: 1.12 } } });
}

function importance() {
  const blocks = STUDIES.flatMap((s) => Object.entries(s.importance).map(([goal, shares]) => {
    const rows = Object.entries(shares).sort((a, b) => b[1] - a[1]).slice(0, 8);
    return node("div", null, node("h3", null, `${several ? s.name + ": f" : "F"}or ${goal}`),
      node("div", { class: "choices" }, rows.flatMap(([name, share]) => [node("span", null, name),
        node("i", { style: `width:${Math.max(0, 100 * share / rows[0][1])}%` }), node("span", { class: "num" }, (100 * share).toFixed(0) + " %")])));
  }));
  $("importance").append(node("div", { class: "twice" }, blocks));
  $("importance-section").hidden = !blocks.length;
}

/** Heights 0 to 1 of an axis's values, and what to write where. */
function scaleOf(values) {
  const present = [...new Set(values.filter(known))];
  if (present.some((v) => typeof v === "string")) {
    present.sort();
    const at = (v) => (present.length > 1 ? present.indexOf(v) / (present.length - 1) : 0.5);
    return { at, labels: present.map((v) => [at(v), v]) };
  }
  const low = Math.min(...present), high = Math.max(...present);
  const f = low > 0 && high / low > 8 ? Math.log : (v) => v;
  const at = (v) => (high > low ? (f(v) - f(low)) / (f(high) - f(low)) : 0.5);
  return { at, labels: [...new Set([low, high])].map((v) => [at(v), Number.isInteger(v) ? whole(v) : figures(v)]) };
}

function drawParallel() {
  const titles = STUDIES[0].parallel.map((dimension) => dimension[0]);
  const scales = titles.map((_, k) => scaleOf(STUDIES.flatMap((s) => s.parallel[k][1])));
  const data = STUDIES.flatMap((s, i) => s.front.map((index, row) => ({
    type: "scatter", mode: "lines", meta: i, showlegend: false, customdata: titles.map(() => index), connectgaps: true,
    x: titles.map((_, k) => k),
    y: s.parallel.map(([, values], k) => (known(values[row]) ? scales[k].at(values[row]) : null)),
    hovertemplate: `trial ${trialOf(i, index).trial}<extra></extra>`,
    opacity: s.ship === index ? 1 : 0.5,
    line: { color: s.ship === index ? "$ink" : `$study${i % 4}`, width: s.ship === index ? 3 : 1.5 },
  })));
  const label = (x, y, text, more) => ({ x, y, text, showarrow: false, font: { size: 12, color: "$muted" }, ...more });
  const annotations = titles.flatMap((title, k) => [
    label(k, 1.19, `<b>${title}</b>`, { font: { size: 12, color: "$ink" } }),
    ...scales[k].labels.map(([y, text]) => label(k, y, text, { xshift: 5, xanchor: "left", bgcolor: "$surface" })),
  ]);
  const shapes = titles.map((_, k) => ({ type: "line", x0: k, x1: k, y0: 0, y1: 1, layer: "below", line: { color: "$line", width: 1 } }));
  draw("parallel", { data, layout: { ...BASE, annotations, shapes, margin: { l: 30, r: 60, t: 6, b: 12 }, hovermode: "closest",
    xaxis: { visible: false, range: [-0.25, titles.length - 0.7], fixedrange: true }, yaxis: { visible: false, range: [-0.08, 1.28], fixedrange: true } } });
}

// --- start, theme, live

function remember() {
  const place = new URLSearchParams({ axis });
  if (shown) place.set("trial", shown.join("/"));
  history.replaceState(null, "", "#" + place);
}

/** The axis and card that the address names, else the recommended network's. */
function recall() {
  const place = new URLSearchParams(location.hash.slice(1));
  setAxis(DATA.figures[place.get("axis")] ? place.get("axis") : "size_kb");
  const [study, index] = (place.get("trial") || "").split("/").map(Number);
  $("axis").hidden = $("axis").childElementCount < 3;
  const first = STUDIES.findIndex((s) => known(s.ship));
  if (STUDIES[study]?.columns.trial?.[index] !== undefined) show(study, index, false);
  else if (first >= 0) show(first, STUDIES[first].ship, false);
  else $("card").append(node("h2", { id: "card-title" }, "No network yet"), node("p", { class: "hint" }, STUDIES[0].answer));
}

/** Called once plotly.js has run: the front at once, the lower plots when that is on screen. */
function start() {
  drawFront();
  listen();
  document.documentElement.dataset.ready = "yes";
  setTimeout(drawLower);
}

/** Everything in the style sheet's present colours. */
function drawAll() {
  drawFront();
  drawLower();
}

function drawLower() {
  drawHypervolume();
  if (STUDIES.some((s) => s.front.length)) drawParallel();
}

function live() {
  if (!DATA.refresh_s) return;
  $("live").hidden = false;
  setInterval(() => {
    // Someone who points at a network or selects text is reading.
    if ($("tip").hidden && getSelection().isCollapsed && !document.hidden) location.reload();
  }, 1000 * DATA.refresh_s);
}

head();
tables();
importance();
axisSwitch();
$("hypervolume-hint").textContent = `Hypervolume: mean, over the doublings of size from 1 KB to ` +
  `${Number(DATA.hypervolume_kb.toPrecision(4))} KB, of the best accuracy that fits (reference point: the budget, accuracy 0).`;
$("parallel-section").hidden = !STUDIES.some((s) => s.front.length);
recall();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
matchMedia("print").addEventListener("change", drawAll);
live();
