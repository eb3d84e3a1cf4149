// Layers in forward order, folded to blocks.

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

/** The rows to draw: a fold's head, its layers when it is open, and layers that stand alone. */
export function rowsOf(names, blocks, open) {
  const rows = [];
  blocks.forEach((block, index) => {
    if (!block.folds) {
      rows.push({ kind: "layer", key: `l${block.layers[0]}`, layers: block.layers, label: block.name, name: block.name });
      return;
    }
    const isOpen = open.has(index);
    rows.push({ kind: "block", key: `b${index}`, block: index, open: isOpen, layers: block.layers, label: block.name, name: block.name });
    if (!isOpen) return;
    for (const layer of block.layers) {
      const label = names[layer].slice(block.name.length + 1);
      rows.push({ kind: "layer", key: `l${layer}`, child: true, layers: [layer], label, name: names[layer] });
    }
  });
  return rows;
}

/** One row's numbers: a block shows the worst of its layers. Returns arrays of one value a column. */
export function worstOf(view, layers) {
  const columns = view.layers.first.length;
  const part = (matrix, layer) => matrix.subarray(layer * columns, (layer + 1) * columns);
  if (layers.length === 1) {
    const [layer] = layers;
    return { codes: part(view.codes, layer), ratios: part(view.ratios, layer), nonfinite: part(view.nonfinite, layer) };
  }
  const worst = { codes: part(view.codes, layers[0]).slice(), ratios: part(view.ratios, layers[0]).slice(), nonfinite: part(view.nonfinite, layers[0]).slice(), which: new Int32Array(columns).fill(layers[0]) };
  for (const layer of layers.slice(1)) {
    const [codes, ratios, nonfinite] = [view.codes, view.ratios, view.nonfinite].map((matrix) => part(matrix, layer));
    for (let c = 0; c < columns; c++) {
      if (codes[c] > worst.codes[c]) worst.codes[c] = codes[c];
      if (ratios[c] > worst.ratios[c]) {
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
