// Scales and their ticks.

/**
 * Ticks at round steps; between rollbacks each stretch counts anew, so a label is always a step as the user knows it.
 */
export function stepTicks(segments, start, end, width) {
  const wish = (end - start) / Math.max(2, Math.floor(width / 110));
  const power = 10 ** Math.floor(Math.log10(Math.max(wish, 1)));
  const every = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= wish) ?? 10 * power;
  const ticks = [];
  const bounds = segments.length ? segments : [{ start, offset: 0 }];
  bounds.forEach(({ start: from, offset }, index) => {
    const low = Math.max(start, from);
    const high = Math.min(end, bounds[index + 1]?.start ?? end + 1);
    for (let step = Math.ceil((low - offset) / every) * every; step + offset < high; step += every) {
      ticks.push({ place: step + offset, step });
    }
  });
  const shown = [];
  for (const tick of ticks) {
    const last = shown[shown.length - 1];
    if (!last || ((tick.place - last.place) * width) / (end - start) > 50 + 4 * String(tick.step).length)
      shown.push(tick);
  }
  return shown;
}

/** Decades, thinned so that they do not crowd; in a narrow range also twos and fives. */
export function logTicks(low, high, most) {
  const decades = [];
  for (let power = Math.ceil(low - 1e-9); power <= high + 1e-9; power++) decades.push(power);
  if (decades.length < 3) {
    const ticks = [];
    for (let power = Math.floor(low); power <= high; power++) {
      for (const m of [1, 2, 5]) {
        const at = power + Math.log10(m);
        if (at >= low && at <= high) ticks.push(at);
      }
    }
    return ticks;
  }
  const every = Math.ceil(decades.length / most);
  return decades.filter((power) => power % every === 0);
}
