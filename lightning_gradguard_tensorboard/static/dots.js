// Incidents as numbered circles at their step and norm, or loss; where two would touch, one stands above the other.

import { formatStep, s } from "./dom.js";

const RADIUS = 8.5;
const APART = 2 * RADIUS + 3;
const BELOW = 30;

/** Whether an incident was found by its loss, and is marked there: the norm may look as ever. */
export const byLoss = (panel, incident) => incident.told.evidence?.quantity === "loss" && !panel.lossHeader.hidden;

/** The circles of some incidents on a chart of some height, the newest first in the order of the keyboard. */
export function dots(panel, incidents, y, height, peak = panel.view.windows.peak) {
  const placed = [];
  return incidents.map((one) => {
    const [x, own] = [panel.x(one.place + 0.5), heightOf(panel, one, y, peak)];
    const offsets = Array.from({ length: 9 }, (_, n) => (n % 2 ? -1 : 1) * Math.ceil(n / 2) * APART);
    const free = (at) =>
      at >= RADIUS + 1 &&
      at <= height - RADIUS - 1 &&
      placed.every(([px, py]) => Math.abs(px - x) >= APART || Math.abs(py - at) >= APART);
    const at = offsets.map((offset) => own + offset).find(free) ?? own;
    placed.push([x, at]);
    return dot(panel, one, x, at, own);
  });
}

/** Not the verdict's value: that may be an update over its weights. What is not finite stands below its diamond. */
function heightOf(panel, incident, y, peak) {
  const c = panel.column(panel.view.windows, incident.place);
  return c >= 0 && peak[c] > 0 && !panel.view.windows.nonfinite[c] ? Math.max(y(peak[c]), 10) : BELOW;
}

function dot(panel, incident, x, at, own) {
  const choose = () => panel.say.choose(panel, incident);
  return s(
    "g",
    {
      class: `dot ${incident.told.level}${panel.isChosen(incident) ? " chosen" : ""}`,
      tabindex: "0",
      role: "button",
      "aria-label": `Incident ${incident.number}, ${incident.form}, step ${formatStep(incident.step)}`,
      transform: `translate(${x.toFixed(1)} ${at.toFixed(1)})`,
      onpointerdown: (event) => event.stopPropagation(),
      onclick: choose,
      onkeydown: (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), choose()),
    },
    at !== own && s("line", { class: "stem", x1: 0, x2: 0, y1: at < own ? RADIUS : -RADIUS, y2: own - at }),
    s("circle", { r: RADIUS }),
    s("text", { "text-anchor": "middle", y: 3.5 }, String(incident.number)),
  );
}
