// What is shown; it lives in the address, so that a link shows what its sender saw.

import { readLink, writeLink } from "./host.js";
import { COLOURS } from "./palette.js";
import { ORDERS } from "./rows.js";
import { choices } from "./statistics.js";

export const state = {
  run: null, compare: null, over: [], optimizer: 0, stat: "ratio", order: "forward", search: "", colour: "blue-orange",
  from: null, to: null, step: null, layer: null, incident: null,
};
export const MOST_OVER = 3;

const number = (text) => (text === undefined || text === "" || !Number.isFinite(Number(text)) ? null : Number(text));
const known = (options, value, otherwise) => (options.some(([name]) => name === value) ? value : otherwise);
const unless = (value, usual) => (value === usual ? null : value);

/** Take the state from the address; return the number of the incident that it names, if any. */
export function takeLink(runs) {
  const link = readLink();
  const has = (name) => runs.some((run) => run.name === name);
  state.run = has(link.run) ? link.run : has(state.run) ? state.run : newest(runs);
  state.compare = has(link.compare) && link.compare !== state.run ? link.compare : null;
  state.over = (link.over ?? "")
    .split(",")
    .map(decode)
    .filter((name) => has(name) && name !== state.run)
    .slice(0, MOST_OVER);
  state.optimizer = number(link.optimizer) ?? 0;
  state.stat = known(choices(true), link.stat, "ratio");
  state.order = known(ORDERS, link.order, "forward");
  state.search = link.search ?? "";
  state.colour = known(COLOURS, link.colour, "blue-orange");
  [state.from, state.to, state.step] = [link.from, link.to, link.step].map(number);
  state.layer = link.layer ?? null;
  return number(link.incident);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

const newest = (runs) => runs.reduce((best, run) => (!best || run.time > best.time ? run : best), null)?.name ?? null;

export function saveLink() {
  writeLink({
    run: state.run,
    compare: state.compare,
    over: state.over.map(encodeURIComponent).join(","),
    optimizer: state.optimizer || null,
    stat: unless(state.stat, "ratio"),
    order: unless(state.order, "forward"),
    search: state.search,
    colour: unless(state.colour, "blue-orange"),
    from: state.from === null ? null : Math.round(state.from),
    to: state.to === null ? null : Math.round(state.to),
    step: state.step,
    layer: state.layer,
    incident: state.incident?.number,
  });
}
