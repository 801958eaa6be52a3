// Lines over the last hour, in SVG: values by pointer or arrow keys.

import { clock, element, say } from "/page/format.js";

const SVG = "http://www.w3.org/2000/svg";
const HOUR = 3600;

function shape(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// The next of 1, 2, 2.5 or 5 times a power of the base: where an axis ends.
function roundUp(value, base) {
  let power = 1;
  while (power * base <= value) power *= base;
  while (power > value && power > 1e-3) power /= base;
  for (const step of base === 1024 ? [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] : [1, 2, 2.5, 5, 10]) {
    if (step * power >= value) return step * power;
  }
  return value;
}

/* series: [{ name, of: (point) => value }], the first drawn solid, the second dashed. */
export function plot(label, { height = 120, format, base = 10, least = 1, axis = true, series }) {
  const width = 600;
  const room = axis ? { left: 62, right: 6, top: 8, bottom: 20 } : { left: 0, right: 0, top: 3, bottom: 3 };
  const svg = shape("svg", { role: "img", preserveAspectRatio: "none" });
  const tip = element("figcaption", { class: "tip", hidden: "" });
  const figure = element("figure", { class: "plot", tabindex: axis ? "0" : null, "aria-label": axis ? label : null }, svg, tip);
  let points = [];
  let at = null;

  function draw() {
    const shown = Math.max(160, figure.clientWidth || width);
    svg.setAttribute("viewBox", `0 0 ${shown} ${height}`);
    svg.setAttribute("height", height);
    const end = points.length ? points.at(-1)[0] : Date.now() / 1000;
    // An hour, or what there is of it, but not less than two minutes.
    const span = Math.min(HOUR, Math.max(120, points.length ? end - points[0][0] : 0));
    const most = roundUp(Math.max(least, ...points.flatMap((point) => series.map((one) => one.of(point)))), base);
    const x = (time) => room.left + (shown - room.left - room.right) * (1 - (end - time) / span);
    const y = (value) => height - room.bottom - (height - room.top - room.bottom) * (value / most);
    const parts = [];
    if (axis) {
      for (const part of [0, 0.5, 1]) {
        parts.push(shape("line", { class: "grid", x1: room.left, x2: shown - room.right, y1: y(most * part), y2: y(most * part) }));
        const text = shape("text", { x: room.left - 8, y: y(most * part) + 4, "text-anchor": "end" });
        text.textContent = format(most * part);
        parts.push(text);
      }
      for (const part of [0, 0.5, 1]) {
        const time = end - span * (1 - part);
        const text = shape("text", { x: x(time), y: height - 4, "text-anchor": ["start", "middle", "end"][part * 2] });
        text.textContent = clock(time).slice(0, 5);
        parts.push(text);
      }
    }
    series.forEach((one, index) => {
      if (points.length < 2) return;
      const kind = index ? "other" : "first";
      const line = points.map((point) => `${x(point[0]).toFixed(1)},${y(one.of(point)).toFixed(1)}`).join(" L");
      if (!index) {
        parts.push(shape("path", { class: `area ${kind}`, d: `M${x(points[0][0]).toFixed(1)},${y(0)} L${line} L${x(end)},${y(0)} Z` }));
      }
      parts.push(shape("path", { class: `line ${kind}`, d: `M${line}` }));
    });
    if (at !== null && points[at]) {
      const place = x(points[at][0]);
      parts.push(shape("line", { class: "cursor", x1: place, x2: place, y1: room.top, y2: height - room.bottom }));
      series.forEach((one, index) => parts.push(shape("circle", { class: `dot ${index ? "other" : "first"}`, cx: place, cy: y(one.of(points[at])), r: 3 })));
      const values = series.map((one) => `${series.length > 1 ? `${one.name} ` : ""}${format(one.of(points[at]))}`);
      say(tip, `${clock(points[at][0])}  ${values.join("  ")}`);
      tip.hidden = false;
      const right = place > shown / 2;
      tip.style.left = right ? "auto" : `${place + 8}px`;
      tip.style.right = right ? `${shown - place + 8}px` : "auto";
    } else {
      tip.hidden = true;
    }
    svg.replaceChildren(...parts);
    const last = points.at(-1);
    svg.setAttribute("aria-label", last
      ? `${label}: now ${series.map((one) => `${one.name} ${format(one.of(last))}`).join(", ")}; the axis ends at ${format(most)}`
      : `${label}: nothing yet`);
    figure.place = { end, span, left: room.left, width: shown - room.left - room.right };
  }

  function read(index) {
    at = index === null || !points.length ? null : Math.max(0, Math.min(points.length - 1, index));
    draw();
  }

  if (axis) {
    figure.addEventListener("pointermove", (event) => {
      const { end, span, left, width: wide } = figure.place;
      const time = end - span * (1 - (event.clientX - figure.getBoundingClientRect().left - left) / wide);
      let nearest = points.length - 1;
      points.forEach((point, index) => {
        if (Math.abs(point[0] - time) < Math.abs(points[nearest][0] - time)) nearest = index;
      });
      read(nearest);
    });
    figure.addEventListener("pointerleave", () => read(null));
    figure.addEventListener("blur", () => read(null));
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      read(at === null ? points.length - 1 : at + step);
    });
  }
  new ResizeObserver(draw).observe(figure);
  figure.show = (given) => { points = given; draw(); };
  return figure;
}

export function legend(...names) {
  return element("p", { class: "legend" }, ...names.map((name, index) => element("span", { class: index ? "other" : "first" }, element("i"), name)));
}
