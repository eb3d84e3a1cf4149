// The pointer and the keys: a drag zooms, a click pins a step, arrows walk over the heatmap.

/** Let one of the drawings follow the pointer. */
export function followPointer(panel, target) {
  const at = (event) => event.clientX - panel.charts.getBoundingClientRect().left;
  const inside = (x) => Math.min(Math.max(x, panel.gutter), panel.gutter + panel.plotWidth);
  let start = null;
  target.addEventListener("pointermove", (event) => {
    const x = at(event);
    if (start !== null && Math.abs(x - start) > 4) {
      const [low, high] = [Math.min(start, inside(x)), Math.max(start, inside(x))];
      Object.assign(panel.band.style, { left: `${low}px`, width: `${high - low}px` });
      panel.band.hidden = false;
      return;
    }
    if (x < panel.gutter || x > panel.gutter + panel.plotWidth) return panel.leave();
    panel.moveTo(panel.place(x), target === panel.heat.canvas ? panel.heat.rowAt(event.offsetY) : undefined);
  });
  target.addEventListener("pointerleave", () => start === null && panel.leave());
  target.addEventListener("pointerdown", (event) => {
    const x = at(event);
    if (event.button !== 0 || x < panel.gutter) return;
    start = inside(x);
    target.setPointerCapture(event.pointerId);
  });
  target.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const [low, high] = [start, inside(at(event))].sort((a, b) => a - b);
    start = null;
    panel.band.hidden = true;
    if (high - low > 4) panel.say.zoom(panel.place(low), panel.place(high));
    else
      panel.say.pin(
        Math.floor(panel.place(low)),
        target === panel.heat.canvas ? panel.heat.rowAt(event.offsetY) : undefined,
        panel,
      );
  });
  target.addEventListener("pointercancel", () => ((start = null), (panel.band.hidden = true)));
  target.addEventListener("dblclick", () => panel.say.zoom(null, null));
}

/** Act on a key that was pressed in the heatmap. */
export function followKey(panel, event) {
  const { say, extent, heat } = panel;
  const { layers } = heat.source;
  const [from, to] = panel.range;
  const { place, row = 0 } = panel.cursor ?? { place: (from + to) / 2 };
  const c = panel.column(layers, place);
  const hop = (by) => {
    const { first, last } = layers;
    const next = Math.max(0, Math.min(first.length - 1, c + by));
    return first.length ? (first[next] + last[next]) / 2 : place;
  };
  const goTo = (wanted) => {
    const next = Math.max(0, Math.min(heat.rows.length - 1, wanted));
    heat.show(next);
    panel.moveTo(place, next, true);
  };
  const far = event.shiftKey ? 10 : 1;
  const zoom = (factor) =>
    say.zoom(
      Math.max(extent.start, place - (place - from) * factor),
      Math.min(extent.end, place + (to - place) * factor),
    );
  const acts = {
    ArrowLeft: () => panel.moveTo(hop(-far), row, true),
    ArrowRight: () => panel.moveTo(hop(far), row, true),
    ArrowUp: () => goTo(row - far),
    ArrowDown: () => goTo(row + far),
    Home: () => panel.moveTo(hop(-1e9), row, true),
    End: () => panel.moveTo(hop(1e9), row, true),
    Enter: () => say.pin(Math.floor(place), row, panel),
    " ": () => heat.rows[row]?.kind === "block" && heat.toggle(heat.rows[row].block),
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(2),
    0: () => say.zoom(null, null),
    "/": () => say.search(),
    Escape: () => (say.pin(null), panel.leave()),
  };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
}
