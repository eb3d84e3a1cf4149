// What witnesses have seen, a row each: numbers that may move before the gradient does.

import { formatNumber, put, s } from "./dom.js";
import { drawable, inside, pieces, rowName, scale, stepped } from "./lines.js";

const ROW = 27;

/** Those that have seen something in the stretch in sight, with the names of their rows. */
const seen = ({ story, view }) =>
  Object.entries(story.witnesses).filter(([key]) => view.windows[key]?.some(drawable));

/**
 * Draw a row for each witness that there is, on a logarithmic scale of its own, with the lowest and the highest value
 * in sight below its name.
 */
export function drawWitnesses(panel) {
  const { windows } = panel.view;
  const { first, last } = windows;
  const rows = seen(panel);
  panel.witnesses.style.display = rows.length ? "" : "none";
  panel.witnesses.setAttribute("height", ROW * rows.length);
  const x = (c) => panel.x((first[c] + last[c]) / 2);
  const end = panel.gutter + panel.plotWidth;
  put(panel.witnesses,
    rows.flatMap(([key, name], row) => {
      const values = windows[key];
      const top = row * ROW;
      const { y } = scale(values, top + 2, ROW - 4);
      return [
        ...rowName(panel, name, values, top + 10),
        ...inside(
          panel,
          top,
          ROW,
          ...pieces(first.length, (c) => drawable(values[c])).map((run) =>
            stepped("witness-line", run, panel, first, last, x, (c) => y(values[c]), ROW / 4),
          ),
        ),
        s("line", { class: "grid", x1: panel.gutter, x2: end, y1: top + ROW - 0.5, y2: top + ROW - 0.5 }),
      ];
    }),
    ...panel.seams(0, ROW * rows.length),
  );
}

/** The same at one column, as lines of [name, value]. */
export const tellWitnesses = (panel, c) =>
  seen(panel)
    .filter(([key]) => drawable(panel.view.windows[key][c]))
    .map(([key, name]) => [name, formatNumber(panel.view.windows[key][c])]);
