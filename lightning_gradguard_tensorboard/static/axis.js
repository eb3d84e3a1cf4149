// The axis that all drawings of a run share: which stretch is in sight, and where a step lies on the screen.

import { formatStep, s } from "./dom.js";

const RIGHT = 14;

export class Axis {
  /** What is shown: the chosen stretch, or all that any of the runs side by side has. */
  get range() {
    const all = this.say.bounds();
    const from = this.state.from ?? all[0];
    const to = this.state.to ?? all[1];
    return to > from ? [from, to] : all;
  }

  get gutter() {
    return this.element.clientWidth < 720 ? 150 : 176;
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

  /** The column that covers a place, or the nearest; -1 where there is none. */
  column({ first, last }, place) {
    let found = -1;
    for (let c = 0, nearest = Infinity; c < first.length; c++) {
      const away = place < first[c] ? first[c] - place : place >= last[c] ? place - last[c] + 1e-9 : 0;
      if (away < nearest) [found, nearest] = [c, away];
    }
    return found;
  }

  /** The steps that a column covers, as the user knows them. */
  stepsOf(columns, c) {
    const [low, high] = [columns.first[c] - columns.offset[c], columns.last[c] - 1 - columns.offset[c]].map(Math.round);
    return low >= high ? formatStep(high) : `${formatStep(low)} – ${formatStep(high)}`;
  }

  /** Lines where the steps themselves go back. */
  seams(top, bottom) {
    const [from, to] = this.range;
    return this.extent.segments
      .slice(1)
      .filter((one) => one.start > from && one.start < to)
      .map(({ start }) => s("line", { class: "rollback", x1: this.x(start), x2: this.x(start), y1: top, y2: bottom }));
  }
}
