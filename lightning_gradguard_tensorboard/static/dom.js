// Everything on the page is made here, from text nodes: the names of layers, runs and batches are never parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A step: 12,400. */
export const formatStep = (step) => whole.format(Math.round(step));

/** A measured number in three digits: 0.0123, 310, 4.2e+9. */
export function formatNumber(value) {
  const number = Number(String(value).replace(/^(-?)inf$/, "$1Infinity"));
  if (value === null || value === undefined) return "–";
  if (Number.isNaN(number)) return "NaN";
  if (!Number.isFinite(number)) return number > 0 ? "∞" : "−∞";
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size >= 1e5 || size < 1e-3) return number.toExponential(1).replace("e+", "e").replace("-", "−");
  return size >= 1000 ? whole.format(number) : String(Number(number.toPrecision(3)));
}

/** A ratio: 12× or ÷ 4. */
export function formatRatio(ratio) {
  if (!Number.isFinite(ratio)) return formatNumber(ratio);
  return ratio >= 0.95 ? `${formatNumber(ratio < 10 ? Number(ratio.toPrecision(2)) : ratio)}×` : `1/${formatNumber(Number((1 / ratio).toPrecision(2)))} of`;
}

export function select(label, options, chosen, change) {
  const box = h(
    "select",
    { "aria-label": label, onchange: (event) => change(event.target.value) },
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
  );
  return h("label", { class: "field" }, h("span", {}, label), box);
}
