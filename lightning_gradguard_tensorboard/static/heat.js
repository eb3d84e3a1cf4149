// The heatmap: a row a layer, a column a window, on a canvas that draws only what is in sight.
// Longer than 200 lines: what is drawn on one canvas, and its rows, need each other.

import { mapColumns } from "./columns.js";
import { h } from "./dom.js";
import { drawLabels } from "./labels.js";
import { heats, pinned, rowsOf, worstOf } from "./rows.js";
import { drawLegend, shade } from "./shades.js";
import { STATISTICS, sourceOf } from "./statistics.js";

const LEAST_ROW = 15;
export const MOST_ROW = 26;

export class Heat {
  /** @param {object} panel whose view, axis and state it draws */
  constructor(panel) {
    Object.assign(this, { panel, open: new Set(), rows: [], tops: new Map(), rowHeight: LEAST_ROW });
    this.labels = h("div", { class: "labels" });
    this.canvas = h("canvas", {
      class: "heat",
      tabindex: "0",
      role: "application",
      "aria-label":
        "Gradient of each layer at each step. Arrow keys move, Enter pins, plus and minus zoom, 0 shows all.",
    });
    this.stage = h("div", { class: "stage" }, this.labels, this.canvas);
    this.spacer = h("div", { class: "spacer" }, this.stage);
    this.scroll = h("div", { class: "scroll", tabindex: "-1" }, this.spacer);
    this.title = h("h2", {});
    this.legend = h("div", { class: "legend" });
    this.foldAll = h("button", { type: "button", class: "small", onclick: () => this.toggleAll() });
    this.atStep = h("div", { class: "at-step", title: "the largest of these steps, beside each layer's name" });
    this.header = h("header", { class: "heat-header" }, this.title, this.foldAll, this.legend, this.atStep);
    this.scroll.addEventListener("scroll", () => this.paint());
  }

  /** A new view: what was worked out from the old one is forgotten. */
  forget() {
    this.tops.clear();
    this.heats = this.hotColumns = this.normBounds = null;
  }

  /** The numbers that are drawn. */
  get source() {
    return sourceOf(this.panel);
  }

  /** Unfold all of a small network, and of a large one what stands out. */
  unfold(layers) {
    const { blocks, names } = this.panel;
    for (const layer of layers) {
      const block = blocks.findIndex((one) => one.folds && one.layers.includes(names.indexOf(layer)));
      if (block >= 0) this.open.add(block);
    }
  }

  arrange() {
    const { names, blocks, state } = this.panel;
    const heat = (layer) => (this.heats ??= heats(this.source, names.length))[layer];
    const how = { order: state.order, search: state.search, heat };
    this.rows = rowsOf(names, blocks, this.open, how);
    const room = this.scroll.clientHeight || 1;
    const plain = state.order === "forward" && !state.search;
    if (plain) this.rows = pinned(this.rows, this.panel.standsOut(), names, Math.floor(room / LEAST_ROW));
    this.folds = plain ? blocks.filter((block) => block.folds).length : 0;
  }

  draw() {
    const { state } = this.panel;
    this.arrange();
    this.title.textContent = STATISTICS[state.stat].title;
    this.foldAll.hidden = this.folds === 0;
    this.foldAll.textContent = this.open.size < this.folds ? "Unfold all" : "Fold all";
    const room = this.scroll.clientHeight;
    this.rowHeight = Math.max(LEAST_ROW, Math.min(MOST_ROW, room / Math.max(this.rows.length, 1)));
    this.spacer.style.height = `${Math.max(this.rows.length * this.rowHeight, 0)}px`;
    this.stage.style.height = `${room}px`;
    this.columns = mapColumns(this);
    this.paint();
    drawLegend(this);
  }

  numbers(row) {
    if (!this.tops.has(row.key)) this.tops.set(row.key, worstOf(this.source, row.layers));
    return this.tops.get(row.key);
  }

