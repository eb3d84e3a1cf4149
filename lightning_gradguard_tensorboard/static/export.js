// What is seen, to take along: numbers as CSV, a picture as PNG, an incident as Markdown for a ticket.

import { MISSING, ZERO } from "./api.js";
import { formatStep } from "./dom.js";
import { styles } from "./page.js";

const cell = (value) => {
  const text = String(value);
  // A name that begins like a formula must not become one in a spreadsheet.
  const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

const real = (code, perDoubling) =>
  code === MISSING ? "" : code <= ZERO ? 0 : Number((2 ** (code / perDoubling)).toPrecision(3));

/**
 * The stretch in sight: a line for each column of the charts, with the norm of each layer where that is known of the
 * same steps.
 */
export function csv({ view, weights, names }) {
  const { windows, layers } = view;
  const column = new Map([...layers.last].map((last, c) => [last, c]));
  const step = (at, c) => (Number.isFinite(at) ? Math.floor(at - windows.offset[c]) : "");
  const number = (value) => (Number.isNaN(value) ? "" : value);
  const own = ["first_step", "last_step", "norm_peak", "peak_step", "nonfinite_windows"];
  const bounds = ["typical", "limit", "coefficient", "lr_factor"];
  const loss = ["loss_low", "loss_mean", "loss_high"];
  const plain = [...bounds, ...loss, "rate", "rate_good", "rate_bad", "clipped", "skipped", "overflows"];
  const weighed = weights ? [["weights", weights.norms], ["update", weights.updates]] : [];
  const of = (kind) => names.map((name) => `${kind} ${name}`);
  const lines = [[...own, ...plain, ...of("norm"), ...weighed.flatMap(([kind]) => of(kind))]];
  for (let c = 0; c < windows.first.length; c++) {
    const told = [
      step(windows.first[c], c),
      step(windows.last[c] - 1, c),
      number(windows.peak[c]),
      step(windows.peak_at[c], c),
      windows.nonfinite[c],
    ];
    const rest = plain.map((name) => number(windows[name][c]));
    const at = column.get(windows.last[c]);
    const cells = (codes, columns, at) =>
      names.map((_, layer) => real(at < 0 ? MISSING : codes[layer * columns + at], view.perDoubling));
    const taken = weights?.layers.last.findIndex((last) => last >= windows.last[c]);
    const measured = weighed.flatMap(([, codes]) => cells(codes, weights.layers.first.length, taken));
    lines.push([...told, ...rest, ...cells(view.codes, layers.first.length, at ?? -1), ...measured]);
  }
  return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

const MEDIA = /@media (\([^)]*\)) \{((?:[^{}]*\{[^{}]*\})*)\s*\}/g;

/** A run's panel as it is on the screen, as a PNG. */
export async function png(panel) {
  // The picture is narrower than the window, and looks as the window does.
  const sheet = (await styles()).replace(MEDIA, (_, query, rules) => (matchMedia(query).matches ? rules : ""));
  const { element, charts, heat } = panel;
  const box = element.getBoundingClientRect();
  const clone = element.cloneNode(true);
  Object.assign(clone.style, { display: "block", width: `${box.width + 24}px`, padding: "12px" });
  clone.querySelector(".charts").style.height = `${charts.clientHeight}px`;
  for (const shown of clone.querySelectorAll(".tooltip, .crosshair, .selection")) shown.remove();
  const image = document.createElement("img");
  image.src = heat.canvas.toDataURL();
  image.setAttribute("style", heat.canvas.getAttribute("style"));
  image.setAttribute("class", "heat");
  clone.querySelector("canvas.heat").replaceWith(image);
  clone.querySelector(".spacer").style.height = `${heat.scroll.clientHeight}px`;
  const [width, height] = [box.width + 24, box.height + 24];
  const style = document.createElement("style");
  style.textContent = `${sheet}\nbody{display:block;min-height:0;padding:0;overflow:hidden}`;
  const body = document.createElement("body");
  body.append(style, clone);
  const inner = new XMLSerializer().serializeToString(body);
  const theme = document.documentElement.dataset.theme;
  const root = `<svg xmlns="http://www.w3.org/2000/svg" data-theme="${theme}" width="${width}" height="${height}">`;
  const text = `${root}<foreignObject width="100%" height="100%">${inner}</foreignObject></svg>`;
  const picture = new Image();
  // A data address: from a blob, browsers let no canvas be read that a foreign object was drawn on.
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await picture.decode();
  const ratio = Math.max(2, window.devicePixelRatio || 1);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

const escape = (text) => String(text).replace(/[\\`*_{}[\]<>()#+!|~-]/g, "\\$&").replace(/\s+/g, " ");

/** An incident as Markdown: when, where, what was done, did it help, and where to look. */
export function markdown(incident, run, link) {
  const { told } = incident;
  const blame = told.blame[0];
  const where = blame ? `, ${blame.is_layer ? "first in " : ""}**${escape(blame.named)}**` : "";
  const lines = [
    `## GradGuard: ${escape(incident.form)} at step ${formatStep(incident.step)}${where}`,
    `**Run:** ${escape(run)}. **Result:** ${escape(told.result)}.`,
  ];
  if (told.evidence) lines.push(`**Evidence:** ${escape(told.evidence.measured)}; ${escape(told.evidence.reason)}.`);
  for (const { name, text } of told.findings)
    lines.push(`**${name[0].toUpperCase()}${name.slice(1)}:** ${escape(text)}.`);
  if (told.trials.length) {
    const rows = told.trials.map(
      (one) => `| ${escape(one.treatment)} | ${escape(one.cause)} | ${escape(one.became)} | ${escape(one.levels)} |`,
    );
    lines.push(["| tried | for | what became of it | loss |", "| --- | --- | --- | --- |", ...rows].join("\n"));
  }
  if (told.blame.length) {
    const rows = told.blame
      .slice(0, 5)
      .map((one) => `| ${escape(one.named)} | ${escape(one.gains || "–")} | ${escape(one.reason)} |`);
    lines.push(["| suspect | measured | why |", "| --- | --- | --- |", ...rows].join("\n"));
  }
  const detail = (one) => (one.detail ? `: ${escape(one.detail)}` : "");
  const times = (one) => (one.times > 1 ? ` (${formatStep(one.times)} times)` : "");
  if (told.done.length)
    lines.push(told.done.map((one) => `- ${escape(one.act)}${detail(one)}${times(one)}`).join("\n"));
  return [...lines, `[Open it on the board](${link})`].join("\n\n") + "\n";
}

/** Hand a file to the browser. */
export function save(content, name, type) {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

export const fileName = (run, end) =>
  `gradguard-${run.replace(/[^\w.-]+/g, "_").replace(/^[_.]+/, "") || "run"}.${end}`;
