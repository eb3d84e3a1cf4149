// The verdict in one sentence, and the answers to the five questions below it.

import { h } from "./dom.js";

const GLYPHS = { good: "✓", warning: "!", bad: "✕" };

/** A time is written by the clock of who reads it. */
const moment = (time) => [
  ", ",
  new Date(Number(time) * 1000)
    .toLocaleString("sv-SE")
    .split(" ")
    .flatMap((part, at) => [at > 0 && " ", h("span", { class: "moment" }, part)]),
];

const piece = ({ text, layer, time, code }) =>
  time !== undefined
    ? moment(time)
    : code !== undefined
      ? h("code", {}, code)
      : layer === undefined
        ? text
        : h("code", {}, layer === "" ? "the root module" : layer);

export function drawVerdict(panel) {
  const { level, headline, words, answers } = panel.story.verdict;
  panel.verdict.className = `verdict ${level}`;
  panel.verdict.replaceChildren(
    h("span", { class: "glyph", "aria-hidden": "true" }, GLYPHS[level]),
    h("p", {}, h("b", {}, headline), " ", words.map(piece)),
    h("span", { class: "run-name", title: panel.run }, `run: ${panel.run}`),
  );
  panel.answers.hidden = answers.length === 0;
  panel.answers.replaceChildren(
    ...answers.map(({ question, words: said }) =>
      h(
        "div",
        { class: question === "What next?" ? "next" : undefined },
        h("dt", {}, question),
        h("dd", {}, said.map(piece)),
      ),
    ),
  );
}
