// What all line charts draw with: pieces of a line, areas, a scale, and a frame out of which nothing sticks.
//
// uPlot (50 kB, Canvas 2D) was weighed. It is faster by orders of magnitude, which some hundred windows do not need.
// What is drawn here are elements: marks that can be reached with the keyboard, read aloud, found by a test and
// exported with their styles. On a canvas they would have to lie in a layer above it, on axes that are shared with the
// heatmap: it would spare less than it would add.

import { formatNumber, s } from "./dom.js";
import { logTicks } from "./scale.js";

export const drawable = (value) => value > 0 && Number.isFinite(value);

/** Stretches of neighbouring columns that satisfy `keep`, as lists of indices. */
export function pieces(count, keep) {
  const found = [];
  for (let c = 0, open = null; c < count; c++) {
    if (!keep(c)) open = null;
    else if (open) open.push(c);
    else found.push((open = [c]));
  }
  return found;
}

const pair = (x, y) => `${x.toFixed(1)},${y.toFixed(1)}`;

/** A line through some columns. */
export const line = (name, columns, x, y) =>
  s("polyline", { class: name, points: columns.map((c) => pair(x(c), y(c))).join(" ") });

const STEEP = 24;
const LEAST_WIDTH = 3;

/**
 * A line through columns each of which has a place of its own. It begins and ends with its windows, and where it leaps,
 * it does so at the edge between two: a slope from the window before would show trouble before it began.
 */
export function stepped(name, columns, panel, first, last, x, y, steep = STEEP) {
  if (columns.length === 1) {
    // What was measured in one window alone is a level stroke, which may be wider than the window to be seen.
    const [c] = columns;
    const [left, right] = [panel.x(first[c]), panel.x(last[c])];
    const ends = right - left < LEAST_WIDTH ? [x(c) - LEAST_WIDTH / 2, x(c) + LEAST_WIDTH / 2] : [left, right];
    return s("polyline", { class: name, points: ends.map((end) => pair(end, y(c))).join(" ") });
  }
  const points = [pair(panel.x(first[columns[0]]), y(columns[0]))];
  columns.forEach((c, at) => {
    points.push(pair(x(c), y(c)));
    const next = columns[at + 1];
    if (next === undefined) points.push(pair(panel.x(last[c]), y(c)));
    else if (Math.abs(y(next) - y(c)) > steep) points.push(pair(panel.x(first[next]), y(y(next) < y(c) ? c : next)));
  });
  return s("polyline", { class: name, points: points.join(" ") });
}

/** The area between two lines. */
export function area(name, columns, x, above, below) {
  const there = columns.map((c) => pair(x(c), above(c)));
  const back = columns.map((c) => pair(x(c), below(c))).reverse();
  return s("polygon", { class: name, points: [...there, ...back].join(" ") });
}

/** The name of a row, and below it the lowest and the highest value in sight, as `telling/words.py` says them. */
export function rowName(panel, name, values, y) {
  const known = [...values].filter(drawable);
  const [low, high] = [Math.min(...known), Math.max(...known)].map(formatNumber);
  const place = { x: panel.gutter - 10, "text-anchor": "end" };
  return [
    s("text", { class: "tick name", ...place, y }, name),
    s("text", { class: "tick reach", ...place, y: y + 12 }, low === high ? low : `${low} to ${high}`),
  ];
}

let frames = 0;

/** A group that is cut off at the edges of the plot: a zoom shows lines that go on outside of it. */
export function inside(panel, top, height, ...children) {
  const id = `plot-${frames++}`;
  const frame = s("clipPath", { id }, s("rect", { x: panel.gutter, y: top, width: panel.plotWidth, height }));
  return [frame, s("g", { class: "plot", "clip-path": `url(#${id})` }, ...children)];
}

/** A scale from bottom to top: {y, ticks}; `values` decide its range. */
export function scale(values, top, height, { log = true, room = 0.12, least = 0.15, bounds = null } = {}) {
  const level = (value) => (log ? Math.log10(value) : value);
  let [low, high] = bounds ?? [Infinity, -Infinity];
  if (!bounds) {
    for (const value of values) {
      if (!Number.isFinite(value) || (log && value <= 0)) continue;
      low = Math.min(low, level(value));
      high = Math.max(high, level(value));
    }
    if (low > high) [low, high] = log ? [-1, 1] : [0, 1];
  }
  const spare = Math.max(room * (high - low), log ? least : 0, 1e-12);
  [low, high] = [low - spare, high + spare];
  const y = (value) => top + height * (1 - (Math.min(Math.max(level(value), low), high) - low) / (high - low));
  const most = Math.max(2, Math.floor(height / 34));
  const ticks = log ? logTicks(low, high, most).map((tick) => 10 ** tick) : linearTicks(low, high, most);
  // A number at the lower edge would be cut off.
  return {
    y: (value) => (log && !(value > 0) ? top + height : y(value)),
    ticks: ticks.filter((tick) => y(tick) <= top + height - 5),
  };
}

function linearTicks(low, high, most) {
  const wish = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(wish));
  const every = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= wish) ?? 10 * power;
  const ticks = [];
  for (let tick = Math.ceil(low / every) * every; tick <= high; tick += every) ticks.push(Number(tick.toPrecision(6)));
  return ticks;
}

/** Hairlines at the ticks with their numbers to the left. */
export const grid = (panel, { y, ticks }) =>
  ticks.flatMap((tick) => [
    s("line", { class: "grid", x1: panel.gutter, x2: panel.gutter + panel.plotWidth, y1: y(tick), y2: y(tick) }),
    s(
      "text",
      { class: "tick", x: panel.gutter - 10, y: y(tick) + 4, "text-anchor": "end" },
      formatNumber(Number(tick.toPrecision(2))),
    ),
  ]);
