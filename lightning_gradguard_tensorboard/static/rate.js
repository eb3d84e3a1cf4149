// The bracket of the rate: what the run has learned with, what has lost it, and what is in use between them.

import { formatNumber, put, s } from "./dom.js";
import { area, drawable, inside, pieces, rowName, scale } from "./lines.js";

const RATE = 46;
const LETTER = 6.4;

export function drawRate(panel) {
  const { rate, rate_good: good, rate_bad: bad } = panel.view.windows;
  const [first, last] = stairsAt(panel.view.windows, panel.extent.lowered);
  const shown = bad.some(Number.isFinite) && rate.some(drawable);
  panel.rate.style.display = shown ? "" : "none";
  if (!shown) return;
  const { y } = scale([...rate, ...good, ...bad], 4, RATE - 8);
  const bracketed = pieces(first.length, (c) => drawable(bad[c]));
  // A window tells the rate of its last step: between two there is no slope.
  const at = (place, height) => `${panel.x(place).toFixed(1)},${height.toFixed(1)}`;
  const stairs = (name, run, level) => {
    const points = run.map((c) => `${at(first[c], level(c))} ${at(last[c], level(c))}`).join(" ");
    return s("polyline", { class: name, points });
  };
  panel.rate.setAttribute("height", RATE);
  put(
    panel.rate,
    ...rowName(panel, "learning rate", rate, RATE / 2 - 2),
    ...inside(
      panel,
      0,
      RATE,
      ...bracketed.map((run) =>
        area(
          "rate-lost",
          edged(run, first, last),
          ([, place]) => panel.x(place),
          () => 0,
          ([c]) => y(bad[c]),
        ),
      ),
      ...pieces(first.length, (c) => drawable(good[c]) && drawable(bad[c])).map((run) =>
        stairs("rate-good", run, (c) => y(good[c])),
      ),
      ...pieces(first.length, (c) => drawable(rate[c])).map((run) => stairs("rate-line", run, (c) => y(rate[c]))),
      ...panel.seams(0, RATE),
    ),
    bracketed.length > 0 && words(panel, bracketed.at(-1), first, bad, y),
    s("line", { class: "grid", x1: panel.gutter, x2: panel.gutter + panel.plotWidth, y1: RATE - 0.5, y2: RATE - 0.5 }),
  );
}

/** The shade, as `telling/words.py` says it: the bound and what calm steps have made of it; less where room is short */
function words(panel, run, first, bad, y) {
  const ends = [bad[run[0]], bad[run.at(-1)]];
  const [began, now] = ends.map(formatNumber);
  const moved = began === now ? "" : ends[1] > ends[0] ? "raised" : "lowered";
  const bound = moved ? `bound ${moved} from ${began} to ${now}` : `bound ${began}`;
  const by = moved === "raised" ? " by calm steps" : "";
  const end = panel.gutter + panel.plotWidth - 4;
  const room = end - Math.max(panel.x(first[run[0]]), panel.gutter);
  const text = [`too high: ${bound}${by}`, `too high: ${bound}`, bound, "too high"].find(
    (one) => LETTER * one.length < room,
  );
  if (!text) return null;
  const edge = y(bad[run.at(-1)]);
  // Inside of the shade or below it: its edge does not cross the words.
  return s("text", { class: "tick", x: end, y: edge >= 16 ? edge - 4 : edge + 12, "text-anchor": "end" }, text);
}

/** Both ends of each window: between two there is no slope. */
const edged = (run, first, last) => run.flatMap((c) => [[c, first[c]], [c, last[c]]]);

/** Where columns begin and end if the rate steps where it was lowered, and not at the edge of the column. */
function stairsAt({ first, last }, lowered) {
  const [begins, ends] = [[...first], [...last]];
  for (const place of lowered) {
    const c = first.findLastIndex((begin) => begin <= place);
    if (c < 0 || place >= last[c]) continue;
    begins[c] = place;
    if (c && last[c - 1] >= first[c]) ends[c - 1] = place;
  }
  return [begins, ends];
}
