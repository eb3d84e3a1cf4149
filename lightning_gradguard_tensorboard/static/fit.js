// Which chart gets how much of the room.

import { MOST_ROW } from "./heat.js";
import { hasLoss } from "./loss.js";

export const HEIGHTS = { norm: [150, 320], loss: [96, 220] };
const FOOTER = 36;

/** Give the room that a few layers leave to the charts above them. */
export function fit(panel) {
  const loss = hasLoss(panel.view) || panel.say.others(panel).some(({ view }) => hasLoss(view));
  panel.lossHeader.hidden = !loss;
  panel.loss.style.display = loss ? "" : "none";
  panel.heat.arrange();
  const rows = Math.max(panel.heat.rows.length, 4) * MOST_ROW;
  const others = [...panel.charts.children].filter(
    (one) =>
      ![panel.norm, panel.loss, panel.heat.scroll].includes(one) && getComputedStyle(one).position !== "absolute",
  );
  const taken = others.reduce(
    (sum, one) => sum + one.getBoundingClientRect().height + (one.tagName === "HEADER" ? 12 : 0),
    0,
  );
  // What the window has, and not what the charts have now: they would grow by what they were given.
  const top = panel.charts.getBoundingClientRect().top + document.body.scrollTop;
  const room = document.documentElement.clientHeight - top - FOOTER;
  const spare = getComputedStyle(panel.heat.scroll).flexGrow === "0" ? 0 : room - taken - rows;
  const clamp = (value, [least, most]) => Math.round(Math.min(Math.max(value, least), most));
  const short = room < 620 && spare < HEIGHTS.norm[0] + (loss ? HEIGHTS.loss[0] : 0);
  const share = loss ? 0.6 : 1;
  panel.heights = {
    norm: short ? 128 : clamp(spare * share, HEIGHTS.norm),
    loss: short ? 84 : clamp(spare * (1 - share), HEIGHTS.loss),
  };
}
