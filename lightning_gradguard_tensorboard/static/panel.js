// One run: its verdict, the norm in its band, the markers and the heatmap, all on one step axis.

import { MISSING, ZERO, fetchView } from "./api.js";
import { formatNumber, formatRatio, formatStep, h, s } from "./dom.js";
import { palette } from "./palette.js";
import { blocksOf, rowsOf, worstOf } from "./rows.js";
import { logTicks, stepTicks } from "./scale.js";

const NORM_HEIGHT = 190;
const AXIS_HEIGHT = 26;
const MARKS_HEIGHT = 22;
const RIGHT = 14;
const FULL_RATIO = Math.log2(100);
const GLYPHS = { good: "✓", warning: "!", bad: "✕" };

export const STATISTICS = [
  ["ratio", "Norm / running median"],
  ["norm", "Norm, absolute"],
  ["nonfinite", "Non-finite steps"],
];

export class Panel {
  /**
   * @param {string} run
   * @param {object} story what the server tells of it
   * @param {object} state the page's, read only: {from, to, step, stat, colour, optimizer, layer, incident}
   * @param {object} say what the page does when the user acts here: {cursor, pin, zoom, choose, speak}
   */
  constructor(run, story, state, say) {
    Object.assign(this, { run, story, state, say, view: null, cursor: null, open: new Set(), tops: new Map() });
    this.build();
    this.settle(story);
    new ResizeObserver(() => this.resized()).observe(this.scroll);
  }

