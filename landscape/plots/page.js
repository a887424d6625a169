"use strict";

const CONFIG = {
  responsive: true, displaylogo: false,
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
  toImageButtonOptions: {format: "svg"},
};
const SOLID = {...CONFIG, modeBarButtons: [["toImage"], ["orbitRotation", "pan3d", "resetCameraDefault3d"]]};
const QUANTILE = 0.95, LEVELS = 10, CONTRAST = 3;  // WCAG 2.2, 1.4.11: of lines against the paper
const TYPES = {
  f8: Float64Array, f4: Float32Array, i1: Int8Array, i2: Int16Array, i4: Int32Array,
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array,
};
const dark = matchMedia("(prefers-color-scheme: dark)");

// Unpacking ---------------------------------------------------------------------------------------

const bytesOf = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));

async function unpack(id) {
  const packed = new Blob([bytesOf(document.getElementById(id).textContent)]);
  return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// Return a copy in which each {array, dtype, shape} is an array, nested as its shape says.
function decoded(content, arrays) {
  if (Array.isArray(content)) return content.map(item => decoded(item, arrays));
  if (content === null || typeof content !== "object") return content;
  if (!("array" in content && "dtype" in content))
    return Object.fromEntries(Object.entries(content).map(([key, item]) => [key, decoded(item, arrays)]));
  const nested = (flat, shape) => shape.length < 2 ? flat : Array.from({length: shape[0]}, (_, row) => {
    const size = flat.length / shape[0];
    return nested(flat.subarray(row * size, (row + 1) * size), shape.slice(1));
  });
  return nested(new TYPES[content.dtype](bytesOf(arrays[content.array]).buffer), content.shape);
}

// Colors ------------------------------------------------------------------------------------------

const flatten = rows => rows.flatMap(row => Array.from(row));

// Return where the colors begin and end, what they follow, and words at values of it.
function scaleOf(kind, values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return {low: 0, high: 1, of: value => value};
  const low = sorted[0], high = sorted[sorted.length - 1];
  if (kind === "clipped")
    return {low, high: sorted[Math.floor(QUANTILE * (sorted.length - 1))], of: value => value};
  if (kind === "linear" || low <= 0) return {low, high, of: value => value};
  const ends = [Math.log10(low), Math.log10(high)];
  const ticks = [0, 1, 2, 3, 4].map(step => ends[0] + step / 4 * (ends[1] - ends[0]));
  const words = ticks.map(tick => Number((10 ** tick).toPrecision(3)).toString());
  return {low: ends[0], high: ends[1], of: Math.log10, ticks, words};
}

// Heat maps and surfaces of a loss that belong to one view have one scale.
function recolor(panel) {
  const kind = panel.element.querySelector(".scale").value;
  const own = trace => trace.meta?.loss, views = {};
  for (const {raw} of panel.places)
    for (const {view, values} of raw.filter(Boolean)) (views[view] ??= []).push(...flatten(values));
  for (const view in views) views[view] = scaleOf(kind, views[view]);
  return Promise.all(panel.places.flatMap(({place, raw}) => place.data.map((trace, index) => {
    if (!own(trace)) return null;
    const {low, high, of, ticks = null, words = null} = views[raw[index].view];
    const values = raw[index].values.map(row => Array.from(row, of));
    const looks = trace.type === "surface"
      ? {surfacecolor: [values], cmin: low, cmax: high}
      : trace.type === "contour"
      ? {z: [values], "contours.start": low, "contours.end": high, "contours.size": (high - low) / LEVELS}
      : {z: [values], zmin: low, zmax: high, "colorbar.tickvals": [ticks], "colorbar.ticktext": [words]};
    return Plotly.restyle(place, looks, [index]);
  })));
}

const pencil = document.createElement("canvas").getContext("2d");

function channels(color) {
  pencil.fillStyle = "#000";
  pencil.fillStyle = color;
  const found = pencil.fillStyle;
  return found[0] === "#"
    ? [...[1, 3, 5].map(at => parseInt(found.slice(at, at + 2), 16)), 1]
    : found.match(/[\d.]+/g).map(Number);
}

function luminance([red, green, blue]) {
  const linear = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
}

// Return a color as bright as it must be to stand out from dark paper.
function brightened(color, paper) {
  const ground = luminance(channels(paper));
  let [red, green, blue, alpha] = channels(color);
  while ((luminance([red, green, blue]) + 0.05) / (ground + 0.05) < CONTRAST)
    [red, green, blue] = [red, green, blue].map(value => Math.min(255, value + 8));
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

function brighten(traces, paper) {
  for (const trace of traces)
    if (trace.type?.startsWith("scatter"))
      for (const part of [trace.line, trace.marker])
        if (typeof part?.color === "string") part.color = brightened(part.color, paper);
}

// Controls ----------------------------------------------------------------------------------------

// Show the traces of the view that is chosen.
function show(panel) {
  const chosen = panel.element.querySelector(".views input:checked");
  const view = chosen && Number(chosen.value);
  const contours = panel.element.querySelector(".contours")?.checked;
  return Promise.all(panel.places.map(({place}) => {
    const visible = place.data.map(({meta}) =>
      (meta?.view == null || meta.view === view) && (!meta?.contours || contours));
    return Plotly.update(place, {visible}, (place.layout.meta || [])[view] || {});
  }));
}

// Count and mark the minima that are deeper than the threshold.
function mark(section, panel) {
  const slider = panel.element.querySelector(".threshold"), threshold = Number(slider.value);
  const counts = one => one.depth === null || one.depth > threshold;
  const found = panel.candidates.filter(counts);
  panel.element.querySelector(".value").textContent = threshold.toFixed(1);
  panel.element.querySelector(".count").textContent =
    `${found.length} of ${panel.candidates.length} local minima`;
  const symbols = panel.candidates.map(one => counts(one) ? "circle" : "circle-open");
  const diagram = panel.places[0].place;
  const jobs = [Plotly.update(diagram, {"marker.symbol": [symbols]},
    {"shapes[0].y0": threshold, "shapes[0].y1": threshold}, [0])];
  for (const {place} of section.panels.flatMap(panel => panel.places))
    place.data.forEach(({meta, type}, index) => {
      if (!meta?.mark) return;
      const ones = found.filter(one => one.on_edge === (meta.mark === "edge"));
      const change = {showlegend: type === "scatter" && ones.length > 0};
      if (type === "scatter") Object.assign(change, {x: [ones.map(one => one.x)], y: [ones.map(one => one.y)]});
      else Object.assign(change, {
        x: [ones.flatMap(one => [one.x, one.x, one.x])],
        y: [ones.flatMap(one => [one.y, one.y, one.y])],
        z: [ones.flatMap(one => [one.value, one.value + meta.stem, null])],
        "marker.size": [ones.flatMap(() => [0, meta.size, 0])],
      });
      jobs.push(Plotly.restyle(place, change, [index]));
    });
  return Promise.all(jobs);
}

// The last trace of the second figure marks where the first one is pointed at.
function link([{place: flat}, {place: solid}]) {
  const pointer = solid.data.length - 1;
  flat.on("plotly_hover", event => {
    const point = event.points.find(p => p.data.type === "heatmap");
    if (!point) return;
    const surface = solid.data.find(trace => trace.type === "surface" && trace.visible);
    const [row, column] = point.pointIndex ?? point.pointNumber;
    Plotly.restyle(solid, {x: [[point.x]], y: [[point.y]], z: [[surface.z[row][column]]]}, [pointer]);
  });
}

function animate(panel) {
  const [slider, button] = [".step", ".play"].map(name => panel.element.querySelector(name));
  const labels = JSON.parse(slider.dataset.labels), last = labels.length - 1;
  let timer = null;
  const draw = () => {
    panel.element.querySelector(".label").textContent = labels[slider.value];
    // redraw: without it plotly erases a heat map
    const options = {mode: "immediate", frame: {duration: 0, redraw: true}, transition: {duration: 0}};
    return Promise.all(panel.places.map(({place}) => Plotly.animate(place, [slider.value], options).catch(() => {})));
  };
  const stop = () => { clearTimeout(timer); timer = null; button.textContent = "Play"; };
  const next = async () => {
    await draw();
    if (timer === null) return;
    if (Number(slider.value) === last) return stop();
    slider.value = Number(slider.value) + 1;
    timer = setTimeout(next, 120);
  };
  slider.addEventListener("input", () => { stop(); draw(); });
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (Number(slider.value) === last) slider.value = 0;
    button.textContent = "Pause";
    timer = setTimeout(next, 0);
  });
  return draw;
}

