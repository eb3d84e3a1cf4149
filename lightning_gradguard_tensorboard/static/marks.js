// What was done at each step, and the axis.

import { formatStep, put, s } from "./dom.js";
import { inside, pieces } from "./lines.js";
import { stepTicks } from "./scale.js";

const BARS = 24;
const LANE = 13;
const MOST_LANES = 4;
const AXIS = 24;

/** What was done: bars in a lane of their own, and above it marks of the rate and of rollbacks that do not touch. */
export function drawMarks(panel) {
  const above = inLanes([...panel.shownLowered().map((place) => lowered(panel, place)), ...rollbacks(panel)]);
  const top = LANE * Math.max(0, ...above.map(({ lane }) => lane + 1));
  const height = top + BARS;
  panel.marks.setAttribute("height", height);
  put(
    panel.marks,
    s("text", { class: "tick name", x: panel.gutter - 10, y: height - 8, "text-anchor": "end" }, "actions"),
    s("line", {
      class: "grid",
      x1: panel.gutter,
      x2: panel.gutter + panel.plotWidth,
      y1: height - 0.5,
      y2: height - 0.5,
    }),
    ...inside(
      panel,
      0,
      height,
      ...bars(panel, top),
      ...above.map(({ draw, lane }) => draw(top - LANE * (lane + 1))),
      ...panel.seams(0, height),
    ),
  );
}

/** Skipped and clipped steps. Windows of which all was skipped are one span, which says how many steps it is. */
function bars(panel, top) {
  const { first, last, coefficient, skipped, clipped } = panel.view.windows;
  const parts = [];
  const full = (c) => skipped[c] > 0 && skipped[c] >= last[c] - first[c];
  const whole = (c) => full(c) && (skipped[c] > 1 || (c > 0 && full(c - 1)) || (c + 1 < first.length && full(c + 1)));
  for (const run of pieces(first.length, whole)) {
    const [left, right] = [panel.x(first[run[0]]), panel.x(last[run.at(-1)])];
    const text = `${formatStep(run.reduce((sum, c) => sum + skipped[c], 0))} skipped`;
    parts.push(bar("held", left, Math.max(left + 4, right), top, text));
    if (right - left > 7 * text.length)
      parts.push(s("text", { class: "mark-count", x: (left + right) / 2, y: top + 12, "text-anchor": "middle" }, text));
  }
  const some = (keep, half) =>
    [...first.keys()]
      .filter(keep)
      .map((c) => panel.x((first[c] + last[c]) / 2))
      .map((x) => [x - half, x + half]);
  const held = some((c) => !whole(c) && (skipped[c] > 0 || coefficient[c] === 0), 2);
  const cut = some((c) => clipped[c] > 0 || (coefficient[c] > 0 && coefficient[c] < 1), 1);
  parts.push(...joined(held).map(([left, right]) => bar("held", left, right, top)));
  parts.push(...joined(cut).map(([left, right]) => bar("clipped", left, right, top)));
  return parts;
}

const bar = (kind, left, right, top, title) =>
  s(
    "rect",
    {
      class: `mark ${kind}`,
      x: left.toFixed(1),
      y: top + (kind === "held" ? 1 : 17),
      width: (right - left).toFixed(1),
      height: kind === "held" ? 15 : 5,
      rx: 1,
    },
    title && s("title", {}, title),
  );

/** Bars that would touch are one bar. */
function joined(spans) {
  const found = [];
  for (const [left, right] of spans) {
    if (found.length && left < found.at(-1)[1] + 1) found.at(-1)[1] = Math.max(right, found.at(-1)[1]);
    else found.push([left, right]);
  }
  return found;
}

/** Give each mark the lowest lane in which it touches no other; {left, right, draw} become {lane, draw}. */
function inLanes(marks) {
  const ends = [];
  return [...marks]
    .sort((a, b) => a.left - b.left)
    .map(({ left, right, draw }) => {
      const found = ends.findIndex((end) => left > end + 2);
      const lane = found >= 0 ? found : ends.length < MOST_LANES ? ends.length : 0;
      ends[lane] = Math.max(right, ends[lane] ?? right);
      return { lane, draw };
    });
}

function lowered(panel, place) {
  const x = panel.x(place);
  const draw = (top) => s("path", { class: "mark backoff", d: `M${(x - 5).toFixed(1)} ${top + 2}h10l-5 8z` });
  return { left: x - 5, right: x + 5, draw };
}

/**
 * Each rollback that a record tells of, with an arrow to the step it went back to, and each place where the steps
 * themselves go back.
 */
function rollbacks(panel) {
  const told = panel.shownRollbacks();
  const arrows = told.map(({ place, back_place: back, step, back_to: to }) => {
    const [x, target] = [panel.x(place + 0.5), back === null ? null : panel.x(back + 0.5)];
    const title = `rolled back at step ${formatStep(step)}${to === null ? "" : ` to step ${formatStep(to)}`}`;
    const far = target !== null && x - target > 6;
    const draw = (top) =>
      s(
        "g",
        { class: "went-back", "data-step": step },
        s("title", {}, title),
        far && s("path", { class: "back-line", d: `M${x.toFixed(1)} ${top + 7}H${target.toFixed(1)}m5 -4l-5 4l5 4` }),
        s("text", { class: "mark-text", x: x + 2, y: top + 11 }, "↶"),
      );
    return { left: far ? target : x, right: x + 15, draw };
  });
  const seams = panel.extent.segments
    .slice(1)
    .filter(({ start }) => !told.some(({ place }) => Math.abs(panel.x(place) - panel.x(start)) < 12))
    .map(({ start }) => panel.x(start));
  const turn = (x) => (top) => s("text", { class: "mark-text", x: x + 3, y: top + 11 }, "↶");
  return [...arrows, ...seams.map((x) => ({ left: x, right: x + 16, draw: turn(x) }))];
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
        s(
          "text",
          {
            class: "tick",
            x: Math.min(Math.max(x, panel.gutter + half - 4), end + 10 - half),
            y: 17,
            "text-anchor": "middle",
          },
          text,
        ),
      ];
    }),
  );
}
