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

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
  made.append(...children);
  return made;
}

const known = (v) => v !== null && v !== undefined;
/** Three figures as the terminal prints them, more for whole numbers: 0.420, 8.60, 38.2, 1,234. */
const figures = (v) =>
  !known(v) ? NONE : Math.abs(v) >= 99.95 ? Math.round(v).toLocaleString("en") : v ? v.toPrecision(3) : "0";
const whole = (v) => (known(v) ? v.toLocaleString("en") : NONE);
const percent = (v) => (known(v) ? (100 * v).toFixed(1) : NONE);
const limit = (v) => `${Number(v.toPrecision(4))} KB`;
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
  return scrolling("Table", node("table", attributes,
    node("thead", null, node("tr", null, head)), node("tbody", null, body)));
}

const scrolling = (label, body) =>
  node("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, body);
const tint = (colour, share, ground) =>
  `background:color-mix(in srgb, var(--${colour}) ${share}%, ${ground})`;

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

const trialButton = (study, index) =>
  node("button", { class: "trial", type: "button", onclick: () => choose(study, index, true) },
    `${trialOf(study, index).trial}`);

// --- the head

function head() {
  document.body.classList.toggle("several", several);
  STUDIES.forEach((study, i) => {
    const whose = several ? study.name + ": " : "";
    $("answers").append(node("div", { class: "study" }, node("h1", null,
      several ? swatch(i) : null, whose, tidy(study.answer))));
    if (study.note) $("notes").append(node("p", { class: "note" }, whose + study.note));
    if (study.caveat && !several) $("notes").append(node("p", { class: "caveat" }, tidy(study.caveat)));
    const fact = (key, ...value) => node("div", null, node("dt", null, key), node("dd", null, value));
    const facts = Object.entries(study.facts).map(([key, value]) => fact(key, value));
    if (several) facts.unshift(fact("Study", swatch(i), study.name));
    $("facts").append(node("dl", { class: "facts" }, facts));
  });
  if (DATA.warning) $("notes").prepend(node("p", { class: "note" }, DATA.warning));
}

// --- the card

function show(study, index) {
  shown = [study, index];
  $("card").replaceChildren(...cardOf(study, index));
  document.querySelectorAll("tr[data-trial]").forEach((row) =>
    row.classList.toggle("open", row.dataset.trial === `${study}/${index}`));
  drawFront();
}

/** What somebody opens stays open when the page opens itself again. */
function choose(study, index, goThere) {
  chosen = [study, index];
  show(study, index);
  remember();
  if (goThere && innerWidth < 1100) $("card").scrollIntoView({ block: "start" });
  if (goThere) $("card").focus({ preventScroll: true });
}

function cardOf(study, index) {
  const s = STUDIES[study], t = trialOf(study, index), detail = s.details[index] || {};
  const titledIf = (known, title, body) => (known ? titled(title, body()) : null);
  const parts = [
    node("h2", { id: "card-title" }, several ? `${s.name}, trial ${t.trial}` : `Trial ${t.trial}`),
    node("div", { class: "tags" }, tags(s, t, index).map((text) => node("span", null, text))),
    t.reason ? node("p", { class: "hint" }, t.reason) : null,
    node("dl", { class: "figures" }, figuresOf(s, t, detail)),
    titledIf(t.state === "complete", "Ship it", () => copyable("the export command", s.export + t.trial)),
    titled("Architecture", copyable("the architecture", t.architecture)),
    lossOf(t),
    titledIf(detail.rungs?.length > 1, "Accuracy while training", () => rungs(detail.rungs)),
    weakest("Weakest classes", t.lowest),
    weakest("Weakest groups", detail.groups),
    titledIf(detail.confusion?.length, "Confusion, rows are the truth",
      () => confusion(s.classes, detail.confusion)),
    titledIf(detail.ledger, "Bytes of the file, predicted", () => ledger(detail.ledger)),
    titledIf(detail.layers?.length, "Layers", () => layers(detail.layers)),
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
  const spread = known(t.latency_p95_ms)
    ? `median ${figures(t.latency_median_ms)}, p95 ${figures(t.latency_p95_ms)}` : "";
  const [test, low, high] = (detail.test || []).map(percent);
  const rows = [
    ["Accuracy", known(t.accuracy) ? percent(t.accuracy) + " %" : NONE, known(t.accuracy) ? interval(t) : ""],
    test ? ["Test split", test + " %", `${low}\u2013${high}`] : null,
    [s.size, known(t.size_kb) ? figures(t.size_kb) + " KB" : NONE,
      known(t.file_bytes) ? `file ${whole(t.file_bytes)} B` : "estimated"],
    ["Latency", milliseconds(t), isEstimate(t) ? "estimated" : spread],
    ["MACs", millions(t.macs), ""],
    ["Peak RAM", kb(t.peak_ram_bytes), "estimated"],
    ["Parameters", whole(t.parameters), known(t.parameter_bytes) ? kb(t.parameter_bytes) : ""],
    ["Trial took", figures(t.seconds) + " s", ""],
  ];
  return rows.filter(Boolean).map(([name, value, small]) =>
    node("div", null, node("dt", null, name),
      node("dd", null, value, small ? node("small", null, small) : null)));
}

function lossOf(t) {
  if (!known(t.float_accuracy) || !known(t.accuracy) || scheme(t) === "float32") return null;
  const change = 100 * (t.accuracy - t.float_accuracy);
  const words = `${percent(t.float_accuracy)} % in float, ${percent(t.accuracy)} % as ` +
    `${scheme(t).split("_")[0]}: ${change < 0 ? "\u2212" : "+"}${Math.abs(change).toFixed(1)} points`;
  const times = known(t.float_latency_ms)
    ? `; ${figures(t.float_latency_ms)} ms in float, ${figures(t.latency_ms)} ms as it is` : "";
  return titled("What the number format costs", node("p", null, words + times));
}

function weakest(title, rows) {
  if (!rows?.length) return null;
  const words = rows.map(([name, share]) => `${name} ${percent(share)} %`);
  return titled(title, node("p", null, words.join(", ")));
}

function rungs(points) {
  const epochs = points.map((p) => p[0]), values = points.map((p) => p[1]);
  const low = Math.min(...values), high = Math.max(...values);
  const x = (e) => 8 + 300 * (e - epochs[0]) / Math.max(1, epochs.at(-1) - epochs[0]);
  const y = (v) => 62 - 50 * (v - low) / Math.max(1e-9, high - low);
  const curve = svg("svg", { class: "rungs", viewBox: "0 0 360 90", role: "img",
    "aria-label": points.map(([e, v]) => `epoch ${e}: ${percent(v)} %`).join(", ") });
  curve.append(svg("polyline", { fill: "none", stroke: "var(--study0)", "stroke-width": 2,
    points: points.map(([e, v]) => `${x(e)},${y(v)}`).join(" ") }));
  for (const [e, v] of points) {
    curve.append(svg("circle", { cx: x(e), cy: y(v), r: 3, fill: "var(--study0)" }));
    curve.append(svg("text", { x: x(e), y: 84, "text-anchor": "middle" }, `${e}`));
  }
  curve.append(svg("text", { x: 318, y: y(values.at(-1)) + 4 }, percent(values.at(-1)) + " %"));
  return curve;
}

function confusion(classes, counts) {
  const dense = classes.length > 14;
  const rows = counts.map((row, i) => {
    const total = row.reduce((a, b) => a + b, 0) || 1;
    const cells = row.map((n, j) => node("td", {
      title: `${classes[i]} heard as ${classes[j]}: ${n} of ${total}`,
      style: tint(i === j ? "study0" : "budget", Math.round(75 * n / total), "transparent"),
    }, n && !dense ? `${n}` : ""));
    return node("tr", null, node("th", { class: "text", scope: "row" }, classes[i]), cells);
  });
  const heads = classes.map((name) => node("th", { scope: "col" }, name));
  const grid = node("table", { class: dense ? "confusion dense" : "confusion" },
    node("thead", null, node("tr", null, node("td"), heads)), node("tbody", null, rows));
  return node("div", null, scrolling("Confusion matrix", grid),
    node("p", { class: "hint" }, mistakes(classes, counts)));
}

function mistakes(classes, counts) {
  const pairs = counts.flatMap((row, i) => row.map((n, j) => [n, i, j]));
  const worst = pairs.filter(([n, i, j]) => n && i !== j).sort((a, b) => b[0] - a[0]).slice(0, 3);
  const words = worst.map(([n, i, j]) => `${classes[i]} heard as ${classes[j]} (${n})`);
  return words.length ? "Most often: " + words.join(", ") : "No mistake.";
}

function ledger(sizes) {
  const parts = [[sizes.weight_bytes, "weights"], [sizes.scale_bytes, "scales and biases"],
    [sizes.graph_bytes, "graph"], [sizes.container_bytes, "container"]];
  const sum = parts.reduce((total, [size]) => total + size, 0);
  return node("p", null, parts.map(([size, word]) => `${whole(size)} ${word}`).join(" + "), ` = ${whole(sum)}`);
}

const layers = (rows) => table(
  ["<layer", "<output", "params", "MACs", "live bytes", "weights", "scales", "graph"],
  rows.map((l) => [null, l.name, l.output_shape.join("\u00d7"),
    ...[l.parameters, l.macs, l.live_bytes, l.weight_bytes, l.scale_bytes, l.graph_bytes].map(whole)]),
  { class: "layers" });

// --- the tables

const HEADS = ["<trial", "accuracy, %", "95 % range", "KB", "ms", "MMACs", "RAM, KB", "<format",
  "<blocks \u00d7 channels"];

function rowOf(study, index) {
  const t = trialOf(study, index), ship = STUDIES[study].ship === index;
  const role = ship ? node("small", null, "recommended") : null;
  return [
    { "data-trial": `${study}/${index}`, class: ship ? "ship" : null },
    node("span", null, trialButton(study, index), role),
    percent(t.accuracy), interval(t), figures(t.size_kb),
    figures(t.latency_ms) + (isEstimate(t) ? " est." : ""),
    figures(known(t.macs) ? t.macs / 1e6 : null),
    figures(known(t.peak_ram_bytes) ? t.peak_ram_bytes / 1024 : null),
    scheme(t).split("_")[0], [blocks(t), "blocks"],
  ];
}

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
  const rows = s.margins.map(([most, index]) =>
    [null, limit(most), ...(known(index) ? brief(study, index) : ["nothing fits", "", "", ""])]);
  if (known(s.smallest)) {
    const name = ["smallest in the best's 95 % range", "wrap"];
    rows.push([null, name, ...brief(study, s.smallest)]);
  }
  const made = table(["<within", "<trial", "accuracy, %", "95 % range", "KB"], rows);
  $("margins").append(...[title, made].filter(Boolean));
}

function brief(study, index) {
  const t = trialOf(study, index);
  return [trialButton(study, index), percent(t.accuracy), interval(t), figures(t.size_kb)];
}

const shade = (state) => tint("study0", SHADES[state], "var(--surface)") +
  ";box-shadow:inset 0 0 0 1px color-mix(in srgb, var(--study0) 55%, var(--surface))";

function states(s, study, title) {
  const order = Object.keys(SHADES).filter((state) => s.states[state]);
  const bar = order.map((state) =>
    node("div", { style: `flex:${s.states[state]};${shade(state)}`, title: `${state}: ${s.states[state]}` }));
  const keys = order.map((state) => node("span", { class: "num" },
    node("span", { class: "swatch", style: shade(state) }), `${whole(s.states[state])} ${state}`));
  const reasons = s.reasons.slice(0, 12).map(([state, n, text]) =>
    [null, state, whole(n), [text, "wrap"]]);
  $("states").append(...[
    title,
    node("div", { class: "stack", "aria-hidden": "true" }, bar),
    node("div", { class: "keys" }, keys.length ? keys : "None yet."),
    reasons.length ? table(["<state", "trials", "<reason, for example"], reasons) : null,
  ].filter(Boolean));
}

function importance() {
  const blocks = STUDIES.flatMap((s) => Object.entries(s.importance).map(([goal, shares]) => {
    const rows = Object.entries(shares).sort((a, b) => b[1] - a[1]).slice(0, 8);
    const bars = rows.flatMap(([name, share]) => [
      node("span", null, name),
      node("i", { style: `width:${Math.max(0, 100 * share / rows[0][1])}%` }),
      node("span", { class: "num" }, (100 * share).toFixed(0) + " %"),
    ]);
    return node("div", null, node("h3", null, `${several ? s.name + ": f" : "F"}or ${goal}`),
      node("div", { class: "choices" }, bars));
  }));
  $("importance").append(node("div", { class: "twice" }, blocks));
  $("importance-section").hidden = !blocks.length;
}

// --- start, theme, live

function remember() {
  const place = new URLSearchParams({ axis });
  if (chosen) place.set("trial", `${chosen[0]}/${trialOf(...chosen).trial}`);
  history.replaceState(null, "", "#" + place);
}

/** The axis and card that the address names, else the recommended network's. */
function recall() {
  const place = new URLSearchParams(location.hash.slice(1));
  const [study, trial] = (place.get("trial") || "").split("/").map(Number);
  const index = STUDIES[study]?.columns.trial?.indexOf(trial) ?? -1;
  const first = STUDIES.findIndex((s) => known(s.ship));
  chosen = index >= 0 ? [study, index] : null;
  setAxis(DATA.figures[place.get("axis")] ? place.get("axis") : "size_kb");
  if (chosen) show(...chosen);
  else if (first >= 0) show(first, STUDIES[first].ship);
  else $("card").replaceChildren(node("h2", { id: "card-title" }, "No network yet"),
    node("p", { class: "hint" }, STUDIES[0].answer));
}

/** Runs plotly.js when the sketch is on screen, then draws; each step lets the page answer. */
async function start() {
  await onScreen();
  document.head.append(node("script", null, $("plotly").textContent));
  await onScreen();
  drawFront();
  listen();
  document.documentElement.dataset.ready = "yes";
  await onScreen();
  drawLower();
}

const onScreen = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));

/** Everything in the style sheet's present colours. */
function drawAll() {
  drawFront();
  if (window.Plotly) drawLower();
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
  `${limit(DATA.hypervolume_kb)}, of the best accuracy that fits (reference point: the budget, accuracy 0).`;
$("parallel-section").hidden = !STUDIES.some((s) => s.front.length);
recall();
$("chart").addEventListener("keydown", arrowKeys);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
matchMedia("print").addEventListener("change", drawAll);
live();
