"use strict";
// The drawings of the report: the front, the progress of the search, parallel coordinates.
// The figure of the front comes ready from nas/figure.py, once for every axis. plotly.js takes a
// second to run, so the front is first a plain sketch that answers already.

/** A copy of a figure with every "$name" colour as the style sheet has it now. */
function painted(part) {
  if (typeof part === "string") return (part.startsWith("$") && css(part.slice(1))) || part;
  if (Array.isArray(part)) return typeof part[0] === "object" ? part.map(painted) : part;
  if (part === null || typeof part !== "object") return part;
  return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, painted(value)]));
}

function hasWebGL() {
  const gl = document.createElement("canvas").getContext("webgl");
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return Boolean(gl);
}

// Named one by one: Plotly's own set has a button that sends the chart to its cloud.
const BUTTONS = ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d"];
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: "hover", plotlyServerURL: "",
  modeBarButtons: [BUTTONS] };
const narrow = () => innerWidth < 600;

const crowded = (trace) => trace.x.length > 1000; // WebGL alone draws so many quickly

function draw(id, figure) {
  const { data, layout } = painted(figure);
  for (const t of data.filter(crowded)) if (hasWebGL()) t.type = "scattergl";
  // The canvas of a crowd lies behind the chart.
  if (data.some(crowded)) layout.paper_bgcolor = layout.plot_bgcolor = "transparent";
  // On a phone the names of the published networks would cover the front; pointing shows them.
  for (const t of data) if (narrow() && t.text) t.mode = "markers";
  layout.dragmode = narrow() ? false : "zoom";
  if (matchMedia("print").matches) layout.width = 690; // A4; a plot cannot follow the paper itself
  if (!$(id).data) $(id).replaceChildren();
  Plotly.react($(id), data, layout, CONFIG);
}

let axis = "size_kb";
let shown = null; // [study, index] of the open card
let chosen = null; // the same, once somebody has opened one

function drawFront() {
  const { data, layout } = DATA.figures[axis];
  const figure = { data: [...data, selection()], layout };
  if (window.Plotly) draw("chart", figure);
  else sketch(figure);
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
  $("axis").hidden = $("axis").childElementCount < 3; // its legend and one axis
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
    if (known(point.data.meta)) choose(point.data.meta, point.customdata, true);
  });
}

function arrowKeys(event) {
  const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  stepAlong(step);
}

