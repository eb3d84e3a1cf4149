// The colours of the heatmap's cells, and the legend that says what they mean.

import { MISSING, ZERO } from "./api.js";
import { formatNumber, h, put } from "./dom.js";
import { STATISTICS, hasMiddle } from "./statistics.js";

/** Where absolute norms begin and end, in codes. */
export function normRange(heat) {
  if (!heat.normBounds) {
    let [low, high] = [Infinity, -Infinity];
    for (const code of heat.panel.view.codes) {
      if (code <= ZERO) continue;
      if (code < low) low = code;
      if (code > high) high = code;
    }
    heat.normBounds = low < high ? [low, high] : [0, 1];
  }
  return heat.normBounds;
}

/** How a cell is coloured, as a function of a row's numbers and a column. */
export function shade(heat) {
  const { colours, state } = heat.panel;
  const { table, nonfinitePixel, silentPixel } = colours;
  const index = (t) => table[Math.max(0, Math.min(255, Math.round(t * 255)))];
  if (state.stat === "norm") {
    const [low, high] = normRange(heat);
    return (row, c) =>
      row.nonfinite[c]
        ? nonfinitePixel
        : row.codes[c] <= ZERO
          ? silentPixel
          : index((row.codes[c] - low) / (high - low));
  }
  if (state.stat === "nonfinite") return (row, c) => (row.nonfinite[c] ? nonfinitePixel : index(0));
  const full = STATISTICS[state.stat].full * heat.source.perDoubling;
  return (row, c) =>
    row.nonfinite[c]
      ? nonfinitePixel
      : row.ratios[c] === MISSING
        ? silentPixel
        : index(0.5 + row.ratios[c] / full / 2);
}

/** What the colours mean, beside the title. */
export function drawLegend(heat) {
  const { colours, view, state } = heat.panel;
  const swatch = (colour, text) =>
    h("span", { class: "key" }, h("i", { class: "swatch", style: `background:${colour}` }), text);
  const ramp = (low, high) =>
    h("span", { class: "key" }, low, h("i", { class: "ramp", style: `background:${colours.css}` }), high);
  const ends = hasMiddle(state.stat)
    ? STATISTICS[state.stat].ends
    : normRange(heat).map((code) => formatNumber(2 ** (code / view.perDoubling)));
  put(
    heat.legend,
    view.sampled && h("span", { class: "key", role: "status" }, "a first sample; reading the rest …"),
    state.stat !== "nonfinite" && ramp(...ends),
    !STATISTICS[state.stat].weights && swatch(colours.nonfinite, "non-finite"),
    state.stat !== "nonfinite" &&
      swatch(colours.silent, STATISTICS[state.stat].weights ? "no update, or not known" : "no gradient"),
    heat.panel.blamed().size > 0 &&
      h("span", { class: "key" }, h("i", { class: "by", "data-numbers": "1" }), "blamed by that incident"),
    heat.panel.unusual().length > 0 && h("span", { class: "key" }, h("i", { class: "out-key" }, "●"), "unusual"),
  );
}
