// What is at the cursor, in words.

import { MISSING, ZERO } from "./api.js";
import { formatNumber, formatRatio, formatStep, h } from "./dom.js";
import { tellWitnesses } from "./witnesses.js";

const NOTHING = [["", "nothing was measured here"]];
const times = (count) => `${formatStep(count)} step${count === 1 ? "" : "s"}`;

export function tellLayer(panel, place, row) {
  const { source } = panel.heat;
  const c = row ? panel.column(source.layers, place) : -1;
  if (c < 0) return NOTHING;
  const numbers = panel.heat.numbers(row);
  const real = (code) => 2 ** (code / source.perDoubling);
  const lines = [["layer", row.name === "" ? "the root module" : row.name], ["step", panel.stepsOf(source.layers, c)]];
  if (numbers.which) lines.push(["worst", panel.names[numbers.which[c]].slice(row.name.length + 1)]);
  const bad = numbers.nonfinite[c];
  if (bad) lines.push(["non-finite", `in ${bad === 255 ? "255 or more" : bad} step${bad === 1 ? "" : "s"}`]);
  const value =
    numbers.codes[c] === MISSING ? "–" : numbers.codes[c] <= ZERO ? "0" : formatNumber(real(numbers.codes[c]));
  const ratio = numbers.ratios[c] === MISSING ? null : formatRatio(real(numbers.ratios[c]));
  const { stat } = panel.state;
  if (stat === "update")
    return [...lines, ["update", value === "0" ? "none: nothing moved" : `${value} of the weights, in one step`]];
  if (stat === "weight") return [...lines, ["norm", value], ...(ratio ? [["ratio", `${ratio} its first`]] : [])];
  return [...lines, ["value", value], ...(ratio ? [["ratio", `${ratio} its running median`]] : [])];
}

export function tellSteps(panel, place) {
  const w = panel.view.windows;
  const c = panel.column(w, place);
  if (c < 0) return NOTHING;
  const own = (at) =>
    Number.isFinite(at) && w.last[c] - w.first[c] > 1 ? ` at step ${formatStep(Math.floor(at - w.offset[c]))}` : "";
  const norm = () => {
    if (w.nonfinite[c])
      return `${w.peak[c] > 0 ? `${formatNumber(w.peak[c])}, and ` : ""}non-finite${own(w.nonfinite_at[c])}`;
    if (w.overflows[c] > 0 && !w.peak[c]) return "none: the scaler's overflow";
    return `${formatNumber(w.peak[c])}${own(w.peak_at[c])}`;
  };
  const lines = [["step", panel.stepsOf(w, c)], ["norm", norm()]];
  if (Number.isFinite(w.limit[c]))
    lines.push(["typical", formatNumber(w.typical[c])], ["limit", formatNumber(w.limit[c])]);
  if (Number.isFinite(w.loss_mean[c])) {
    const spread =
      w.loss_high[c] > w.loss_low[c] ? ` (${formatNumber(w.loss_low[c])} to ${formatNumber(w.loss_high[c])})` : "";
    lines.push(["loss", `${formatNumber(w.loss_mean[c])}${spread}`]);
  }
  // Logs of older versions do not count: there the smallest coefficient is all that is known.
  if (w.skipped[c] > 0) lines.push(["skipped", times(w.skipped[c])]);
  else if (w.coefficient[c] === 0) lines.push(["skipped", "the update was held"]);
  if (w.clipped[c] > 0)
    lines.push([
      "clipped",
      `${times(w.clipped[c])}${w.coefficient[c] > 0 ? `, down to × ${formatNumber(w.coefficient[c])}` : ""}`,
    ]);
  else if (w.coefficient[c] > 0 && w.coefficient[c] < 1)
    lines.push(["clipped", `× ${formatNumber(w.coefficient[c])}`]);
  if (w.overflows[c] > 0) lines.push(["scaler", `${times(w.overflows[c])} skipped by the GradScaler, as expected`]);
  if (Number.isFinite(w.rate[c]))
    lines.push([
      "LR",
      `${formatNumber(w.rate[c])}${w.lr_factor[c] === 1 ? "" : `, × ${formatNumber(w.lr_factor[c])} of the schedule`}`,
    ]);
  else if (w.lr_factor[c] !== 1) lines.push(["LR factor", formatNumber(w.lr_factor[c])]);
  return [...lines, ...tellWitnesses(panel, c)];
}

/** Show lines of [name, value] beside a place: below the pointer's row, or beside the charts. */
export function showTip(panel, place, lines) {
  const { tip, cursor, heat, charts } = panel;
  const value = (name, text) => (name === "layer" || name === "worst" ? h("code", {}, text) : h("b", {}, text));
  tip.replaceChildren(...lines.map(([name, text]) => h("div", {}, h("span", {}, name), value(name, text))));
  tip.hidden = false;
  const x = panel.x(place);
  const at = heat.scroll.offsetTop + (cursor.row ?? 0) * heat.rowHeight - heat.scroll.scrollTop;
  const below = at + heat.rowHeight + 8;
  const y =
    cursor.row === undefined
      ? panel.norm.offsetTop + 60
      : below + tip.offsetHeight > charts.clientHeight
        ? at - tip.offsetHeight - 10
        : below;
  const left = x + 16 + tip.offsetWidth > charts.clientWidth ? x - 16 - tip.offsetWidth : x + 16;
  Object.assign(tip.style, { left: `${Math.max(0, left)}px`, top: `${y}px` });
}
