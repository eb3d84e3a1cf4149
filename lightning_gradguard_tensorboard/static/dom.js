// Everything on the page is made here, from text nodes: the names of layers, runs and batches are never parsed as
// markup.

const SVG = "http://www.w3.org/2000/svg";

const kept = (children) =>
  children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...kept(children));
  return element;
}

/** Put children in place of those there are; what is null or false is left out. */
export const put = (element, ...children) => element.replaceChildren(...kept(children));

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A step: 12,400. */
export const formatStep = (step) => whole.format(Math.round(step));

/** A measured number in three digits, as the server writes them too: 0.0123, 14,900, 4.2e9, 6.2e-4, inf, NaN. */
export function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  const number = Number(String(value).replace(/^(-?)inf$/, "$1Infinity"));
  if (Number.isNaN(number)) return "NaN";
  if (!Number.isFinite(number)) return number > 0 ? "inf" : "-inf";
  const rounded = Number(number.toPrecision(3));
  const size = Math.abs(rounded);
  if (rounded === 0 || (size >= 1e-3 && size < 1e6)) return size >= 100 ? whole.format(rounded) : String(rounded);
  const [mantissa, exponent] = rounded.toExponential(2).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`;
}

/** A ratio: 12× or 0.23×. */
export const formatRatio = (ratio) =>
  Number.isFinite(ratio) ? `${formatNumber(ratio < 10 ? Number(ratio.toPrecision(2)) : ratio)}×` : formatNumber(ratio);

export function select(label, options, chosen, change) {
  const box = h(
    "select",
    { "aria-label": label, onchange: (event) => change(event.target.value) },
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
  );
  return h("label", { class: "field" }, h("span", {}, label), box);
}
