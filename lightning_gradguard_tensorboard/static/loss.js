// The loss on the same axis, with each treatment that was put on trial as a shaded span, from its step to its verdict.

import { formatNumber, h, put, s } from "./dom.js";
import { byLoss, dots } from "./dots.js";
import { area, grid, inside, pieces, scale, stepped } from "./lines.js";

const TOP = 16;
const KINDS = { kept: "kept", "taken back": "back" };

/** Of a single loss there is no line to draw. */
export const hasLoss = (view) => view.windows.loss_high.filter(Number.isFinite).length > 1;

export function drawLoss(panel) {
  const { first, last, loss_low: low, loss_high: high, loss_mean: mean } = panel.view.windows;
  if (panel.lossHeader.hidden) return;
  const others = panel.say.others(panel);
  const values = [low, high, ...others.flatMap(({ view }) => [view.windows.loss_low, view.windows.loss_high])]
    .flatMap((one) => [...one])
    .filter(Number.isFinite);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const height = panel.heights.loss;
  const { y, ticks } = scale(values, TOP, height - TOP, { log: least > 0 && most > 10 * least, room: 0.08 });
  const x = (c) => panel.x((first[c] + last[c]) / 2);
  const runs = pieces(first.length, (c) => Number.isFinite(mean[c]));
  const trials = panel.shownTrials();
  panel.lossHeader.firstChild.textContent = trials.length ? "Loss, with treatments on trial" : "Loss";
  panel.lossHeader.querySelector(".trial-keys").replaceChildren(...trialKeys(trials));
  panel.loss.setAttribute("height", height);
  put(
    panel.loss,
    ...grid(panel, { y, ticks }),
    ...inside(
      panel,
      0,
      height,
      ...runs.map((run) =>
        area(
          "loss-band",
          edged(run, first, last),
          ([, place]) => panel.x(place),
          ([c]) => y(high[c]),
          ([c]) => y(low[c]),
        ),
      ),
      ...trials.map((one) => span(panel, one, y, height)),
      ...runs.map((run) => stepped("loss-line", run, panel, first, last, x, (c) => y(mean[c]))),
      ...others.flatMap(({ view, index }) => overLoss(panel, view, index, y)),
      ...panel.seams(0, height),
    ),
    ...words(panel, trials),
    ...dots(panel, panel.shownIncidents().filter((one) => byLoss(panel, one)), y, height, high).reverse(),
  );
}

/** Both ends of each window: between two there is no slope. */
const edged = (run, first, last) => run.flatMap((c) => [[c, first[c]], [c, last[c]]]);

function overLoss(panel, view, index, y) {
  const { first, last, loss_mean: mean } = view.windows;
  return pieces(first.length, (c) => Number.isFinite(mean[c])).map((run) =>
    stepped(
      `other other-${index}`,
      run,
      panel,
      first,
      last,
      (c) => panel.x((first[c] + last[c]) / 2),
      (c) => y(mean[c]),
    ),
  );
}

/**
 * The span of one trial, and the levels that were compared: a dashed line before the trouble, a ring in it, a disc at
 * the end.
 */
function span(panel, one, y, height) {
  const [left, right] = edges(panel, one);
  const [before, trouble, after] = (one.numbers ?? []).map(Number);
  const title = (name, value) => s("title", {}, `loss ${LEVELS[name]}: ${formatNumber(value)}`);
  const known = Number.isFinite;
  return s(
    "g",
    { class: `trial ${KINDS[one.outcome] ?? "open"}`, "data-from": one.from, "data-to": one.to },
    s("title", {}, `${one.treatment}${one.became ? `: ${one.became}` : ", on trial"}`),
    s("rect", { x: left, y: TOP, width: Math.max(right - left, 2), height: height - TOP }),
    known(before) &&
      s(
        "path",
        { class: "level before", d: `M${left - 24} ${y(before).toFixed(1)}H${Math.max(right, left + 8)}` },
        title("before", before),
      ),
    known(trouble) &&
      known(after) &&
      s("path", { class: "level-way", d: `M${left} ${y(trouble).toFixed(1)}L${right} ${y(after).toFixed(1)}` }),
    known(trouble) &&
      one.is_new !== false &&
      s("circle", { class: "level trouble", r: 3.5, cx: left, cy: y(trouble).toFixed(1) }, title("trouble", trouble)),
    known(after) &&
      s("circle", { class: "level after", r: 3.5, cx: right, cy: y(after).toFixed(1) }, title("after", after)),
  );
}

const LEVELS = { before: "before the trouble", trouble: "in the trouble", after: "at the end of the trial" };
const edges = (panel, one) => [panel.x(one.from), panel.x(one.to ?? panel.range[1])];

/** What became of each trial, above its span where there is room for it. */
function words(panel, trials) {
  let free = panel.gutter;
  return trials.flatMap((one) => {
    const text = one.outcome ?? "on trial";
    const room = 7.4 * text.length;
    const [left, right] = edges(panel, one).map((x) =>
      Math.min(Math.max(x, panel.gutter), panel.gutter + panel.plotWidth),
    );
    const middle = Math.min(Math.max((left + right - room) / 2, panel.gutter), panel.gutter + panel.plotWidth - room);
    // A word gives way to the one before it, as long as it still touches its span.
    const at = Math.max(middle, free);
    if (at > Math.max(middle, right)) return [];
    free = at + room + 8;
    return [s("text", { class: `trial-word ${KINDS[one.outcome] ?? "open"}`, x: at, y: TOP - 4 }, text)];
  });
}

const trialKeys = (trials) => [
  ...[
    ["kept", "kept"],
    ["back", "taken back"],
    ["open", "on trial, or unmeasured"],
  ]
    .filter(([kind]) => trials.some((one) => (KINDS[one.outcome] ?? "open") === kind))
    .map(([kind, text]) => h("span", { class: "key" }, h("i", { class: `swatch trial-key ${kind}` }), text)),
  ...(trials.length
    ? [
        h("span", { class: "key" }, h("i", { class: "swatch before-key" }), "before"),
        h("span", { class: "key" }, "○ in the trouble"),
        h("span", { class: "key" }, "● at the end"),
      ]
    : []),
];
