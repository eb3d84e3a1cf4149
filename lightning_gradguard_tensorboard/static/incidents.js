// The incidents of a run, newest first: what was seen, who is to blame, what was tried, and what was kept and taken
// back. Longer than 200 lines: a card is one story.

import { formatNumber, formatStep, h, put } from "./dom.js";

const MOST = 60;
const NOTICES = 4;

const detail = (one) => (one.detail ? `: ${one.detail}` : "");

function times(one, incident) {
  if (one.times <= 1) return "";
  return incident.alarms > incident.actions.length ? "; again and again" : `; ${formatStep(one.times)} times`;
}

function suspect(blame, first) {
  const gains = [
    ["forward", blame.forward_gain, "size (RMS) of its output over that of its input"],
    ["backward", blame.backward_gain, "norm of the gradient at the input over that at the output"],
    ["size of its weights", blame.weight_ratio, "size (RMS) of the weights over what is usual for such a layer"],
  ].filter(([, gain]) => gain !== null && gain !== undefined);
  return h(
    "div",
    { class: first ? "suspect first" : "suspect" },
    h(blame.is_layer ? "code" : "b", {}, blame.named),
    gains.length > 0 &&
      h(
        "div",
        { class: "gains" },
        gains.map(([name, gain, title]) =>
          h(
            "span",
            { title },
            `${name} `,
            h("b", {}, `×${formatNumber(gain)}`),
            name.startsWith("size") && " the usual",
          ),
        ),
      ),
    blame.reason && h("div", { class: "quiet" }, blame.reason),
  );
}

const capital = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);
const isCause = ({ name }) => name.endsWith("cause");
const entry = (name, ...value) => [h("dt", {}, capital(name)), h("dd", {}, value)];

function ending(incident) {
  const { state, result } = incident.told;
  // Of a run that was stopped the findings say so.
  if (incident.closed === null || incident.closed === undefined || state === "stopped") return false;
  return entry("Ended", `at step ${formatStep(incident.closed)}: ${result}`);
}

function details(incident, chosen) {
  const { evidence, blame, findings, trials, done, only } = incident.told;
  const finding = ({ name, text }) => entry(name, text);
  const reason = incident.told.because;
  return [
    evidence &&
      entry(
        "Evidence",
        h("div", {}, h("b", {}, evidence.measured.replaceAll(" x)", "\u00a0x)"))),
        h("div", { class: "quiet" }, evidence.reason),
      ),
    // Where only that step was bad, the cause says that no layer is blamed, and why.
    !(only && blame.length === 0) &&
      entry(
        "Blamed",
        blame.length === 0
          ? "no layer"
          : blame.slice(0, chosen ? 5 : 1).map((one, index) => suspect(one, index === 0)),
      ),
    findings.filter(isCause).map(finding),
    trials.map((one) =>
      entry(
        one.name,
        h("div", {}, h("b", {}, one.treatment)),
        h("div", {}, one.became),
        h("div", { class: "quiet" }, one.levels, chosen && `; for: ${one.cause}`),
      ),
    ),
    findings.filter((one) => !isCause(one)).map(finding),
    done.length > 0 &&
      entry(
        "Done",
        done.map((one) =>
          h("div", {}, h("b", {}, one.act), h("span", { class: "quiet" }, detail(one), times(one, incident))),
        ),
      ),
    chosen && reason && entry("Because", reason),
    incident.batch !== null && incident.batch !== undefined && entry("Batch", formatStep(incident.batch)),
    incident.time > 0 && entry("Time", new Date(incident.time * 1000).toLocaleString("sv-SE")),
    chosen && incident.alarms > 1 && entry("Alarms", formatStep(incident.alarms)),
    chosen && ending(incident),
    chosen && (incident.messages ?? []).map((text) => entry("Note", text)),
  ];
}

function card(incident, chosen, say) {
  const { level, glyph, word } = incident.told;
  return h(
    "li",
    {},
    h(
      "button",
      {
        class: "incident",
        type: "button",
        "aria-pressed": String(chosen),
        "data-number": incident.number,
        onclick: () => say.choose(incident),
      },
      h(
        "span",
        { class: "headline" },
        h("span", { class: `badge ${level}` }, String(incident.number)),
        h("b", {}, incident.form ?? "incident"),
        h("span", { class: "quiet" }, `step ${formatStep(incident.step)}`),
        h("span", { class: `state ${level}` }, h("span", { "aria-hidden": "true" }, glyph), ` ${word}`),
      ),
      h("dl", {}, details(incident, chosen)),
    ),
    chosen &&
      h(
        "button",
        { type: "button", class: "small ticket", onclick: (event) => say.ticket(incident, event.currentTarget) },
        "Copy as Markdown",
      ),
  );
}

/** What repeats is said once, with how often. */
const notice = ({ step, first, times, message }) =>
  h(
    "p",
    {},
    h(
      "span",
      { class: "quiet" },
      times > 1
        ? `${formatStep(times)} times, steps ${formatStep(first)} – ${formatStep(step)} `
        : `step ${formatStep(step)} `,
    ),
    message,
  );

function notices(all) {
  if (!all.length) return false;
  const rest = all.slice(NOTICES);
  return h(
    "div",
    { class: "notices" },
    h("h3", {}, "Notices"),
    all.slice(0, NOTICES).map(notice),
    rest.length > 0 && h("details", {}, h("summary", {}, `${formatStep(rest.length)} more`), rest.map(notice)),
  );
}

/** Incidents of the other optimizers, which have views of their own. */
function elsewhere(story, optimizer, say) {
  const others = story.optimizers.filter((one) => one.optimizer !== optimizer);
  return others.map((one) => {
    const count = story.incidents.filter((incident) => incident.optimizer === one.optimizer).length;
    return (
      count > 0 &&
      h(
        "button",
        { type: "button", class: "small elsewhere", onclick: () => say.optimizer(one.optimizer) },
        `${formatStep(count)} more under `,
        h("code", {}, one.name),
      )
    );
  });
}

/** Fill the side: one section a run. */
export function drawIncidents(container, sections, say) {
  const top = container.scrollTop;
  put(
    container,
    sections.map(({ panel, title, story, optimizer }) => {
      const mine = story.incidents.filter((incident) => incident.optimizer === optimizer);
      const own = {
        ...say,
        choose: (incident) => say.choose(panel, incident),
        ticket: (incident, button) => say.ticket(panel, incident, button),
      };
      return h(
        "section",
        {},
        h(
          "h2",
          {},
          "Incidents",
          h("span", { class: "count" }, String(mine.length)),
          title && h("span", { class: "quiet run-name" }, title),
        ),
        elsewhere(story, optimizer, say),
        mine.length === 0 &&
          h(
            "p",
            { class: "quiet nothing" },
            "None so far. An incident appears here the moment a gradient leaves its band.",
          ),
        h(
          "ol",
          {},
          mine.slice(0, MOST).map((one) => card(one, panel.isChosen(one), own)),
        ),
        mine.length > MOST &&
          h("p", { class: "quiet" }, `${formatStep(mine.length - MOST)} older ones are dots on the chart.`),
        notices(story.notices),
      );
    }),
  );
  container.scrollTop = top;
}
