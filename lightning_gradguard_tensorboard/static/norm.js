// The global gradient norm in its band, with the incidents at their steps.

import { put, s } from "./dom.js";
import { byLoss, dots } from "./dots.js";
import { area, drawable, grid, inside, line, pieces, scale, stepped } from "./lines.js";

const TOP = 20;

/** log10 of the smallest and the largest norm in sight, for a scale that several runs share. */
export function decades(view) {
  let [low, high] = [Infinity, -Infinity];
  for (const name of ["peak", "typical", "limit"]) {
    for (const value of view.windows[name]) {
      if (!drawable(value)) continue;
      low = Math.min(low, Math.log10(value));
      high = Math.max(high, Math.log10(value));
    }
  }
  return low <= high ? [low, high] : null;
}

export function drawNorm(panel) {
  const {
    first,
    last,
    peak,
    peak_at: peakAt,
    nonfinite,
    nonfinite_at: badAt,
    typical,
    limit,
    overflows,
  } = panel.view.windows;
  const { y, ticks } = scale([], TOP, panel.heights.norm - TOP, { bounds: panel.say.decades() });
  const count = first.length;
  const middle = (c) => panel.x((first[c] + last[c]) / 2);
  const own = (places) => (c) => (Number.isFinite(places[c]) ? panel.x(places[c] + 0.5) : middle(c));
  panel.normY = y;
  const parts = [];
  // A stretch of windows that were not finite has no band: nothing in it was healthy.
  const lost = (c) => nonfinite[c] > 0 && (nonfinite[c - 1] > 0 || nonfinite[c + 1] > 0);
  for (const run of pieces(count, (c) => drawable(typical[c]) && drawable(limit[c]) && !lost(c))) {
    // They begin and end with their windows: both ends have a place of their own.
    const [begin, end] = [run[0], run.at(-1)];
    const places = [[begin, panel.x(first[begin])], ...run.map((c) => [c, middle(c)]), [end, panel.x(last[end])]];
    // The band lies evenly about the centre on the log axis: as far below it as the limit is above.
    parts.push(area("band", places, ([, x]) => x, ([c]) => y(limit[c]), ([c]) => y(typical[c] ** 2 / limit[c])));
    parts.push(line("limit", places, ([, x]) => x, ([c]) => y(limit[c])));
    parts.push(line("typical", places, ([, x]) => x, ([c]) => y(typical[c])));
  }
  for (const run of pieces(count, (c) => drawable(peak[c])))
    parts.push(stepped("peak", run, panel, first, last, own(peakAt), (c) => y(peak[c])));
  for (const other of panel.say.others(panel)) parts.push(...over(panel, other, y));
  for (const run of pieces(count, (c) => nonfinite[c] > 0)) {
    // Many windows that were not finite are one span, with a diamond where each begins.
    const [left, right] = [own(badAt)(run[0]), panel.x(last[run.at(-1)])];
    if (run.length > 1)
      parts.push(
        s("rect", { class: "nonfinite-span", x: left, y: TOP - 8, width: Math.max(right - left, 1), height: 4 }),
      );
  }
  for (let c = 0; c < count; c++) {
    if (nonfinite[c]) parts.push(s("path", { class: "nonfinite", d: diamond(own(badAt)(c), TOP - 6) }));
    else if (overflows[c] > 0) parts.push(s("path", { class: "overflow", d: diamond(middle(c), TOP - 6) }));
  }
  panel.norm.setAttribute("height", panel.heights.norm);
  put(panel.norm,
    ...grid(panel, { y, ticks }),
    ...inside(panel, 0, panel.heights.norm, ...parts, ...panel.seams(0, panel.heights.norm)),
    ...dots(panel, panel.shownIncidents().filter((one) => !byLoss(panel, one)), y, panel.heights.norm).reverse(),
  );
}

/** The norm of another run, on this one's axis. */
function over(panel, { view, index }, y) {
  const { first, last, peak, peak_at: at } = view.windows;
  const x = (c) => panel.x(Number.isFinite(at[c]) ? at[c] + 0.5 : (first[c] + last[c]) / 2);
  return pieces(first.length, (c) => drawable(peak[c])).map((run) =>
    stepped(`other other-${index}`, run, panel, first, last, x, (c) => y(peak[c])),
  );
}

export const diamond = (x, y) => `M${x} ${y - 5}l4 5l-4 5l-4 -5z`;
