// What was done at each step, the bracket of the rate, and the axis.

import { formatNumber, formatStep, put, s } from "./dom.js";
import { area, drawable, inside, pieces, scale } from "./lines.js";
import { stepTicks } from "./scale.js";

const HEIGHT = 24;
const RATE = 46;
const AXIS = 24;

export function drawMarks(panel) {
  const { first, last, coefficient, skipped, clipped, lr_factor: factor } = panel.view.windows;
  const parts = [];
  const full = (c) => skipped[c] > 0 && skipped[c] >= last[c] - first[c];
  const whole = (c) => full(c) && (skipped[c] > 1 || (c > 0 && full(c - 1)) || (c + 1 < first.length && full(c + 1)));
  // Windows of which all was skipped are one span, which says how many steps it is.
  for (const run of pieces(first.length, whole)) {
    const [left, right] = [panel.x(first[run[0]]), panel.x(last[run.at(-1)])];
    const text = `${formatStep(run.reduce((sum, c) => sum + skipped[c], 0))} skipped`;
    parts.push(s("rect", { class: "mark held", x: left, y: 3, width: Math.max(4, right - left), height: HEIGHT - 5, rx: 1 }, s("title", {}, text)));
    if (right - left > 7 * text.length) parts.push(s("text", { class: "mark-count", x: (left + right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, text));
  }
  for (let c = 0; c < first.length; c++) {
    const x = panel.x((first[c] + last[c]) / 2);
    if (!whole(c) && (skipped[c] > 0 || coefficient[c] === 0)) parts.push(s("rect", { class: "mark held", x: x - 2, y: 3, width: 4, height: HEIGHT - 5, rx: 1 }));
    if (clipped[c] > 0 || (coefficient[c] > 0 && coefficient[c] < 1)) parts.push(s("rect", { class: "mark clipped", x: x - 1, y: HEIGHT - 11, width: 2, height: 9, rx: 1 }));
    if (c && factor[c] < factor[c - 1]) parts.push(s("path", { class: "mark backoff", d: `M${x - 5} 4h10l-5 8z` }));
  }
  panel.marks.setAttribute("height", HEIGHT);
  put(panel.marks,
    s("text", { class: "tick name", x: panel.gutter - 10, y: HEIGHT - 8, "text-anchor": "end" }, "actions"),
    s("line", { class: "grid", x1: panel.gutter, x2: panel.gutter + panel.plotWidth, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
    ...inside(panel, 0, HEIGHT, ...parts, ...panel.seams(0, HEIGHT), ...rollbacks(panel)),
  );
}

/** Each rollback that a record tells of, with an arrow to the step it went back to, and each place where the steps themselves go back. */
function rollbacks(panel) {
  const told = panel.shownRollbacks();
  const arrows = told.map(({ place, back_place: back, step, back_to: to }) => {
    const [x, target] = [panel.x(place + 0.5), back === null ? null : panel.x(back + 0.5)];
    const title = `rolled back at step ${formatStep(step)}${to === null ? "" : ` to step ${formatStep(to)}`}`;
    return s(
      "g",
      { class: "went-back", "data-step": step },
      s("title", {}, title),
      target !== null && x - target > 6 && s("path", { class: "back-line", d: `M${x.toFixed(1)} 12H${target.toFixed(1)}m5 -4l-5 4l5 4` }),
      s("text", { class: "mark-text", x: x + 2, y: 16 }, "↶"),
    );
  });
  const seams = panel.extent.segments.slice(1).filter(({ start }) => !told.some(({ place }) => Math.abs(panel.x(place) - panel.x(start)) < 12));
  return [...arrows, ...seams.map(({ start }) => s("text", { class: "mark-text", x: panel.x(start) + 3, y: 16 }, "↶"))];
}

/** The bracket of the rate: what the run has learned with, what has lost it, and what is in use between them. */
export function drawRate(panel) {
  const { first, last, rate, rate_good: good, rate_bad: bad } = panel.view.windows;
  const shown = bad.some(Number.isFinite) && rate.some(drawable);
  panel.rate.style.display = shown ? "" : "none";
  if (!shown) return;
  const { y } = scale([...rate, ...good, ...bad], 4, RATE - 8);
  const x = (c) => panel.x((first[c] + last[c]) / 2);
  const bracketed = pieces(first.length, (c) => drawable(bad[c]));
  const last_known = bracketed.at(-1)?.at(-1);
  // A window tells the rate of its last step: between two there is no slope.
  const stairs = (name, run, level) => s("polyline", { class: name, points: run.map((c) => `${panel.x(first[c]).toFixed(1)},${level(c).toFixed(1)} ${panel.x(last[c]).toFixed(1)},${level(c).toFixed(1)}`).join(" ") });
  const edge = last_known === undefined ? 0 : y(bad[last_known]);
  // Inside of the shade or below it: its edge does not cross the words.
  const word = (text) => s("text", { class: "tick", x: panel.gutter + panel.plotWidth - 4, y: edge >= 16 ? edge - 4 : edge + 12, "text-anchor": "end" }, text);
  panel.rate.setAttribute("height", RATE);
  put(panel.rate,
    s("text", { class: "tick name", x: panel.gutter - 10, y: RATE / 2 + 4, "text-anchor": "end" }, "learning rate"),
    ...inside(
      panel,
      0,
      RATE,
      ...bracketed.map((run) => area("rate-lost", run, x, () => 0, (c) => y(bad[c]))),
      ...pieces(first.length, (c) => drawable(good[c]) && drawable(bad[c])).map((run) => stairs("rate-good", run, (c) => y(good[c]))),
      ...pieces(first.length, (c) => drawable(rate[c])).map((run) => stairs("rate-line", run, (c) => y(rate[c]))),
      ...panel.seams(0, RATE),
    ),
    last_known !== undefined && word(`shaded: too high (by now above ${formatNumber(bad[last_known])})`),
    s("line", { class: "grid", x1: panel.gutter, x2: panel.gutter + panel.plotWidth, y1: RATE - 0.5, y2: RATE - 0.5 }),
  );
}

export function drawSteps(panel) {
  const [from, to] = panel.range;
  const end = panel.gutter + panel.plotWidth;
  panel.steps.setAttribute("height", AXIS);
  put(panel.steps,
    s("line", { class: "axis", x1: panel.gutter, x2: end, y1: 0.5, y2: 0.5 }),
    s("text", { class: "tick name", x: panel.gutter - 10, y: 17, "text-anchor": "end" }, "step"),
    ...stepTicks(panel.extent.segments, from, to, panel.plotWidth).flatMap(({ place, step }) => {
      const [text, x] = [formatStep(step), panel.x(place)];
      // A long number at an edge stays clear of the axis' name, and inside the picture.
      const half = 3.4 * text.length;
      return [
        s("line", { class: "axis", x1: x, x2: x, y1: 0, y2: 4 }),
        s("text", { class: "tick", x: Math.min(Math.max(x, panel.gutter + half - 4), end + 10 - half), y: 17, "text-anchor": "middle" }, text),
      ];
    }),
  );
}
