// One run: what is fetched for it, who draws when, and where the cursor is.
// Longer than 200 lines: who draws when is one story.

import { fetchView, fetchWeights } from "./api.js";
import { Axis } from "./axis.js";
import { formatStep, put } from "./dom.js";
import { HEIGHTS, fit } from "./fit.js";
import { Heat } from "./heat.js";
import { tellValues } from "./labels.js";
import { normKeys } from "./legend.js";
import { drawLoss } from "./loss.js";
import { drawMarks, drawSteps } from "./marks.js";
import { drawNorm } from "./norm.js";
import { palette } from "./palette.js";
import { build } from "./parts.js";
import { drawRate } from "./rate.js";
import { showTip, tellLayer, tellSteps } from "./readout.js";
import { blocksOf, sharedPrefix } from "./rows.js";
import { STATISTICS, hasMiddle } from "./statistics.js";
import { drawVerdict } from "./verdict.js";
import { drawWitnesses } from "./witnesses.js";

const SMALL = 32;

export class Panel extends Axis {
  /**
   * @param {string} run
   * @param {object} story what the server tells of it
   * @param {object} state the page's, read only: {from, to, step, stat, order, search, colour, optimizer, layer,
   *   incident}
   * @param {object} say what the page does when the user acts here: {cursor, pin, zoom, choose, search, speak, others}
   */
  constructor(run, story, state, say) {
    super();
    Object.assign(this, {
      run,
      story,
      state,
      say,
      view: null,
      weights: null,
      cursor: null,
      heights: { norm: HEIGHTS.norm[0], loss: HEIGHTS.loss[0] },
    });
    this.heat = new Heat(this);
    build(this);
    this.settle(story);
    new ResizeObserver(() => this.resized()).observe(this.charts);
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
      this.heat.open = new Set(mine.layers.length <= SMALL ? this.blocks.keys() : []);
      this.unfolded = new Set();
    }
    // What begins to stand out is unfolded once; whoever folds it again has seen it.
    const fresh = this.standsOut().filter((name) => !this.unfolded.has(name));
    fresh.forEach((name) => this.unfolded.add(name));
    this.heat.unfold(fresh);
    drawVerdict(this);
  }

  /** Layers that have left their level for good. */
  unusual() {
    return this.story.unusual.filter((one) => one.optimizer === this.extent.optimizer).map((one) => one.layer);
  }

  /** The layers that incidents blame, each with its incidents, the newest first. */
  blamed() {
    const found = new Map();
    for (const one of this.myIncidents()) {
      const layer = Array.isArray(one.blame) ? one.blame[0]?.layer : null;
      if (this.names.includes(layer)) found.set(layer, [...(found.get(layer) ?? []), one]);
    }
    return found;
  }

  /** Layers that have left their level for good, and those that an incident blames. */
  standsOut() {
    return [...new Set([...this.unusual(), ...this.blamed().keys()])].filter((name) => this.names.includes(name));
  }

  /** Fetch the weights' statistics if they are to be shown, which few ask for. */
  async weigh(wanted) {
    const { extent } = this;
    const [from, to] = this.range;
    const missing = STATISTICS[this.state.stat].weights && extent.weighed;
    return missing
      ? fetchWeights(wanted ?? { run: this.run, optimizer: extent.optimizer, from, to, columns: 800 })
      : null;
  }

  /** Show another statistic. */
  async changeStatistic() {
    const ticket = this.ticket;
    const weights = this.weights ?? (await this.weigh());
    if (ticket !== this.ticket) return;
    this.weights = weights;
    this.heat.forget();
    this.layout();
  }

  /** Fetch what the state asks for, and draw it. An answer that a newer question has overtaken is dropped. */
  async load() {
    const [from, to] = this.range;
    const ticket = (this.ticket = {});
    const columns = Math.max(100, Math.min(1600, Math.round(this.plotWidth)));
    const wanted = { run: this.run, optimizer: this.extent.optimizer, from, to, columns };
    let sampled = false;
    // A large run is first shown from a sample, which may miss a spike, and a moment later in full.
    for (const quick of this.view ? [null] : [1, null]) {
      const [view, weights] = await Promise.all([fetchView({ ...wanted, quick }), this.weigh(wanted)]);
      if (ticket !== this.ticket) return false;
      Object.assign(this, { view, weights });
      this.heat.forget();
      this.layout();
      this.element.dataset.loaded = `${Math.round(view.start)}-${Math.round(view.end)}`;
      this.element.dataset.sampled = view.sampled;
      if (!view.sampled) return sampled;
      sampled = true;
    }
    return sampled;
  }

  resized() {
    const [width, height] = [this.charts.clientWidth, this.charts.clientHeight];
    if (!width || (width === this.width && height === this.height)) return;
    const reload = this.view && this.width !== undefined && width !== this.width;
    [this.width, this.height] = [width, height];
    this.layout();
    if (reload) this.load();
  }

  layout() {
    if (!this.view || !this.charts.clientWidth) return;
    this.colours = palette(this.state.colour, document.documentElement.dataset.theme, hasMiddle(this.state.stat));
    this.reset.hidden = this.state.from === null;
    put(this.normLegend, normKeys(this));
    // What has a height of its own comes first: the rest of the room is shared.
    drawMarks(this);
    drawRate(this);
    drawWitnesses(this);
    drawSteps(this);
    fit(this);
    drawNorm(this);
    drawLoss(this);
    this.heat.draw();
    this.drawPin();
    const bottom =
      this.charts.clientHeight -
      this.heat.scroll.offsetTop -
      Math.min(this.heat.scroll.clientHeight, this.heat.rows.length * this.heat.rowHeight);
    const top = this.norm.getBoundingClientRect().top - this.charts.getBoundingClientRect().top;
    for (const one of [this.line, this.pin, this.band])
      Object.assign(one.style, { top: `${top}px`, bottom: `${Math.max(0, bottom)}px` });
  }

  shownIncidents() {
    const [from, to] = this.range;
    return this.myIncidents().filter((one) => one.place >= from && one.place < to);
  }

  myIncidents() {
    return this.story.incidents.filter((one) => one.optimizer === this.extent.optimizer);
  }

  /** Treatments on trial that are in sight, in the order of their steps. */
  shownTrials() {
    const [from, to] = this.range;
    const all = this.myIncidents().flatMap(({ told }) => [...told.trials, ...(told.pending ? [told.pending] : [])]);
    return all.filter((one) => one.from < to && (one.to ?? Infinity) > from).sort((a, b) => a.from - b.from);
  }

  /** Places in sight at which the learning rate was lowered. */
  shownLowered() {
    const [from, to] = this.range;
    return this.extent.lowered.filter((place) => place >= from && place < to);
  }

  shownRollbacks() {
    const [from, to] = this.range;
    return this.myIncidents().flatMap((one) => one.rollbacks).filter(({ place }) => place >= from && place < to);
  }

  /** A resumed run may give a number again, at another step. */
  isChosen(incident) {
    const chosen = this.state.incident;
    return chosen?.panel === this && ["number", "step", "optimizer"].every((key) => chosen[key] === incident[key]);
  }

  leave() {
    this.tip.hidden = true;
    this.say.cursor(null, this);
  }

  /** Put the cursor at a place and, in the heatmap, on a row; tell what is there. */
  moveTo(place, row, aloud = false) {
    if (!this.view) return;
    this.cursor = { place, row: row === undefined ? undefined : Math.max(0, Math.min(this.heat.rows.length - 1, row)) };
    this.say.cursor(place, this);
    const lines =
      this.cursor.row === undefined ? tellSteps(this, place) : tellLayer(this, place, this.heat.rows[this.cursor.row]);
    showTip(this, place, lines);
    if (!aloud) return;
    this.say.speak(lines.map(([name, value]) => `${name} ${value}`).join(", "));
    this.heat.paint();
  }

  /** Show the cursor line, also when the pointer is in the other run's panel. */
  drawCursor(place) {
    this.line.hidden = place === null || place < this.range[0] || place > this.range[1];
    if (!this.line.hidden) this.line.style.left = `${this.x(place)}px`;
    if (this.view) tellValues(this.heat, place ?? this.state.step);
  }

  drawPin() {
    const place = this.state.step;
    const [from, to] = this.range;
    this.pin.hidden = place === null || place < from || place >= to;
    tellValues(this.heat, this.pin.hidden ? null : place);
    if (this.pin.hidden) return;
    this.pin.style.left = `${this.x(place + 0.5)}px`;
    this.pin.firstChild.textContent = `step ${formatStep(this.step(place))}`;
    this.pin.classList.toggle("left", this.x(place) > this.gutter + this.plotWidth - 90);
  }
}