  build() {
    this.verdict = h("div", { class: "verdict", role: "status" });
    this.norm = s("svg", { class: "norm", height: NORM_HEIGHT + AXIS_HEIGHT, role: "group", "aria-label": "Global gradient norm" });
    this.marks = s("svg", { class: "marks", height: MARKS_HEIGHT, role: "img", "aria-label": "Steps clipped or skipped, learning-rate factor, rollbacks" });
    this.labels = h("div", { class: "labels" });
    this.canvas = h("canvas", { class: "heat", tabindex: "0", role: "application", "aria-label": "Gradient of each layer at each step. Arrow keys move, Enter pins, plus and minus zoom, 0 shows all." });
    this.stage = h("div", { class: "stage" }, this.labels, this.canvas);
    this.spacer = h("div", { class: "spacer" }, this.stage);
    this.scroll = h("div", { class: "scroll", tabindex: "-1" }, this.spacer);
    this.line = h("div", { class: "crosshair", hidden: true });
    this.pin = h("div", { class: "pin", hidden: true }, h("span", { class: "pin-label" }));
    this.band = h("div", { class: "selection", hidden: true });
    this.tip = h("div", { class: "tooltip", role: "tooltip", hidden: true });
    this.legend = h("div", { class: "legend" });
    this.heatTitle = h("h2", {});
    this.foldAll = h("button", { type: "button", class: "small", onclick: () => this.toggleAll() });
    this.charts = h(
      "div",
      { class: "charts" },
      h("header", {}, h("h2", {}, "Global gradient norm"), h("div", { class: "legend" }, ...NORM_LEGEND())),
      this.norm,
      this.marks,
      h("header", {}, this.heatTitle, this.foldAll, this.legend),
      this.scroll,
      this.line,
      this.pin,
      this.band,
      this.tip,
    );
    this.element = h("article", { class: "panel", "data-run": this.run }, this.verdict, this.charts);

    this.scroll.addEventListener("scroll", () => this.drawHeat());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => this.cursor ?? this.moveTo(this.state.step ?? (this.range[0] + this.range[1]) / 2, 0, true));
    for (const target of [this.norm, this.marks, this.canvas]) this.listen(target);
  }

  /** Take in a story, the first or a newer one. */
  settle(story) {
    this.story = story;
    const mine = story.optimizers.find((one) => one.optimizer === this.state.optimizer) ?? story.optimizers[0];
    this.extent = mine;
    if (this.names?.join("\n") !== mine.layers.join("\n")) {
      this.names = mine.layers;
      this.blocks = blocksOf(mine.layers);
      this.shared = sharedPrefix(this.blocks.map((block) => block.name));
      this.open = new Set(mine.layers.length <= 32 ? this.blocks.keys() : []);
    }
    const { level, headline, words } = story.verdict;
    this.verdict.className = `verdict ${level}`;
    this.verdict.replaceChildren(
      h("span", { class: "glyph", "aria-hidden": "true" }, GLYPHS[level]),
      h("p", {}, h("b", {}, headline), " ", words.map(({ text, layer }) => (layer === undefined ? text : h("code", {}, layer)))),
      h("span", { class: "run-name", title: this.run }, this.run),
    );
  }

  /** What is shown: the chosen stretch, or all that any of the runs side by side has. */
  get range() {
    const all = this.say.bounds();
    const from = this.state.from ?? all[0];
    const to = this.state.to ?? all[1];
    return to > from ? [from, to] : all;
  }

  /** Fetch what the state asks for, and draw it. An answer that a newer question has overtaken is dropped. */
  async load() {
    const [from, to] = this.range;
    const ticket = (this.ticket = {});
    const columns = Math.max(100, Math.min(1600, Math.round(this.plotWidth)));
    const wanted = { run: this.run, optimizer: this.extent.optimizer, from, to, columns };
    // A large run is first shown from a sample, which may miss a spike, and a moment later in full.
    for (const quick of this.view ? [null] : [1, null]) {
      const view = await fetchView({ ...wanted, quick });
      if (ticket !== this.ticket) return;
      this.view = view;
      this.tops.clear();
      this.layout();
      this.element.dataset.loaded = `${Math.round(view.start)}-${Math.round(view.end)}`;
      this.element.dataset.sampled = view.sampled;
      if (!view.sampled) return;
    }
  }

  get gutter() {
    return this.element.clientWidth < 720 ? 128 : 176;
  }

  get plotWidth() {
    return Math.max(60, this.charts.clientWidth - this.gutter - RIGHT);
  }

  x(place) {
    const [from, to] = this.range;
    return this.gutter + ((place - from) / (to - from)) * this.plotWidth;
  }

  place(x) {
    const [from, to] = this.range;
    return from + ((x - this.gutter) / this.plotWidth) * (to - from);
  }

  /** The step the user knows, at a place on the axis. */
  step(place) {
    const segments = this.extent.segments;
    const segment = [...segments].reverse().find((one) => one.start <= place) ?? segments[0];
    return Math.floor(place - (segment?.offset ?? 0));
  }

  resized() {
    const width = this.charts.clientWidth;
    if (!width || (width === this.width && this.scroll.clientHeight === this.height)) return;
    const reload = this.view && width !== this.width;
    [this.width, this.height] = [width, this.scroll.clientHeight];
    this.layout();
    if (reload) this.load();
  }

  layout() {
    if (!this.view || !this.charts.clientWidth) return;
    this.colours = palette(this.state.colour, document.documentElement.dataset.theme, this.state.stat === "ratio");
    this.drawNorm();
    this.drawMarks();
    this.drawRows();
    this.drawLegend();
    this.drawPin();
  }

  // ---- the norm -----------------------------------------------------------------------------------------------------------

  shownIncidents() {
    const [from, to] = this.range;
    return this.story.incidents.filter((one) => one.optimizer === this.extent.optimizer && one.place >= from && one.place < to);
  }

  /** log10 of the smallest and the largest norm in sight, for a scale that runs side by side share. */
  decades() {
    const logs = [];
    const take = (value) => value > 0 && Number.isFinite(value) && logs.push(Math.log10(value));
    if (this.view) for (const name of ["peak", "typical", "limit"]) this.view.windows[name].forEach(take);
    return logs.length ? [logs.reduce((a, b) => Math.min(a, b)), logs.reduce((a, b) => Math.max(a, b))] : null;
  }

  drawNorm() {
    const { first, last, peak, nonfinite, typical, limit, overflows } = this.view.windows;
    const bottom = NORM_HEIGHT;
    const count = first.length;
    const incidents = this.shownIncidents();
    let [low, high] = this.say.decades();
    const room = Math.max(0.12 * (high - low), 0.15);
    [low, high] = [low - room, high + room];
    const top = 20;
    const y = (value) => bottom - ((Math.min(Math.max(Math.log10(value), low), high) - low) / (high - low)) * (bottom - top);
    const middle = (c) => this.x((first[c] + last[c]) / 2);
    this.y = y;

    const parts = [];
    for (const tick of logTicks(low, high, 5)) {
      const at = bottom - ((tick - low) / (high - low)) * (bottom - top);
      parts.push(s("line", { class: "grid", x1: this.gutter, x2: this.gutter + this.plotWidth, y1: at, y2: at }));
      parts.push(s("text", { class: "tick", x: this.gutter - 10, y: at + 4, "text-anchor": "end" }, formatNumber(Number((10 ** tick).toPrecision(1)))));
    }
    const runs = (keep) => {
      const found = [];
      for (let c = 0, open = null; c < count; c++) {
        if (!keep(c)) open = null;
        else if (open) open.push(c);
        else found.push((open = [c]));
      }
      return found;
    };
    const good = (value) => value > 0 && Number.isFinite(value);
    for (const run of runs((c) => good(typical[c]) && good(limit[c]))) {
      const above = run.map((c) => `${middle(c).toFixed(1)},${y(limit[c]).toFixed(1)}`);
      // The band lies evenly about the centre on the log axis: as far below it as the limit is above.
      const below = run.map((c) => `${middle(c).toFixed(1)},${y(typical[c] ** 2 / limit[c]).toFixed(1)}`).reverse();
      parts.push(s("polygon", { class: "band", points: [...above, ...below].join(" ") }));
      parts.push(s("polyline", { class: "limit", points: above.join(" ") }));
      parts.push(s("polyline", { class: "typical", points: run.map((c) => `${middle(c).toFixed(1)},${y(typical[c]).toFixed(1)}`).join(" ") }));
    }
    for (const run of runs((c) => good(peak[c]))) {
      const points = run.map((c) => `${middle(c).toFixed(1)},${y(peak[c]).toFixed(1)}`);
      parts.push(run.length > 1 ? s("polyline", { class: "peak", points: points.join(" ") }) : s("circle", { class: "peak-dot", r: 1.5, cx: middle(run[0]), cy: y(peak[run[0]]) }));
    }
    for (let c = 0; c < count; c++) {
      if (nonfinite[c]) parts.push(s("path", { class: "nonfinite", d: diamond(middle(c), top - 6) }));
      else if (overflows[c] > 0) parts.push(s("path", { class: "overflow", d: diamond(middle(c), top - 6) }));
    }
    parts.push(...this.axis(bottom));
    parts.push(...this.rollbacks(0, NORM_HEIGHT));
    parts.push(...incidents.map((one) => this.dot(one, top)).reverse());
    this.norm.replaceChildren(...parts);
  }

  axis(top) {
    const [from, to] = this.range;
    return [
      s("line", { class: "axis", x1: this.gutter, x2: this.gutter + this.plotWidth, y1: top, y2: top }),
      s("text", { class: "tick name", x: this.gutter - 10, y: top + 18, "text-anchor": "end" }, "step"),
      stepTicks(this.extent.segments, from, to, this.plotWidth).map(({ place, step }) => [
        s("line", { class: "axis", x1: this.x(place), x2: this.x(place), y1: top, y2: top + 4 }),
        // A long number at the left edge stays clear of the axis' name.
        s("text", { class: "tick", x: Math.max(this.x(place), this.gutter + 3.4 * formatStep(step).length - 4), y: top + 18, "text-anchor": "middle" }, formatStep(step)),
      ]),
    ].flat(3);
  }

  rollbacks(top, bottom) {
    const [from, to] = this.range;
    return this.extent.segments.slice(1).filter((one) => one.start > from && one.start < to).map(({ start }) => s("line", { class: "rollback", x1: this.x(start), x2: this.x(start), y1: top, y2: bottom }));
  }

  dot(incident, top) {
    // Not at the verdict's value: that may be a loss, or an update over its weights.
    const { peak, nonfinite } = this.view.windows;
    const c = this.column(this.view.windows, incident.place);
    const at = [this.x(incident.place + 0.5), c >= 0 && peak[c] > 0 && !nonfinite[c] ? this.y(peak[c]) : top];
    const chosen = this.isChosen(incident);
    const { level } = incident.told;
    const choose = () => this.say.choose(this, incident);
    return s(
      "g",
      {
        class: `dot ${level}${chosen ? " chosen" : ""}`,
        tabindex: "0",
        role: "button",
        "aria-label": `Incident ${incident.number}, ${incident.form}, step ${formatStep(incident.step)}`,
        transform: `translate(${at[0].toFixed(1)} ${at[1].toFixed(1)})`,
        onpointerdown: (event) => event.stopPropagation(),
        onclick: choose,
        onkeydown: (event) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), choose()),
      },
      s("circle", { r: 8.5 }),
      s("text", { "text-anchor": "middle", y: 3.5 }, String(incident.number)),
    );
  }

  isChosen(incident) {
    const chosen = this.state.incident;
    return chosen?.panel === this && chosen.number === incident.number && chosen.optimizer === incident.optimizer;
  }

  // ---- what was done ------------------------------------------------------------------------------------------------------

  drawMarks() {
    const { first, last, coefficient, skipped, lr_factor: factor } = this.view.windows;
    const parts = [
      s("text", { class: "tick name", x: this.gutter - 10, y: MARKS_HEIGHT - 7, "text-anchor": "end" }, "actions"),
      s("line", { class: "grid", x1: this.gutter, x2: this.gutter + this.plotWidth, y1: MARKS_HEIGHT - 0.5, y2: MARKS_HEIGHT - 0.5 }),
    ];
    for (let c = 0; c < first.length; c++) {
      const x = this.x((first[c] + last[c]) / 2);
      if (skipped[c] > 0 || coefficient[c] === 0) parts.push(s("rect", { class: "mark held", x: x - 2, y: 3, width: 4, height: MARKS_HEIGHT - 5, rx: 1 }));
      else if (coefficient[c] < 1) parts.push(s("rect", { class: "mark clipped", x: x - 1, y: MARKS_HEIGHT - 11, width: 2, height: 9, rx: 1 }));
      if (c && factor[c] < factor[c - 1]) parts.push(s("path", { class: "mark backoff", d: `M${x - 5} 4h10l-5 8z` }));
    }
    parts.push(...this.rollbacks(0, MARKS_HEIGHT));
    for (const { start } of this.extent.segments.slice(1)) {
      if (start > this.range[0] && start < this.range[1]) parts.push(s("text", { class: "mark-text", x: this.x(start) + 3, y: 15 }, "↶"));
    }
    this.marks.replaceChildren(...parts);
  }

  // ---- the heatmap --------------------------------------------------------------------------------------------------------

  drawRows() {
    this.rows = rowsOf(this.names, this.blocks, this.open);
    const folds = this.blocks.filter((block) => block.folds).length;
    this.heatTitle.textContent = { ratio: "Layers, against their own running median", norm: "Layers, gradient norm", nonfinite: "Layers, steps with a non-finite gradient" }[this.state.stat];
    this.foldAll.hidden = folds === 0;
    this.foldAll.textContent = this.open.size < folds ? "Unfold all" : "Fold all";
    const room = this.scroll.clientHeight;
    this.rowHeight = Math.max(15, Math.min(26, room / Math.max(this.rows.length, 1)));
    this.spacer.style.height = `${Math.max(this.rows.length * this.rowHeight, 0)}px`;
    this.stage.style.height = `${room}px`;
    this.mapColumns();
    this.drawHeat();
  }

  /** For each device pixel of the plot, the column that covers it, or -1 where nothing was measured. */
  mapColumns() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.plotWidth * ratio);
    const { first, last } = this.view.layers;
    const [from, to] = this.range;
    this.columns = new Int32Array(width).fill(-1);
    const typicalWidth = this.extent.windows ? (this.extent.end - this.extent.start) / this.extent.windows : 1;
    for (let px = 0, c = 0; px < width; px++) {
      const place = from + ((px + 0.5) / width) * (to - from);
      while (c < first.length - 1 && last[c] <= place) c++;
      // Seams between columns, of a sampling loader or of steps without a window, belong to the nearer one.
      const seam = Math.max(typicalWidth, (to - from) / 300);
      if (first.length && place >= first[c] - seam && place < last[c] + seam) this.columns[px] = c;
    }
    // A column narrower than a pixel must not vanish: one that holds a non-finite value wins its pixel.
    for (let c = 0; c < first.length; c++) {
      const px = Math.floor((((first[c] + last[c]) / 2 - from) / (to - from)) * width);
      if (px >= 0 && px < width && this.columns[px] !== c && this.bad(c)) this.columns[px] = c;
    }
  }

  bad(column) {
    this.badColumns ??= new Map();
    if (this.badFor !== this.view) {
      this.badFor = this.view;
      const count = this.view.layers.first.length;
      this.badColumns = new Uint8Array(count);
      for (let i = 0; i < this.view.nonfinite.length; i++) if (this.view.nonfinite[i]) this.badColumns[i % count] = 1;
    }
    return this.badColumns[column];
  }

  numbers(row) {
    if (!this.tops.has(row.key)) this.tops.set(row.key, worstOf(this.view, row.layers));
    return this.tops.get(row.key);
  }

  /** Where absolute norms begin and end, in codes. */
  normRange() {
    if (this.rangeFor !== this.view) {
      this.rangeFor = this.view;
      let [low, high] = [Infinity, -Infinity];
      for (const code of this.view.codes) {
        if (code <= ZERO) continue;
        if (code < low) low = code;
        if (code > high) high = code;
      }
      this.normBounds = low < high ? [low, high] : [0, 1];
    }
    return this.normBounds;
  }

  shade() {
    const { table, nonfinitePixel, silentPixel } = this.colours;
    const index = (t) => table[Math.max(0, Math.min(255, Math.round(t * 255)))];
    const { perDoubling } = this.view;
    if (this.state.stat === "norm") {
      const [low, high] = this.normRange();
      return (row, c) => (row.nonfinite[c] ? nonfinitePixel : row.codes[c] <= ZERO ? silentPixel : index((row.codes[c] - low) / (high - low)));
    }
    if (this.state.stat === "nonfinite") return (row, c) => (row.nonfinite[c] ? nonfinitePixel : index(0));
    const full = FULL_RATIO * perDoubling;
    return (row, c) => (row.nonfinite[c] ? nonfinitePixel : row.ratios[c] === MISSING ? silentPixel : index(0.5 + row.ratios[c] / full / 2));
  }

  drawHeat() {
    if (!this.view || !this.colours || !this.columns) return;
    const ratio = window.devicePixelRatio || 1;
    const width = this.columns.length;
    const room = this.scroll.clientHeight;
    const top = this.scroll.scrollTop;
    const begin = Math.floor(top / this.rowHeight);
    const end = Math.min(this.rows.length, Math.ceil((top + room) / this.rowHeight));
    const canvas = this.canvas;
    canvas.style.left = `${this.gutter}px`;
    canvas.style.width = `${this.plotWidth}px`;
    canvas.style.height = `${room}px`;
    canvas.width = width;
    canvas.height = Math.round(room * ratio);
    const context = canvas.getContext("2d");
    if (end <= begin) {
      this.labels.replaceChildren(h("p", { class: "quiet nothing" }, "No layer statistics in this run."));
      return;
    }
    const image = new ImageData(width, end - begin);
    const pixels = new Uint32Array(image.data.buffer);
    const colour = this.shade();
    for (let r = begin; r < end; r++) {
      const numbers = this.numbers(this.rows[r]);
      const offset = (r - begin) * width;
      for (let px = 0; px < width; px++) {
        const c = this.columns[px];
        pixels[offset + px] = c < 0 ? this.colours.emptyPixel : colour(numbers, c);
      }
    }
    const scratch = (this.scratch ??= document.createElement("canvas"));
    [scratch.width, scratch.height] = [width, end - begin];
    scratch.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(scratch, 0, 0, width, end - begin, 0, (begin * this.rowHeight - top) * ratio, width, (end - begin) * this.rowHeight * ratio);
    // Hairlines let the eye follow a row; a block is set off from the one above it.
    context.fillStyle = this.colours.empty;
    for (let r = begin; r < end; r++) {
      const thick = this.rows[r].child || r === 0 ? 1 : 2;
      context.fillRect(0, Math.round((r * this.rowHeight - top) * ratio), width, thick * Math.max(1, Math.floor(ratio)));
    }
    this.drawLabels(begin, end, top);
    this.outline(context, ratio, top);
  }

  drawLabels(begin, end, top) {
    const focused = this.labels.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    this.labels.style.width = `${this.gutter - 8}px`;
    const made = this.rows.slice(begin, end).map((row, index) => {
      const style = `top:${((begin + index) * this.rowHeight - top).toFixed(1)}px;height:${this.rowHeight}px;line-height:${this.rowHeight}px`;
      const blamed = this.state.layer !== null && this.state.layer === row.name && this.state.incident?.panel === this ? " blamed" : "";
      if (row.kind === "block") {
        return h(
          "button",
          { type: "button", class: `label block${blamed}`, style, title: `${row.name}: ${row.layers.length} layers`, "data-key": row.key, "aria-expanded": String(row.open), onclick: () => this.toggle(row.block) },
          h("span", { class: "chevron", "aria-hidden": "true" }, row.open ? "▾" : "▸"),
          labelText(row.child ? row.label : row.label.slice(this.shared)),
          h("span", { class: "size" }, String(row.layers.length)),
        );
      }
      return h("div", { class: `label${row.child ? " child" : ""}${blamed}`, style, title: row.name }, labelText(row.child ? row.label : row.label.slice(this.shared)));
    });
    this.labels.replaceChildren(...made);
    if (focused) made.find((one) => one.dataset.key === focused)?.focus();
  }

  outline(context, ratio, top) {
    const draw = (r, colour, thickness) => {
      context.strokeStyle = colour;
      context.lineWidth = thickness * ratio;
      const y = (r * this.rowHeight - top) * ratio;
      context.strokeRect(thickness * ratio * 0.5, y + thickness * ratio * 0.5, this.columns.length - thickness * ratio, (this.rowHeight - thickness + 1) * ratio);
    };
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    if (this.state.layer && this.state.incident?.panel === this) {
      const at = this.rows.findIndex((row) => row.kind === "layer" && row.name === this.state.layer);
      if (at >= 0) draw(at, ink, 2);
    }
    if (document.activeElement === this.canvas && this.cursor?.row !== undefined) draw(this.cursor.row, ink, 1);
  }

  toggle(block) {
    if (!this.open.delete(block)) this.open.add(block);
    this.drawRows();
  }

  toggleAll() {
    const folds = [...this.blocks.keys()].filter((index) => this.blocks[index].folds);
    this.open = new Set(this.open.size < folds.length ? folds : []);
    this.drawRows();
  }

  /** Unfold, scroll to and outline a layer. */
  reveal(layer) {
    const index = this.names.indexOf(layer);
    const block = this.blocks.findIndex((one) => one.folds && one.layers.includes(index));
    if (block >= 0) this.open.add(block);
    this.drawRows();
    const row = this.rows.findIndex((one) => one.kind === "layer" && one.name === layer);
    if (row < 0) return;
    const at = row * this.rowHeight;
    if (at < this.scroll.scrollTop || at + this.rowHeight > this.scroll.scrollTop + this.scroll.clientHeight) {
      this.scroll.scrollTop = at - this.scroll.clientHeight / 2;
    }
    this.drawHeat();
  }

  drawLegend() {
    const { css, nonfinite, silent } = this.colours;
    const swatch = (colour, text) => h("span", { class: "key" }, h("i", { class: "swatch", style: `background:${colour}` }), text);
    const parts = this.view.sampled ? [h("span", { class: "key", role: "status" }, "a first sample; reading the rest …")] : [];
    if (this.state.stat === "ratio") parts.push(h("span", { class: "key" }, "1/100", h("i", { class: "ramp", style: `background:${css}` }), "100×"));
    if (this.state.stat === "norm") {
      const [low, high] = this.normRange().map((code) => 2 ** (code / this.view.perDoubling));
      parts.push(h("span", { class: "key" }, formatNumber(low), h("i", { class: "ramp", style: `background:${css}` }), formatNumber(high)));
    }
    parts.push(swatch(nonfinite, "non-finite"));
    if (this.state.stat !== "nonfinite") parts.push(swatch(silent, "no gradient"));
    this.legend.replaceChildren(...parts);
  }

  // ---- the pointer, the keys ----------------------------------------------------------------------------------------------

  listen(target) {
    const at = (event) => event.clientX - this.charts.getBoundingClientRect().left;
    const inside = (x) => Math.min(Math.max(x, this.gutter), this.gutter + this.plotWidth);
    let start = null;
    target.addEventListener("pointermove", (event) => {
      const x = at(event);
      if (start !== null && Math.abs(x - start) > 4) {
        const [low, high] = [Math.min(start, inside(x)), Math.max(start, inside(x))];
        Object.assign(this.band.style, { left: `${low}px`, width: `${high - low}px` });
        this.band.hidden = false;
        return;
      }
      if (x < this.gutter || x > this.gutter + this.plotWidth) return this.leave();
      const row = target === this.canvas ? Math.floor((event.offsetY + this.scroll.scrollTop) / this.rowHeight) : undefined;
      this.moveTo(this.place(x), row);
    });
    target.addEventListener("pointerleave", () => start === null && this.leave());
    target.addEventListener("pointerdown", (event) => {
      const x = at(event);
      if (event.button !== 0 || x < this.gutter) return;
      start = inside(x);
      target.setPointerCapture(event.pointerId);
    });
    target.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const [low, high] = [start, inside(at(event))].sort((a, b) => a - b);
      start = null;
      this.band.hidden = true;
      if (high - low > 4) this.say.zoom(this.place(low), this.place(high));
      else this.say.pin(Math.floor(this.place(low)));
    });
    target.addEventListener("pointercancel", () => ((start = null), (this.band.hidden = true)));
    target.addEventListener("dblclick", () => this.say.zoom(null, null));
  }

  leave() {
    this.tip.hidden = true;
    this.say.cursor(null, this);
  }

  /** Put the cursor at a place and, in the heatmap, on a row; tell what is there. */
  moveTo(place, row, aloud = false) {
    if (!this.view) return;
    this.cursor = { place, row: row === undefined ? undefined : Math.max(0, Math.min(this.rows.length - 1, row)) };
    this.say.cursor(place, this);
    const lines = this.cursor.row === undefined ? this.tellNorm(place) : this.tellLayer(place, this.rows[this.cursor.row]);
    this.showTip(place, lines);
    if (aloud) {
      this.say.speak(lines.map(([name, value]) => `${name} ${value}`).join(", "));
      this.drawHeat();
    }
  }

  column(columns, place) {
    const { first, last } = columns;
    let found = -1;
    for (let c = 0, nearest = Infinity; c < first.length; c++) {
      const away = place < first[c] ? first[c] - place : place >= last[c] ? place - last[c] + 1e-9 : 0;
      if (away < nearest) [found, nearest] = [c, away];
    }
    return found;
  }

  steps(columns, c) {
    const [low, high] = [columns.first[c] - columns.offset[c], columns.last[c] - 1 - columns.offset[c]].map(Math.round);
    return low >= high ? formatStep(high) : `${formatStep(low)} – ${formatStep(high)}`;
  }

  tellLayer(place, row) {
    const c = row ? this.column(this.view.layers, place) : -1;
    if (c < 0) return [["", "nothing was measured here"]];
    const numbers = this.numbers(row);
    const real = (code) => 2 ** (code / this.view.perDoubling);
    const lines = [["layer", row.name], ["step", this.steps(this.view.layers, c)]];
    if (numbers.which) lines.push(["worst", this.names[numbers.which[c]].slice(row.name.length + 1)]);
    if (numbers.nonfinite[c]) lines.push(["non-finite", `in ${numbers.nonfinite[c] === 255 ? "255 or more" : numbers.nonfinite[c]} step${numbers.nonfinite[c] === 1 ? "" : "s"}`]);
    lines.push(["value", numbers.codes[c] === MISSING ? "–" : numbers.codes[c] <= ZERO ? "0" : formatNumber(real(numbers.codes[c]))]);
    if (numbers.ratios[c] !== MISSING) lines.push(["ratio", `${formatRatio(real(numbers.ratios[c]))} its running median`]);
    return lines;
  }

  tellNorm(place) {
    const w = this.view.windows;
    const c = this.column(w, place);
    if (c < 0) return [["", "nothing was measured here"]];
    const lines = [["step", this.steps(w, c)], ["norm", w.nonfinite[c] ? (w.peak[c] > 0 ? `${formatNumber(w.peak[c])}, and non-finite` : "non-finite") : w.overflows[c] > 0 && !w.peak[c] ? "none: the scaler's overflow" : formatNumber(w.peak[c])]];
    if (Number.isFinite(w.limit[c])) lines.push(["typical", formatNumber(w.typical[c])], ["limit", formatNumber(w.limit[c])]);
    const times = (count) => `${formatStep(count)} step${count === 1 ? "" : "s"}`;
    // Logs of older versions do not count: there the smallest coefficient is all that is known.
    if (w.skipped[c] > 0) lines.push(["skipped", times(w.skipped[c])]);
    else if (w.coefficient[c] === 0) lines.push(["skipped", "the update was held"]);
    if (w.clipped[c] > 0) lines.push(["clipped", `${times(w.clipped[c])}${w.coefficient[c] > 0 ? `, down to × ${formatNumber(w.coefficient[c])}` : ""}`]);
    else if (w.coefficient[c] > 0 && w.coefficient[c] < 1) lines.push(["clipped", `× ${formatNumber(w.coefficient[c])}`]);
    if (w.overflows[c] > 0) lines.push(["scaler", `${times(w.overflows[c])} skipped by the GradScaler, as expected`]);
    if (w.lr_factor[c] !== 1) lines.push(["LR factor", formatNumber(w.lr_factor[c])]);
    return lines;
  }

  showTip(place, lines) {
    this.tip.replaceChildren(...lines.map(([name, value]) => h("div", {}, h("span", {}, name), name === "layer" || name === "worst" ? h("code", {}, value) : h("b", {}, value))));
    this.tip.hidden = false;
    const x = this.x(place);
    const below = this.cursor.row === undefined ? this.norm.offsetTop ?? 0 : 0;
    const row = this.cursor.row ?? 0;
    const heat = this.scroll.offsetTop + row * this.rowHeight - this.scroll.scrollTop;
    const y = this.cursor.row === undefined ? 60 + below : heat > this.charts.clientHeight - 150 ? heat - this.tip.offsetHeight - 10 : heat + this.rowHeight + 8;
    const left = x + 16 + this.tip.offsetWidth > this.charts.clientWidth ? x - 16 - this.tip.offsetWidth : x + 16;
    Object.assign(this.tip.style, { left: `${Math.max(0, left)}px`, top: `${y}px` });
  }

  /** Show the cursor line, also when the pointer is in the other run's panel. */
  drawCursor(place) {
    this.line.hidden = place === null || place < this.range[0] || place > this.range[1];
    if (!this.line.hidden) this.line.style.left = `${this.x(place)}px`;
  }

  drawPin() {
    const place = this.state.step;
    const [from, to] = this.range;
    this.pin.hidden = place === null || place < from || place >= to;
    if (this.pin.hidden) return;
    this.pin.style.left = `${this.x(place + 0.5)}px`;
    this.pin.firstChild.textContent = `step ${formatStep(this.step(place))}`;
    this.pin.classList.toggle("left", this.x(place) > this.gutter + this.plotWidth - 90);
  }

  key(event) {
    const [from, to] = this.range;
    const { place, row = 0 } = this.cursor ?? { place: (from + to) / 2 };
    const c = this.column(this.view.layers, place);
    const hop = (by) => {
      const { first, last } = this.view.layers;
      const next = Math.max(0, Math.min(first.length - 1, c + by));
      return first.length ? (first[next] + last[next]) / 2 : place;
    };
    const far = event.shiftKey ? 10 : 1;
    const zoom = (factor) => this.say.zoom(Math.max(this.extent.start, place - (place - from) * factor), Math.min(this.extent.end, place + (to - place) * factor));
    const acts = {
      ArrowLeft: () => this.moveTo(hop(-far), row, true),
      ArrowRight: () => this.moveTo(hop(far), row, true),
      ArrowUp: () => this.goTo(place, row - far),
      ArrowDown: () => this.goTo(place, row + far),
      Home: () => this.moveTo(hop(-1e9), row, true),
      End: () => this.moveTo(hop(1e9), row, true),
      Enter: () => this.say.pin(Math.floor(place)),
      " ": () => this.rows[row]?.kind === "block" && this.toggle(this.rows[row].block),
      "+": () => zoom(0.5),
      "=": () => zoom(0.5),
      "-": () => zoom(2),
      0: () => this.say.zoom(null, null),
      Escape: () => (this.say.pin(null), this.leave()),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  }

  goTo(place, row) {
    const next = Math.max(0, Math.min(this.rows.length - 1, row));
    const at = next * this.rowHeight;
    if (at < this.scroll.scrollTop) this.scroll.scrollTop = at;
    if (at + this.rowHeight > this.scroll.scrollTop + this.scroll.clientHeight) this.scroll.scrollTop = at + this.rowHeight - this.scroll.clientHeight;
    this.moveTo(place, next, true);
  }
}