  paint() {
    const { panel, canvas } = this;
    if (!panel.view || !panel.colours || !this.columns) return;
    const ratio = window.devicePixelRatio || 1;
    const width = this.columns.length;
    const room = this.scroll.clientHeight;
    const top = this.scroll.scrollTop;
    const begin = Math.floor(top / this.rowHeight);
    const end = Math.min(this.rows.length, Math.ceil((top + room) / this.rowHeight));
    canvas.style.left = `${panel.gutter}px`;
    canvas.style.width = `${panel.plotWidth}px`;
    canvas.style.height = `${room}px`;
    canvas.width = width;
    canvas.height = Math.round(room * ratio);
    const context = canvas.getContext("2d");
    this.begin = begin;
    if (end <= begin || !this.source.layers.first.length) {
      const none = panel.names.length
        ? end <= begin
          ? "No layer has this in its name."
          : "Weights were not measured in this run."
        : "No layer statistics in this run.";
      this.labels.replaceChildren(h("p", { class: "quiet nothing" }, none));
      return;
    }
    const image = new ImageData(width, end - begin);
    const pixels = new Uint32Array(image.data.buffer);
    const colour = shade(this);
    for (let r = begin; r < end; r++) {
      const numbers = this.numbers(this.rows[r]);
      const offset = (r - begin) * width;
      for (let px = 0; px < width; px++) {
        const c = this.columns[px];
        pixels[offset + px] = c < 0 ? panel.colours.emptyPixel : colour(numbers, c);
      }
    }
    const scratch = (this.scratch ??= document.createElement("canvas"));
    [scratch.width, scratch.height] = [width, end - begin];
    scratch.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(
      scratch,
      0,
      0,
      width,
      end - begin,
      0,
      (begin * this.rowHeight - top) * ratio,
      width,
      (end - begin) * this.rowHeight * ratio,
    );
    // Hairlines let the eye follow a row; a block is set off from the one above it.
    context.fillStyle = panel.colours.empty;
    for (let r = begin; r < end; r++) {
      const thick = this.rows[r].child || r === 0 ? 1 : this.rows[r - 1].pinned && !this.rows[r].pinned ? 4 : 2;
      context.fillRect(
        0,
        Math.round((r * this.rowHeight - top) * ratio),
        width,
        thick * Math.max(1, Math.floor(ratio)),
      );
    }
    drawLabels(this, begin, end, top);
    this.outline(context, ratio, top);
  }

  outline(context, ratio, top) {
    const { state, cursor } = this.panel;
    const draw = (r, colour, thickness) => {
      context.strokeStyle = colour;
      context.lineWidth = thickness * ratio;
      const y = (r * this.rowHeight - top) * ratio;
      context.strokeRect(
        thickness * ratio * 0.5,
        y + thickness * ratio * 0.5,
        this.columns.length - thickness * ratio,
        (this.rowHeight - thickness + 1) * ratio,
      );
    };
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    this.rows.forEach((row, at) => row.kind === "layer" && row.name === state.layer && draw(at, ink, 2));
    if (document.activeElement === this.canvas && cursor?.row !== undefined) draw(cursor.row, ink, 1);
  }

  toggle(block) {
    if (!this.open.delete(block)) this.open.add(block);
    this.draw();
  }

  toggleAll() {
    const { blocks } = this.panel;
    const folds = [...blocks.keys()].filter((index) => blocks[index].folds);
    this.open = new Set(this.open.size < folds.length ? folds : []);
    this.draw();
  }

  /** Unfold, scroll to and outline a layer. */
  reveal(layer) {
    this.unfold([layer]);
    this.draw();
    const row = this.rows.findIndex((one) => one.kind === "layer" && one.name === layer);
    if (row < 0) return;
    this.show(row, true);
    this.paint();
  }

  /** Scroll so that a row is in sight, in the middle of it if asked for. */
  show(row, middle = false) {
    const { scroll } = this;
    const at = row * this.rowHeight;
    const room = scroll.clientHeight;
    if (at >= scroll.scrollTop && at + this.rowHeight <= scroll.scrollTop + room) return;
    scroll.scrollTop = middle ? at - room / 2 : at < scroll.scrollTop ? at : at + this.rowHeight - room;
  }

  rowAt(offset) {
    return Math.floor((offset + this.scroll.scrollTop) / this.rowHeight);
  }
}