function stepAlong(step) {
  const stops = DATA.figures[axis].data.filter((t) => t.error_y)
    .flatMap((t) => t.customdata.map((index) => [t.meta, index]));
  const here = stops.findIndex(([s, i]) => shown && s === shown[0] && i === shown[1]);
  const next = stops[here < 0 ? 0 : Math.min(Math.max(here + step, 0), stops.length - 1)];
  if (next) choose(...next, false);
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

// --- the sketch of the front, before plotly.js has run

const colour = (name) => name.replace(/^\$(\w+)/, "var(--$1)");

/** A figure in plain SVG where Plotly will draw it. */
function sketch({ data, layout }) {
  const { clientWidth: width, clientHeight: height } = $("chart");
  const { l, r, t, b } = layout.margin, { xaxis, yaxis } = layout;
  const onto = ([low, high], from, to) => (v) => from + ((v - low) / (high - low)) * (to - from);
  const across = onto(xaxis.range, l, width - r);
  const place = { x: (v) => across(Math.log10(v)), y: onto(yaxis.range, height - b, t),
    left: l, right: width - r, top: t, bottom: height - b };
  const clip = svg("clipPath", { id: "plot-area" },
    svg("rect", { x: l, y: t, width: width - l - r, height: height - t - b }));
  const marks = data.flatMap((trace) => sketchTrace(trace, place));
  $("chart").replaceChildren(svg("svg", { class: "sketch", width, height }, clip,
    ...sketchAxes(xaxis, yaxis, place), svg("g", { "clip-path": "url(#plot-area)" },
      ...layout.shapes.map((line) => sketchLimit(line, place)), ...marks)));
}

function sketchAxes(xaxis, yaxis, { x, y, left, right, top, bottom }) {
  const within = (v, [low, high]) => low <= v && v <= high;
  const rule = (d) => svg("path", { d, stroke: colour(xaxis.gridcolor) });
  const word = (at, down, anchor, text) => svg("text", { x: at, y: down, "text-anchor": anchor }, text);
  const rows = [];
  for (let v = Math.ceil(yaxis.range[0] / yaxis.dtick) * yaxis.dtick; v <= yaxis.range[1]; v += yaxis.dtick)
    rows.push(rule(`M${left} ${y(v)}H${right}`), word(left - 4, y(v) + 4, "end", `${v}`));
  const columns = xaxis.tickvals.filter((v) => within(Math.log10(v), xaxis.range)).flatMap((v) =>
    [rule(`M${x(v)} ${top}V${bottom}`), word(x(v), bottom + 17, "middle", `${v}`)]);
  return [...rows, ...columns, word((left + right) / 2, bottom + 40, "middle", xaxis.title.text)];
}

const sketchLimit = (limit, { x, top, bottom }) => svg("path", { d: `M${x(limit.x0)} ${top}V${bottom}`,
  stroke: colour(limit.line.color), "stroke-width": limit.line.width, "stroke-dasharray": "9 9" });

/** All marks of a trace as one path; the steps and intervals of a front; names. */
function sketchTrace({ x: sizes, y: scores, marker, line, error_y: bars, text }, { x, y }) {
  const across = sizes.map((v) => x(v).toFixed(1)), down = scores.map((v) => y(v).toFixed(1));
  const path = (d, ink, style) => svg("path", { d: d.join(""), fill: "none", stroke: colour(ink), ...style });
  const open = marker.symbol.endsWith("-open"), size = marker.size;
  const half = `a${size / 2} ${size / 2} 0 1 0 `;
  const dots = path(across.map((v, i) => open
    ? `M${v - size / 2} ${down[i]}${half}${size} 0${half}${-size} 0` : `M${v} ${down[i]}h0`), marker.color,
  { "stroke-width": open ? 1.2 : size, "stroke-linecap": "round", opacity: marker.opacity ?? 1 });
  const names = (!narrow() && text || []).map((name, i) =>
    svg("text", { x: across[i], y: +down[i] + 18, "text-anchor": "middle" }, name));
  if (!bars) return [dots, ...names];
  const steps = across.map((v, i) => (i ? `H${v}V${down[i]}` : `M${v} ${down[i]}`));
  const spans = across.map((v, i) =>
    `M${v} ${y(scores[i] + bars.array[i])}V${y(scores[i] - bars.arrayminus[i])}`);
  return [path(steps, line.color, { "stroke-width": line.width }), path(spans, bars.color), dots];
}

// --- progress and parallel coordinates

const BASE = {
  paper_bgcolor: "$surface", plot_bgcolor: "$surface",
  font: { color: "$ink", size: 12, family: "system-ui, sans-serif" },
  hoverlabel: { bgcolor: "$surface", bordercolor: "$line", font: { color: "$ink" } },
};
const DASHES = ["solid", "dash", "dot", "dashdot"];

function drawHypervolume() {
  const hours = Math.max(...STUDIES.flatMap((s) => s.hypervolume.map((p) => p[0])));
  const [unit, scale] = hours > 2 ? ["hours", 1] : ["minutes", 60];
  const data = STUDIES.map((s, i) => ({
    type: "scatter", mode: "lines", name: s.name, showlegend: several,
    x: s.hypervolume.map((p) => p[0] * scale), y: s.hypervolume.map((p) => p[1]),
    customdata: s.hypervolume.map((p) => p[2]),
    hovertemplate: "%{y:.3f} after %{customdata} trials<extra></extra>",
    line: { color: `$study${i % 4}`, width: 2, shape: "hv", dash: DASHES[i % 4] },
  }));
  const line = { gridcolor: "$grid", zeroline: false, linecolor: "$line" };
  const layout = { ...BASE, margin: { l: 46, r: 12, t: 8, b: 40 }, legend: { orientation: "h", y: 1.12 },
    xaxis: { ...line, title: { text: `Computing, ${unit}` }, rangemode: "tozero" },
    yaxis: { ...line, rangemode: "tozero" } };
  draw("hypervolume", { data, layout });
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
  const text = (v) => (Number.isInteger(v) ? whole(v) : figures(v));
  return { at, labels: [...new Set([low, high])].map((v) => [at(v), text(v)]) };
}

function drawParallel() {
  const titles = STUDIES[0].parallel.map((dimension) => dimension[0]);
  const scales = titles.map((_, k) => scaleOf(STUDIES.flatMap((s) => s.parallel[k][1])));
  const data = STUDIES.flatMap((s, i) => s.front.map((index, row) => {
    const ship = s.ship === index;
    return {
      type: "scatter", mode: "lines", showlegend: false, connectgaps: true, opacity: ship ? 1 : 0.5,
      x: titles.map((_, k) => k),
      y: s.parallel.map(([, values], k) => (known(values[row]) ? scales[k].at(values[row]) : null)),
      hovertemplate: `trial ${trialOf(i, index).trial}<extra></extra>`,
      line: { color: ship ? "$ink" : `$study${i % 4}`, width: ship ? 3 : 1.5 },
    };
  }));
  draw("parallel", { data, layout: parallelLayout(titles, scales) });
}

function parallelLayout(titles, scales) {
  const label = (x, y, text, more) =>
    ({ x, y, text, showarrow: false, font: { size: 12, color: "$muted" }, ...more });
  const beside = { xshift: 5, xanchor: "left", bgcolor: "$surface" };
  const annotations = titles.flatMap((title, k) => [
    label(k, 1.19, `<b>${title}</b>`, { font: { size: 12, color: "$ink" } }),
    ...scales[k].labels.map(([y, text]) => label(k, y, text, beside)),
  ]);
  const shapes = titles.map((_, k) =>
    ({ type: "line", x0: k, x1: k, y0: 0, y1: 1, layer: "below", line: { color: "$line", width: 1 } }));
  return { ...BASE, annotations, shapes, margin: { l: 30, r: 60, t: 6, b: 12 }, hovermode: "closest",
    xaxis: { visible: false, range: [-0.25, titles.length - 0.7], fixedrange: true },
    yaxis: { visible: false, range: [-0.08, 1.28], fixedrange: true } };
}
