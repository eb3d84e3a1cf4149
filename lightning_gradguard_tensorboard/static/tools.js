// The bar above the charts: which runs, which statistic, in which order and colours.

import { h, put, select } from "./dom.js";
import { address } from "./host.js";
import { copy } from "./page.js";
import { COLOURS } from "./palette.js";
import { ORDERS } from "./rows.js";
import { MOST_OVER, saveLink, state } from "./state.js";
import { choices } from "./statistics.js";

/**
 * Fill the bar above the charts.
 *
 * @param {object} page its parts
 * @param {object} shown {runs, panels}
 * @param {object} say what the page does: {openRuns, load, savePicture, saveNumbers}
 */
export function drawTools(page, { runs, panels }, say) {
  const change = (name, then) => (value) => {
    state[name] = value;
    then();
    saveLink();
  };
  const redraw = () => panels.forEach((panel) => panel.layout());
  const reopen = () => {
    Object.assign(state, { from: null, to: null, step: null, incident: null, layer: null });
    if (state.compare === state.run) state.compare = null;
    state.over = state.over.filter((name) => name !== state.run);
    say.openRuns();
  };
  const optimizers = panels[0]?.story.optimizers ?? [];
  const rest = runs.filter((run) => run.name !== state.run);
  const free = rest.filter((run) => !state.over.includes(run.name));
  page.copy = h(
    "button",
    { type: "button", onclick: () => (saveLink(), copy(address(), page.copy, "Copy link")) },
    "Copy link",
  );
  page.search = h("input", {
    type: "search",
    placeholder: "all layers",
    value: state.search,
    "aria-label": "Search layers",
    oninput: (event) => change("search", redraw)(event.target.value),
  });
  put(
    page.tools,
    select(
      "Run",
      runs.map((run) => [run.name, run.name]),
      state.run,
      change("run", reopen),
    ),
    select("Beside", [["", "none"], ...rest.map((run) => [run.name, run.name])], state.compare ?? "", (value) =>
      change("compare", reopen)(value || null),
    ),
    free.length > 0 &&
      state.over.length < MOST_OVER &&
      select(
        "Draw over",
        [["", state.over.length ? "one more …" : "none"], ...free.map((run) => [run.name, run.name])],
        "",
        (value) => value && change("over", reopen)([...state.over, value]),
      ),
    state.over.map((name, index) =>
      h(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-label": `Draw ${name} no more`,
          title: name,
          onclick: () => change("over", reopen)(state.over.filter((one) => one !== name)),
        },
        h("i", { class: `swatch other-key other-${index}` }),
        h("span", { class: "text" }, name),
        " ×",
      ),
    ),
    optimizers.length > 1 &&
      select(
        "Optimizer",
        optimizers.map((one) => [String(one.optimizer), one.name]),
        String(state.optimizer),
        (value) => change("optimizer", reopen)(Number(value)),
      ),
    select(
      "Statistic",
      choices(panels.some((panel) => panel.extent.weighed)),
      state.stat,
      change("stat", say.changeStatistic),
    ),
    select("Order", ORDERS, state.order, change("order", redraw)),
    h("label", { class: "field" }, h("span", {}, "Layers"), page.search),
    select("Colours", COLOURS, state.colour, change("colour", redraw)),
    h("span", { class: "gap" }),
    page.copy,
    h(
      "details",
      { class: "menu" },
      h("summary", {}, "Save"),
      h(
        "div",
        {},
        h("button", { type: "button", onclick: say.savePicture }, "Picture (PNG)"),
        h("button", { type: "button", onclick: say.saveNumbers }, "Numbers (CSV)"),
      ),
    ),
  );
}
