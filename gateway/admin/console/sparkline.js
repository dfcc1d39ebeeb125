// Small charts of the last 15 minutes.
import { setAttribute, svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 28;
const POINTS = 60; // more are not seen at this width

/** Return an empty chart with this many lines. */
export function sparkline(lines) {
  const paths = Array.from({ length: lines }, (_, index) => svg("path", { class: `line line-${index}` }));
  const attributes = { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
  return svg("svg", { ...attributes, "aria-label": "Not drawn yet" }, paths);
}

/** Return a series of `size` values as at most POINTS, each the largest of its part. */
function reduced(values, size) {
  const padded = [...Array(Math.max(0, size - values.length)).fill(null), ...values.slice(-size)];
  const step = Math.max(1, Math.ceil(padded.length / POINTS));
  const found = [];
  for (let index = 0; index < padded.length; index += step) {
    const part = padded.slice(index, index + step).filter((value) => value !== null);
    found.push(part.length ? Math.max(...part) : null);
  }
  return found;
}

/** Draw series of up to `size` values, null for none, on one scale; `label` says the same in words. */
export function draw(chart, series, size, label) {
  const found = series.map((values) => reduced(values, size));
  const top = Math.max(...found.flat().map((value) => value ?? 0), Number.MIN_VALUE);
  found.forEach((values, index) => {
    let path = "";
    let isOpen = false;
    values.forEach((value, place) => {
      if (value !== null) {
        const x = (place / Math.max(1, values.length - 1)) * WIDTH;
        const y = HEIGHT - 2 - (value / top) * (HEIGHT - 4);
        path += `${isOpen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}${isOpen ? "" : `h.1`}`;
      }
      isOpen = value !== null;
    });
    setAttribute(chart.children[index], "d", path || null);
  });
  setAttribute(chart, "aria-label", label);
}
