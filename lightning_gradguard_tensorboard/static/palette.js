// Colours of the heatmap. All are safe for the colour-blind: blue against orange differs in every form of colour
// blindness, the others rise in lightness alone. Non-finite and "no gradient" have colours that no scale contains.

const SCALES = {
  // Its stops are the style sheet's, which others that draw the same read too.
  "blue-orange": { label: "Blue – orange" },
  cividis: { label: "Cividis", both: ["#00224e", "#2a3f6d", "#575c6d", "#7c7b78", "#a59c74", "#d2c060", "#fee838"] },
  viridis: { label: "Viridis", both: ["#440154", "#443983", "#31688e", "#21918c", "#35b779", "#90d743", "#fde725"] },
  grey: {
    label: "Greys",
    light: { stops: ["#fbfbfb", "#e2e2e2", "#c4c4c4", "#a0a0a0", "#777777", "#4a4a4a", "#141414"] },
    dark: { stops: ["#1c1e21", "#34373b", "#51555a", "#757a80", "#9ca1a7", "#c8ccd0", "#f6f7f8"] },
  },
};

export const COLOURS = Object.entries(SCALES).map(([name, scale]) => [name, scale.label]);

const property = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const parse = (text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
const pixel = ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r;

/** 256 colours from lowest to highest, as canvas pixels and as CSS, with the special ones. */
export function palette(name, theme, diverging) {
  const scale = SCALES[name] ?? SCALES["blue-orange"];
  let stops = scale.both ?? scale[theme]?.stops ?? property("heat").split(/\s+/);
  // A scale with a neutral middle shows a one-sided quantity with its upper half.
  if (name === "blue-orange" && !diverging) stops = stops.slice(3);
  const colours = stops.map(parse);
  const table = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (colours.length - 1);
    const low = Math.min(Math.floor(at), colours.length - 2);
    table[i] = pixel(
      colours[low].map((channel, c) => Math.round(channel + (colours[low + 1][c] - channel) * (at - low))),
    );
  }
  const special = { nonfinite: property("nonfinite"), silent: property("silent"), empty: property("ground") };
  return {
    table,
    css: `linear-gradient(to right, ${stops.join(", ")})`,
    ...special,
    nonfinitePixel: pixel(parse(special.nonfinite)),
    silentPixel: pixel(parse(special.silent)),
    emptyPixel: pixel(parse(special.empty)),
  };
}
