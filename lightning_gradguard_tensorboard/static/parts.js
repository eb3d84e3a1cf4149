// The elements of a panel, with nothing drawn in them yet.

import { h, s } from "./dom.js";
import { lossKeys } from "./legend.js";
import { followKey, followPointer } from "./pointer.js";

/** Make a panel's elements, and let them follow pointer and keys. */
export function build(panel) {
  panel.verdict = h("div", { class: "verdict", role: "status" });
  panel.answers = h("dl", { class: "answers", hidden: true });
  panel.norm = s("svg", { class: "norm", role: "group", "aria-label": "Global gradient norm" });
  panel.loss = s("svg", { class: "loss", role: "img", "aria-label": "Loss, with treatments on trial" });
  panel.marks = s("svg", {
    class: "marks",
    role: "img",
    "aria-label": "Steps clipped or skipped, learning rate lowered, rollbacks",
  });
  panel.rate = s("svg", {
    class: "rate",
    role: "img",
    "aria-label": "Learning rate, between what the run has learned with and what has lost it",
  });
  panel.witnesses = s("svg", {
    class: "witnesses",
    role: "img",
    "aria-label":
      "What may move before the gradient: size of updates, second moment, attention logits, load of experts",
  });
  panel.steps = s("svg", { class: "steps", "aria-hidden": "true" });
  panel.reset = h(
    "button",
    { type: "button", class: "small", hidden: true, onclick: () => panel.say.zoom(null, null) },
    "Show all steps",
  );
  panel.normLegend = h("div", { class: "legend" });
  panel.line = h("div", { class: "crosshair", hidden: true });
  panel.pin = h("div", { class: "pin", hidden: true }, h("span", { class: "pin-label" }));
  panel.band = h("div", { class: "selection", hidden: true });
  panel.tip = h("div", { class: "tooltip", role: "tooltip", hidden: true });
  panel.lossHeader = h(
    "header",
    {},
    h("h2", {}, "Loss, with treatments on trial"),
    h("div", { class: "legend" }, lossKeys(), h("span", { class: "trial-keys" })),
  );
  panel.charts = h(
    "div",
    { class: "charts" },
    h("header", {}, h("h2", {}, "Global gradient norm"), panel.reset, panel.normLegend),
    panel.norm,
    panel.lossHeader,
    panel.loss,
    panel.marks,
    panel.rate,
    panel.witnesses,
    panel.steps,
    panel.heat.header,
    panel.heat.scroll,
    panel.line,
    panel.pin,
    panel.band,
    panel.tip,
  );
  panel.element = h(
    "article",
    { class: "panel", "data-run": panel.run },
    h("div", { class: "summary" }, panel.verdict, panel.answers),
    panel.charts,
  );
  const { canvas } = panel.heat;
  canvas.addEventListener("keydown", (event) => panel.view && followKey(panel, event));
  canvas.addEventListener(
    "focus",
    () => panel.cursor ?? panel.moveTo(panel.state.step ?? (panel.range[0] + panel.range[1]) / 2, 0, true),
  );
  for (const target of [panel.norm, panel.loss, panel.marks, panel.rate, panel.witnesses, canvas])
    followPointer(panel, target);
}