// Return points as comma-separated values: one line each, columns named in the first.
function csv(columns) {
  const quoted = value => /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
  const names = Object.keys(columns), rows = [names.map(quoted).join(",")];
  for (let row = 0; row < columns[names[0]].length; row++)
    rows.push(names.map(name => quoted(columns[name][row])).join(","));
  return rows.join("\n") + "\n";
}

function download(text, name) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  anchor.download = name;
  anchor.click();
  URL.revokeObjectURL(anchor.href);
}

// The page ----------------------------------------------------------------------------------------

async function draw(panel, {templates, arrays}) {
  const paper = getComputedStyle(document.documentElement).getPropertyValue("--paper").trim();
  for (const one of panel.places) {
    const {data, layout, frames} = decoded(one.spec, arrays);
    layout.template = structuredClone(templates[dark.matches ? "dark" : "light"]);
    Object.assign(layout.template.layout, {paper_bgcolor: paper, plot_bgcolor: paper});
    if (dark.matches) [{data}, ...(frames || [])].forEach(part => brighten(part.data, paper));
    one.raw = data.map(trace => trace.meta?.loss ? {view: trace.meta.view, values: trace.z} : null);
    await Plotly.newPlot(one.place, {data, layout, frames, config: layout.scene ? SOLID : CONFIG});
  }
  if (panel.links) link(panel.places);
}

