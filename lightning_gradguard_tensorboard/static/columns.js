// Which column of a run stands at each pixel of the heatmap.

import { hotColumns } from "./rows.js";
import { STATISTICS } from "./statistics.js";

/** For each device pixel of the plot, the column that covers it, or -1 where nothing was measured. */
export function mapColumns(heat) {
  const { panel, source } = heat;
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(panel.plotWidth * ratio);
  const { first, last } = source.layers;
  const [from, to] = panel.range;
  const columns = new Int32Array(width).fill(-1);
  const typicalWidth = panel.extent.windows ? (panel.extent.end - panel.extent.start) / panel.extent.windows : 1;
  for (let px = 0, c = 0; px < width; px++) {
    const place = from + ((px + 0.5) / width) * (to - from);
    while (c < first.length - 1 && last[c] <= place) c++;
    // Seams between columns, of a sampling loader or of steps without a window, belong to the nearer one.
    const seam = Math.max(typicalWidth, (to - from) / 300);
    if (first.length && place >= first[c] - seam && place < last[c] + seam) columns[px] = c;
  }
  // A column narrower than a pixel must not vanish: a hot one wins from cooler ones as many pixels as can be seen.
  const hot = (heat.hotColumns ??= hotColumns(source));
  const loud = ((STATISTICS[panel.state.stat].full ?? STATISTICS.ratio.full) / 2) * source.perDoubling;
  const seen = Math.round(2 * ratio);
  for (let c = 0; c < first.length; c++) {
    if (hot[c] < loud) continue;
    const begin = Math.floor(((first[c] - from) / (to - from)) * width);
    const end = Math.max(begin + seen, Math.floor(((last[c] - from) / (to - from)) * width));
    for (let px = Math.max(begin, 0); px < Math.min(end, width); px++) {
      const there = columns[px];
      if (there < 0 || hot[there] < hot[c]) columns[px] = c;
    }
  }
  return columns;
}
