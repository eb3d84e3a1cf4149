// The incidents of a run, newest first: what was seen, who is to blame, what was tried, and what was kept and taken back.

import { formatNumber, formatRatio, formatStep, h } from "./dom.js";

const MOST = 60;
const list = (value) => (Array.isArray(value) ? value.filter((item) => item && typeof item === "object") : []);

function evidence(verdict) {
  const value = Number(String(verdict.value).replace("inf", "Infinity"));
  const limit = Number(verdict.limit);
  const line = [h("b", {}, formatNumber(verdict.value)), ` against a limit of ${formatNumber(verdict.limit)}`];
  if (Number.isFinite(value / limit) && limit > 0 && value >= limit) line.push(` (${formatRatio(value / limit)})`);
  return [h("div", {}, line), h("div", { class: "quiet" }, verdict.reason ?? "")];
}

function suspect(blame, first) {
  const gains = [
    ["forward", blame.forward_gain, "RMS of the output over that of the input"],
    ["backward", blame.backward_gain, "norm of the gradient at the input over that at the output"],
    ["weights", blame.weight_ratio, "RMS of the weights over what is usual"],
  ].filter(([, gain]) => gain !== null && gain !== undefined);
  return h(
    "div",
    { class: first ? "suspect first" : "suspect" },
    h("code", {}, blame.layer ?? "?"),
    gains.length > 0 && h("div", { class: "gains" }, gains.map(([name, gain, title]) => h("span", { title }, `${name} `, h("b", {}, `×${formatNumber(gain)}`)))),
    blame.reason && h("div", { class: "quiet" }, blame.reason),
  );
}

const isCause = ({ name }) => name === "Cause" || name === "Suspect";
const entry = (name, ...value) => [h("dt", {}, name), h("dd", {}, value)];

function card(incident, chosen, choose) {
  const actions = list(incident.actions);
  const blame = list(incident.blame);
  const { level, glyph, word, findings, trials } = incident.told;
  const outcomes = actions.flatMap((action) => list(action.outcomes));
  const remedies = [...new Map(outcomes.map((outcome) => [outcome.remedy + outcome.detail, outcome])).values()];
  const details = [
    actions[0]?.verdict && entry("Evidence", evidence(actions[0].verdict)),
    blame.length > 0 && entry("Blamed", blame.slice(0, chosen ? 5 : 1).map((one, index) => suspect(one, index === 0))),
    findings.filter(isCause).map(({ name, text }) => entry(name, text)),
    trials.map((one) =>
      entry(
        one.name,
        h("div", {}, h("b", {}, one.treatment)),
        h("div", {}, one.became),
        h("div", { class: "quiet" }, one.levels, chosen && `; for: ${one.cause}`),
      ),
    ),
    findings.filter((one) => !isCause(one)).map(({ name, text }) => entry(name, text)),
    remedies.length > 0 &&
      entry(
        "Remedy",
        remedies.slice(0, chosen ? 20 : 3).map((outcome) =>
          h("div", {}, h("b", {}, outcome.remedy ?? "?"), outcome.applied === false ? " (could not act)" : "", h("span", { class: "quiet" }, ` ${outcome.detail ?? ""}`)),
        ),
      ),
    chosen && actions[0]?.decision?.reason && entry("Because", actions[0].decision.reason),
    incident.batch !== null && incident.batch !== undefined && entry("Batch", formatStep(incident.batch)),
    chosen && incident.alarms > 1 && entry("Alarms", formatStep(incident.alarms)),
    chosen && incident.closed != null && entry("Calm", `from step ${formatStep(incident.closed)}`),
    chosen && list(incident.messages?.map((text) => ({ text }))).map(({ text }) => entry("Note", text)),
  ];
  return h(
    "li",
    {},
    h(
      "button",
      { class: "incident", type: "button", "aria-pressed": String(chosen), "data-number": incident.number, onclick: () => choose(incident) },
      h(
        "span",
        { class: "headline" },
        h("span", { class: `badge ${level}` }, String(incident.number)),
        h("b", {}, incident.form ?? "incident"),
        h("span", { class: "quiet" }, `step ${formatStep(incident.step)}`),
        h("span", { class: `state ${level}` }, h("span", { "aria-hidden": "true" }, glyph), ` ${word}`),
      ),
      h("dl", {}, details),
    ),
  );
}

/** Fill the panel: one section a run. */
export function drawIncidents(container, sections, chosen, choose) {
  const top = container.scrollTop;
  container.replaceChildren(
    ...sections.map(({ panel, title, story, optimizer }) => {
      const mine = story.incidents.filter((incident) => incident.optimizer === optimizer);
      const isChosen = (one) => chosen?.panel === panel && chosen.number === one.number && chosen.optimizer === one.optimizer;
      return h(
        "section",
        {},
        h("h2", {}, "Incidents", h("span", { class: "count" }, String(mine.length)), title && h("span", { class: "quiet run-name" }, title)),
        mine.length === 0 && h("p", { class: "quiet nothing" }, "None so far. An incident appears here the moment a gradient leaves its band."),
        h("ol", {}, mine.slice(0, MOST).map((one) => card(one, isChosen(one), (it) => choose(panel, it)))),
        mine.length > MOST && h("p", { class: "quiet" }, `${formatStep(mine.length - MOST)} older ones are dots on the chart.`),
        story.notices.length > 0 &&
          h("div", { class: "notices" }, h("h3", {}, "Notices"), story.notices.slice(0, 8).map((one) => h("p", {}, h("span", { class: "quiet" }, `step ${formatStep(one.step)} `), one.message))),
      );
    }),
  );
  container.scrollTop = top;
}