function place(spec, number) {
  const framed = document.createElement("div"), figure = document.createElement("div");
  const button = document.createElement("button"), name = spec.layout.title.text;
  framed.className = "framed";
  figure.className = "figure";
  figure.setAttribute("role", "group");
  figure.setAttribute("aria-label", name);
  button.type = "button";
  button.className = "svg";
  button.textContent = "Download as SVG";
  button.setAttribute("aria-label", `Download as SVG: ${name}`);
  button.addEventListener("click", () => Plotly.downloadImage(figure, {
    format: "svg", width: figure.clientWidth, height: figure.clientHeight, filename: `figure-${number}`,
  }));
  framed.append(figure, button);
  return framed;
}

async function start() {
  const [program, text] = await Promise.all([unpack("plotly"), unpack("data")]);
  const script = document.createElement("script");
  script.textContent = program;
  document.head.append(script);
  const content = JSON.parse(text);
  let number = 0;
  const redraws = [];
  for (const [index, element] of document.querySelectorAll("section").entries()) {
    const section = content.sections[index], panels = element.querySelectorAll(".panel");
    section.panels.forEach((panel, at) => {
      panel.element = panels[at];
      panel.places = panel.figures.map(spec => {
        const framed = place(spec, ++number);
        panel.element.querySelector(".figures").append(framed);
        return {spec, place: framed.firstChild};
      });
    });
    element.querySelector(".csv")?.addEventListener("click", () =>
      download(csv(decoded(section.table, content.arrays)), `${section.name}.csv`));
    for (const panel of section.panels) {
      await draw(panel, content);
      const find = name => panel.element.querySelector(name);
      const again = [];  // what brings the figures to where the controls stand
      if (find(".views") || find(".contours")) again.push(() => show(panel));
      if (find(".scale")) again.push(() => recolor(panel));
      if (find(".step")) again.push(animate(panel));
      if (find(".threshold")) again.push(() => mark(section, panel));
      for (const input of panel.element.querySelectorAll(".views input, .contours"))
        input.addEventListener("change", () => show(panel));
      find(".scale")?.addEventListener("change", () => recolor(panel));
      find(".threshold")?.addEventListener("input", () => mark(section, panel));
      find(".reset")?.addEventListener("click", () => {
        find(".threshold").value = find(".threshold").defaultValue;
        mark(section, panel);
      });
      redraws.push([panel, again]);
    }
  }
  dark.addEventListener("change", async () => {
    for (const [panel] of redraws) await draw(panel, content);
    for (const [, again] of redraws) for (const bring of again) await bring();
    document.body.dataset.theme = dark.matches ? "dark" : "light";
  });
  document.body.dataset.ready = "true";
}

if ("DecompressionStream" in window) start(); else document.getElementById("trouble").hidden = false;
