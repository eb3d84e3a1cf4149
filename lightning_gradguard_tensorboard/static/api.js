// What the server tells. Addresses are relative to this file, so that a TensorBoard behind a path prefix works.

const base = new URL("../", import.meta.url);

async function get(route, query = {}) {
  const address = new URL(route, base);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null) address.searchParams.set(name, value);
  }
  const response = await fetch(address, { credentials: "same-origin" });
  if (!response.ok) throw new Error(`TensorBoard answered ${response.status} to ${route}`);
  return response;
}

export const fetchRuns = async () => (await (await get("runs")).json()).runs;
export const fetchStory = async (run) => (await get("story", { run })).json();

const TYPES = { f8: Float64Array, i2: Int16Array, u1: Uint8Array };

/** A stretch of a run: {start, end, windows: {…}, layers: {…}, codes, ratios, nonfinite}; matrices layer by layer. */
export const fetchView = async ({ run, optimizer, from, to, columns, quick }) =>
  unpack(await get("view", { run, optimizer, from, to, columns, quick }));

/** What is known of the weights on a stretch: {layers: {…}, norms, updates, beginning}. */
export const fetchWeights = async ({ run, optimizer, from, to, columns }) =>
  unpack(await get("weights", { run, optimizer, from, to, columns }));

async function unpack(response) {
  const buffer = await response.arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const view = {
    start: header.start,
    end: header.end,
    sampled: header.sampled,
    perDoubling: header.codes_per_doubling,
    windows: {},
    layers: {},
  };
  let offset = 4 + length;
  for (const { name, type, shape } of header.arrays) {
    const count = shape.reduce((product, size) => product * size, 1);
    const array = new TYPES[type](buffer, offset, count);
    offset += array.byteLength;
    const [group, column] = name.split(".");
    if (column) view[group][column] = array;
    else view[name] = array;
  }
  return view;
}

export const MISSING = -32768;
export const ZERO = -60 * 128;