const TAIL = 14;
const LONG = 2 * TAIL;

/** How much of long names is not worth its room: the path that all have in common. */
function sharedPrefix(names) {
  if (names.length < 2 || names.every((name) => name.length <= LONG)) return 0;
  const paths = names.map((name) => name.split(".").slice(0, -1));
  let same = 0;
  while (paths.every((path) => same < path.length && path[same] === paths[0][same])) same++;
  return paths[0].slice(0, same).join(".").length + (same > 0);
}

/** A long name loses its middle where there is no room: ends tell layers apart. */
const labelText = (text) => (text.length > LONG ? [h("span", { class: "text" }, text.slice(0, -TAIL)), h("span", { class: "tail" }, text.slice(-TAIL))] : h("span", { class: "text" }, text));

const diamond = (x, y) => `M${x} ${y - 5}l4 5l-4 5l-4 -5z`;
const drawn = (name) => s("svg", { class: "drawn", viewBox: "-6 -6 12 12", "aria-hidden": "true" }, s("path", { class: name, d: diamond(0, 0) }));

const NORM_LEGEND = () => [
  h("span", { class: "key" }, h("i", { class: "swatch band-key" }), "healthy band"),
  h("span", { class: "key" }, h("i", { class: "swatch limit-key" }), "limit"),
  h("span", { class: "key" }, h("i", { class: "dot-key" }), "incident"),
  h("span", { class: "key" }, drawn("nonfinite"), "non-finite"),
  h("span", { class: "key" }, drawn("overflow"), "scaler overflow"),
  h("span", { class: "key" }, h("i", { class: "swatch clip-key" }), "clipped"),
  h("span", { class: "key" }, h("i", { class: "swatch held-key" }), "skipped"),
  h("span", { class: "key" }, h("i", { class: "text-key" }, "▾"), "LR lowered"),
  h("span", { class: "key" }, h("i", { class: "text-key" }, "↶"), "rollback"),
];
