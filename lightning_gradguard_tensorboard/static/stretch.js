// Which stretch of a run is brought into sight.

/**
 * Where an incident is seen well: some thirty windows on both sides; in a short run, that has hardly more, a sixth of
 * it. Trials are seen whole, and how a run ended.
 */
export function around(incident, { start, end, windows }) {
  const all = end - start;
  const reach = Math.max(all / 40, Math.min((30 * all) / Math.max(windows, 1), all / 6));
  const stopped = incident.told.state === "stopped" ? incident.ended : incident.place;
  const over = incident.told.trials.reduce((last, one) => Math.max(last, one.to), stopped);
  const to = Math.max(incident.place + reach, over + reach / 4);
  return [Math.max(start, incident.place - reach), Math.min(end, to)];
}

/** A stretch of at least four windows, about the same middle. */
export function widened(from, to, extents) {
  const least = Math.max(...extents.map(({ start, end, windows }) => (4 * (end - start)) / Math.max(windows, 1)));
  return to - from < least ? [(from + to - least) / 2, (from + to + least) / 2] : [from, to];
}
