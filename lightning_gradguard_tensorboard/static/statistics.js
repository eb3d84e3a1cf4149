// What the heatmap can show of each layer: its numbers, how they are coloured, and how they read.

import { MISSING, ZERO } from "./api.js";
import { formatNumber, formatRatio } from "./dom.js";

const doublings = Math.log2;

/** The field's rule of thumb: an update moves weights by a thousandth of their norm. */
const USUAL_UPDATE = doublings(1e-3);

/**
 * For each statistic: its name in the selector and above the map; `full`, the doublings from the middle of the scale to
 * its end, for those that have a middle; `ends`, what stands at the two ends of the scale; `weights`, whether it is one
 * of the weights and fetched only when asked for; `text`, a cell in a few characters.
 */
export const STATISTICS = {
  ratio: {
    name: "Norm / running median",
    title: "Layers, gradient norm against their own running median",
    full: doublings(100),
    ends: ["0.01×", "100×"],
    text: (real, code, ratio) => (ratio === MISSING ? "–" : formatRatio(real(ratio))),
  },
  norm: { name: "Norm, absolute", title: "Layers, gradient norm", text: (real, code) => absolute(real, code) },
  nonfinite: { name: "Non-finite steps", title: "Layers, steps with a non-finite gradient", text: () => "0" },
  update: {
    name: "Update / weight",
    title: "Layers, norm of an update over that of the weights",
    full: doublings(1000),
    ends: ["1e-6", "1"],
    weights: true,
    text: (real, code) => absolute(real, code),
  },
  weight: {
    name: "Weight norm / at first",
    title: "Layers, norm of the weights against their first",
    full: doublings(10),
    ends: ["0.1×", "10×"],
    weights: true,
    text: (real, code, ratio) => (ratio === MISSING ? absolute(real, code) : formatRatio(real(ratio))),
  },
};

const absolute = (real, code) =>
  code === MISSING ? "–" : code <= ZERO ? "0" : formatNumber(Number(real(code).toPrecision(2)));

export const hasMiddle = (stat) => STATISTICS[stat].full !== undefined;

/** Those that there are, for a selector: weights were not measured in runs of older versions. */
export const choices = (weighed) =>
  Object.entries(STATISTICS)
    .filter(([, one]) => weighed || !one.weights)
    .map(([key, one]) => [key, one.name]);

/** What the heatmap draws: {layers, codes, ratios, nonfinite, perDoubling}. */
export function sourceOf(panel) {
  const { view, weights, state } = panel;
  if (!STATISTICS[state.stat].weights) return view;
  if (!weights) return EMPTY;
  return (weights[state.stat] ??= state.stat === "update" ? updates(weights) : norms(weights));
}

const EMPTY = {
  layers: { first: [], last: [], offset: [] },
  codes: new Int16Array(),
  ratios: new Int16Array(),
  nonfinite: new Uint8Array(),
  perDoubling: 128,
};

function updates({ layers, updates: codes, perDoubling }) {
  const usual = USUAL_UPDATE * perDoubling;
  // An update of exactly zero was a step that was held: nothing moved.
  const ratios = codes.map((code) => (code <= ZERO ? MISSING : Math.round(code - usual)));
  return { layers, codes, ratios, nonfinite: new Uint8Array(codes.length), perDoubling };
}

function norms({ layers, norms: codes, beginning, perDoubling }) {
  const columns = layers.first.length;
  const ratios = codes.map((code, at) => {
    const begin = beginning[Math.floor(at / columns)];
    return code <= ZERO || begin === MISSING ? MISSING : code - begin;
  });
  return { layers, codes, ratios, nonfinite: new Uint8Array(codes.length), perDoubling };
}
