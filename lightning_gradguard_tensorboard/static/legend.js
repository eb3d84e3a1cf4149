// What the lines and marks are, in a word each.

import { h, s } from "./dom.js";
import { drawable } from "./lines.js";
import { diamond } from "./norm.js";

const key = (mark, text, title) => h("span", { class: "key", title }, mark, text);
const drawn = (name) =>
  s(
    "svg",
    { class: "drawn", viewBox: "-6 -6 12 12", "aria-hidden": "true" },
    s("path", { class: name, d: diamond(0, 0) }),
  );

/** What the lines are, and those marks that there are. */
export function normKeys(panel) {
  const { nonfinite, overflows, clipped, skipped, coefficient } = panel.view.windows;
  return [
    key(h("i", { class: "swatch peak-key" }), "largest norm", "the largest norm of each window, at its own step"),
    key(h("i", { class: "swatch typical-key" }), "typical (median)", "the running median of the norm"),
    key(h("i", { class: "swatch band-key" }), "healthy band", "as far below the typical norm as the limit is above it"),
    key(
      h("i", { class: "swatch limit-key" }),
      "limit: no step above it",
      "a step whose norm is above the limit is skipped or clipped",
    ),
    panel.shownIncidents().length > 0 && key(h("i", { class: "dot-key" }), "incident"),
    nonfinite.some((count) => count > 0) && key(drawn("nonfinite"), "non-finite"),
    overflows.some((count) => count > 0) && key(drawn("overflow"), "scaler overflow"),
    (clipped.some((count) => count > 0) || coefficient.some((one) => one > 0 && one < 1)) &&
      key(h("i", { class: "swatch clip-key" }), "clipped"),
    (skipped.some((count) => count > 0) || coefficient.some((one) => one === 0)) &&
      key(h("i", { class: "swatch held-key" }), "skipped"),
    panel.shownLowered().length > 0 &&
      key(
        h("i", { class: "text-key" }, "▼"),
        "LR lowered, or halved after a climb",
        "the learning rate was lowered by a treatment, or halved where it had climbed too far since",
      ),
    panel.view.windows.rate_bad.some(Number.isFinite) &&
      key(
        h("i", { class: "swatch rate-good-key" }),
        "LR that worked",
        "the largest learning rate that the run is known to have learned with; the solid line is the one in use",
      ),
    panel.view.windows.rate_bad.some(drawable) &&
      key(
        h("i", { class: "swatch rate-lost-key" }),
        "LR too high",
        "above the bound: the rate that has lost the run; calm steps raise the bound",
      ),
    (panel.shownRollbacks().length > 0 || panel.extent.segments.length > 1) &&
      key(h("i", { class: "text-key" }, "← ↶"), "rollback", "weights went back to the step where the arrow ends"),
  ];
}

/** What the lines of the loss are. */
export const lossKeys = () => [
  key(h("i", { class: "swatch loss-key" }), "mean"),
  key(h("i", { class: "swatch loss-band-key" }), "lowest to highest"),
];
