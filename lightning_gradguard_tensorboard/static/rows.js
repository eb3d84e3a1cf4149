// Layers in forward order, folded to blocks.

import { MISSING } from "./api.js";

/** The block of a layer: up to its first number ("blocks.7" of "blocks.7.mlp.fc2"), or its own name if it has none. */
export function blockOf(name) {
  const parts = name.split(".");
  const at = parts.findIndex((part) => /^\d+$/.test(part));
  return at >= 0 && at < parts.length - 1 ? parts.slice(0, at + 1).join(".") : null;
}

/** Neighbouring layers of one block, as {name, layers: [indices]}; a layer alone is a block without a fold. */
export function blocksOf(names) {
  const blocks = [];
  names.forEach((name, index) => {
    const block = blockOf(name);
    const last = blocks[blocks.length - 1];
    if (block !== null && last?.name === block && last.folds) last.layers.push(index);
    else blocks.push({ name: block ?? name, layers: [index], folds: block !== null });
  });
  return blocks.map((block) =>
    block.layers.length > 1 ? block : { ...block, name: names[block.layers[0]], folds: false },
  );
}

export const ORDERS = [
  ["forward", "Forward"],
  ["worst", "Worst first"],
  ["name", "By name"],
];

const byName = new Intl.Collator("en", { numeric: true });
const layerRow = (names, layer, more = {}) => ({
  kind: "layer",
  key: `l${layer}`,
  layers: [layer],
  label: names[layer],
  name: names[layer],
  ...more,
});

/**
 * The rows to draw: a fold's head, its layers when it is open, and layers that stand alone.
 *
 * @param {object} how {order, search, heat}: an order other than forward, or words to search for, gives single layers
 *   without folds; `heat(layer)` tells how far a layer stands out.
 */
export function rowsOf(names, blocks, open, { order = "forward", search = "", heat = () => 0 } = {}) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = names
    .map((_, layer) => layer)
    .filter((layer) => words.every((word) => names[layer].toLowerCase().includes(word)));
  if (order === "worst") found.sort((a, b) => heat(b) - heat(a));
  if (order === "name") found.sort((a, b) => byName.compare(names[a], names[b]));
  if (order !== "forward" || words.length) return found.map((layer) => layerRow(names, layer));
  return blocks.flatMap((block, index) => {
    if (!block.folds) return [layerRow(names, block.layers[0])];
    const isOpen = open.has(index);
    const head = {
      kind: "block",
      key: `b${index}`,
      block: index,
      open: isOpen,
      layers: block.layers,
      label: block.name,
      name: block.name,
    };
    const children = block.layers.map((layer) =>
      layerRow(names, layer, { child: true, label: names[layer].slice(block.name.length + 1) }),
    );
    return isOpen ? [head, ...children] : [head];
  });
}

const PINNED = 8;

/**
 * The rows with what stands out above them where it is folded away, or below the `seen` rows that are in sight at once;
 * nothing is listed twice.
 */
export function pinned(rows, out, names, seen) {
  const at = new Map(rows.map((row, index) => [row.kind === "layer" ? row.name : null, index]));
  const mine = rows.length > seen ? out.slice(0, PINNED) : [];
  let far = [];
  // Each row above the others takes a place in sight from them.
  for (let before = -1; before < far.length; ) {
    before = far.length;
    far = mine.filter((name) => !(at.get(name) < seen - before));
  }
  const above = far.map((name) => ({ ...layerRow(names, names.indexOf(name)), key: `p${name}`, pinned: true }));
  return [...above, ...rows.filter((row) => row.kind !== "layer" || !far.includes(row.name))];
}

/**
 * How far one cell of a view stands out: the size of its ratio, up or down, in codes; what is not finite is above all.
 */
const heatOf = (view, at) => (view.nonfinite[at] ? 1e6 : view.ratios[at] === MISSING ? 0 : Math.abs(view.ratios[at]));

/** How far each layer stands out in a view. */
export function heats(view, count) {
  const columns = view.layers.first.length;
  const found = new Float64Array(count);
  for (let at = 0; at < count * columns; at++)
    found[Math.floor(at / columns)] = Math.max(found[Math.floor(at / columns)], heatOf(view, at));
  return found;
}

/** How far each column does, by the layer that stands out most. */
export function hotColumns(view) {
  const columns = view.layers.first.length;
  const found = new Float64Array(columns);
  for (let at = 0; at < view.ratios.length; at++) found[at % columns] = Math.max(found[at % columns], heatOf(view, at));
  return found;
}

/** How much of long names is not worth its room: the path that all have in common. */
export function sharedPrefix(names) {
  if (names.length < 2 || names.every((name) => name.length <= LONG)) return 0;
  const paths = names.map((name) => name.split(".").slice(0, -1));
  let same = 0;
  while (paths.every((path) => same < path.length && path[same] === paths[0][same])) same++;
  return paths[0].slice(0, same).join(".").length + (same > 0);
}

export const TAIL = 14;
export const LONG = 2 * TAIL;

const size = (ratio) => (ratio === MISSING ? -1 : Math.abs(ratio));
/** Whether a ratio lies farther from what is usual, up or down; of two alike the higher. */
const hotter = (ratio, than) => size(ratio) > size(than) || (size(ratio) === size(than) && ratio > than);

/** One row's numbers: a block shows the worst of its layers. Returns arrays of one value a column. */
export function worstOf(view, layers) {
  const columns = view.layers.first.length;
  const part = (matrix, layer) => matrix.subarray(layer * columns, (layer + 1) * columns);
  if (layers.length === 1) {
    const [layer] = layers;
    return { codes: part(view.codes, layer), ratios: part(view.ratios, layer), nonfinite: part(view.nonfinite, layer) };
  }
  const worst = {
    codes: part(view.codes, layers[0]).slice(),
    ratios: part(view.ratios, layers[0]).slice(),
    nonfinite: part(view.nonfinite, layers[0]).slice(),
    which: new Int32Array(columns).fill(layers[0]),
  };
  for (const layer of layers.slice(1)) {
    const [codes, ratios, nonfinite] = [view.codes, view.ratios, view.nonfinite].map((matrix) => part(matrix, layer));
    for (let c = 0; c < columns; c++) {
      if (codes[c] > worst.codes[c]) worst.codes[c] = codes[c];
      if (hotter(ratios[c], worst.ratios[c])) {
        worst.ratios[c] = ratios[c];
        if (!worst.nonfinite[c]) worst.which[c] = layer;
      }
      if (nonfinite[c] > worst.nonfinite[c]) {
        worst.nonfinite[c] = nonfinite[c];
        worst.which[c] = layer;
      }
    }
  }
  return worst;
}
