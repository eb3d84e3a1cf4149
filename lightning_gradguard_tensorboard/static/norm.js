// The global gradient norm in its band, with the incidents at their steps.

import { formatStep, put, s } from "./dom.js";
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
  const { first, last, peak, peak_at: peakAt, nonfinite, nonfinite_at: badAt, typical, limit, overflows } = panel.view.windows;
  const { y, ticks } = scale([], TOP, panel.heights.norm - TOP, { bounds: panel.say.decades() });
  const count = first.length;
  const middle = (c) => panel.x((first[c] + last[c]) / 2);
  const own = (places) => (c) => (Number.isFinite(places[c]) ? panel.x(places[c] + 0.5) : middle(c));
  panel.normY = y;
  const parts = [];
  for (const run of pieces(count, (c) => drawable(typical[c]) && drawable(limit[c]))) {
    // The band lies evenly about the centre on the log axis: as far below it as the limit is above.
    parts.push(area("band", run, middle, (c) => y(limit[c]), (c) => y(typical[c] ** 2 / limit[c])));
    parts.push(line("limit", run, middle, (c) => y(limit[c])));
    parts.push(line("typical", run, middle, (c) => y(typical[c])));
  }
  for (const run of pieces(count, (c) => drawable(peak[c]))) parts.push(stepped("peak", run, panel, first, last, own(peakAt), (c) => y(peak[c])));
  for (const other of panel.say.others(panel)) parts.push(...over(panel, other, y));
  for (const run of pieces(count, (c) => nonfinite[c] > 0)) {
    // Many windows that were not finite are one span, with a diamond where each begins.
    const [left, right] = [own(badAt)(run[0]), panel.x(last[run.at(-1)])];
    if (run.length > 1) parts.push(s("rect", { class: "nonfinite-span", x: left, y: TOP - 8, width: Math.max(right - left, 1), height: 4 }));
  }
  for (let c = 0; c < count; c++) {
    if (nonfinite[c]) parts.push(s("path", { class: "nonfinite", d: diamond(own(badAt)(c), TOP - 6) }));
    else if (overflows[c] > 0) parts.push(s("path", { class: "overflow", d: diamond(middle(c), TOP - 6) }));
  }
  panel.norm.setAttribute("height", panel.heights.norm);
  put(panel.norm,
    ...grid(panel, { y, ticks }),
    ...inside(panel, 0, panel.heights.norm, ...parts, ...panel.seams(0, panel.heights.norm)),
    ...panel.shownIncidents().filter((one) => !byLoss(panel, one)).map((one) => dot(panel, one, y)).reverse(),
  );
}

/** The norm of another run, on this one's axis. */
function over(panel, { view, index }, y) {
  const { first, last, peak, peak_at: at } = view.windows;
  const x = (c) => panel.x(Number.isFinite(at[c]) ? at[c] + 0.5 : (first[c] + last[c]) / 2);
  return pieces(first.length, (c) => drawable(peak[c])).map((run) => stepped(`other other-${index}`, run, panel, first, last, x, (c) => y(peak[c])));
}

/** Whether an incident was found by its loss, and is marked there: the norm may look as ever. */
export const byLoss = (panel, incident) => incident.told.evidence?.quantity === "loss" && !panel.lossHeader.hidden;

export function dot(panel, incident, y, peak = panel.view.windows.peak) {
  // Not at the verdict's value: that may be an update over its weights.
  const { nonfinite } = panel.view.windows;
  const c = panel.column(panel.view.windows, incident.place);
  const at = [panel.x(incident.place + 0.5), c >= 0 && peak[c] > 0 && !nonfinite[c] ? Math.max(y(peak[c]), 10) : TOP];
  const choose = () => panel.say.choose(panel, incident);
  return s(
    "g",
    {
      class: `dot ${incident.told.level}${panel.isChosen(incident) ? " chosen" : ""}`,
      tabindex: "0",
      role: "button",
      "aria-label": `Incident ${incident.number}, ${incident.form}, step ${formatStep(incident.step)}`,
      transform: `translate(${at[0].toFixed(1)} ${at[1].toFixed(1)})`,
      onpointerdown: (event) => event.stopPropagation(),
      onclick: choose,
      onkeydown: (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), choose()),
    },
    s("circle", { r: 8.5 }),
    s("text", { "text-anchor": "middle", y: 3.5 }, String(incident.number)),
  );
}

export const diamond = (x, y) => `M${x} ${y - 5}l4 5l-4 5l-4 -5z`;
