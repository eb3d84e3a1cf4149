// The names beside the heatmap, each with its value at the crosshair, or at the marked step.

import { h } from "./dom.js";
import { LONG, TAIL } from "./rows.js";
import { STATISTICS } from "./statistics.js";

/** A long name loses its middle where there is no room: ends tell layers apart. */
const labelText = (text) =>
  text.length > LONG
    ? [h("span", { class: "text" }, text.slice(0, -TAIL)), h("span", { class: "tail" }, text.slice(-TAIL))]
    : h("span", { class: "text" }, text);

export function drawLabels(heat, begin, end, top) {
  const { panel, labels, rowHeight } = heat;
  const focused = labels.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const out = new Set(panel.unusual());
  const by = panel.blamed();
  labels.style.width = `${panel.gutter - 8}px`;
  const made = heat.rows.slice(begin, end).map((row, index) => {
    const offset = ((begin + index) * rowHeight - top).toFixed(1);
    const style = `top:${offset}px;height:${rowHeight}px;line-height:${rowHeight}px`;
    const marked = row.kind === "layer" && panel.state.layer === row.name;
    const blamed = marked ? (panel.state.incident?.panel === panel ? " blamed" : " chosen") : "";
    const away = row.kind === "layer" && out.has(row.name) ? " out" : "";
    const told = (row.kind === "layer" && by.get(row.name)) || [];
    const kind = `${row.child ? " child" : ""}${row.pinned ? " pinned" : ""}${away}${blamed}`;
    const numbers = told.map((one) => one.number).sort((a, b) => a - b);
    const text = labelText(row.child ? row.label : row.label.slice(panel.shared));
    const at = h("span", { class: "at" });
    if (row.kind !== "block")
      return h(
        "div",
        { class: `label${kind}`, style, title: row.name, onclick: () => panel.say.layer(row.name) },
        // The numbers of the circles at their steps.
        told.length > 0 && h("i", { class: `by ${told[0].told.level}`, "data-numbers": numbers.join(", ") }),
        text,
        at,
      );
    return h(
      "button",
      {
        type: "button",
        class: `label block${kind}`,
        style,
        title: `${row.name}: ${row.layers.length} layers`,
        "data-key": row.key,
        "aria-expanded": String(row.open),
        onclick: () => heat.toggle(row.block),
      },
      h("span", { class: "chevron", "aria-hidden": "true" }, row.open ? "▾" : "▸"),
      text,
      h("span", { class: "size" }, `${row.layers.length} layers`),
      at,
    );
  });
  labels.replaceChildren(...made);
  if (focused) made.find((one) => one.dataset.key === focused)?.focus();
  tellValues(heat, heat.told, begin);
}

/** Write each row's value at a place beside its name; null for no place. */
export function tellValues(heat, place, begin = heat.begin) {
  const { panel, labels, source } = heat;
  heat.told = place;
  const c =
    place === null || place === undefined || !source.layers.first.length ? -1 : panel.column(source.layers, place);
  labels.classList.toggle("telling", c >= 0);
  // The numbers are of one window, which may lie beside what is most to be seen.
  heat.atStep.textContent = c < 0 ? "" : `step ${panel.stepsOf(source.layers, c)}`;
  heat.atStep.style.width = `${panel.gutter - 12}px`;
  if (c < 0) return;
  const real = (code) => 2 ** (code / source.perDoubling);
  [...labels.children].forEach((label, index) => {
    const row = heat.rows[begin + index];
    const at = label.querySelector(".at");
    if (!row || !at) return;
    const numbers = heat.numbers(row);
    const bad = numbers.nonfinite[c];
    at.textContent = bad
      ? panel.state.stat === "nonfinite"
        ? String(bad)
        : "NaN, inf"
      : STATISTICS[panel.state.stat].text(real, numbers.codes[c], numbers.ratios[c]);
  });
}
