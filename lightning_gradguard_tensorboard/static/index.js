// The page: which runs, which stretch, which incident; the state lives in the address, so that a link shows what its sender saw.

import { fetchRuns, fetchStory } from "./api.js";
import { h, select } from "./dom.js";
import { address, followTheme, onLink, onReload, readLink, writeLink } from "./host.js";
import { drawIncidents } from "./incidents.js";
import { COLOURS } from "./palette.js";
import { Panel, STATISTICS } from "./panel.js";

const state = { run: null, compare: null, optimizer: 0, stat: "ratio", colour: "blue-orange", from: null, to: null, step: null, layer: null, incident: null };
let runs = [];
let panels = [];
let page = null;
let opening = null;

const number = (text) => (text === undefined || text === "" || !Number.isFinite(Number(text)) ? null : Number(text));
const known = (options, value, otherwise) => (options.some(([name]) => name === value) ? value : otherwise);

function takeLink() {
  const link = readLink();
  const has = (name) => runs.some((run) => run.name === name);
  state.run = has(link.run) ? link.run : has(state.run) ? state.run : newest();
  state.compare = has(link.compare) && link.compare !== state.run ? link.compare : null;
  state.optimizer = number(link.optimizer) ?? 0;
  state.stat = known(STATISTICS, link.stat, "ratio");
  state.colour = known(COLOURS, link.colour, "blue-orange");
  [state.from, state.to, state.step] = [link.from, link.to, link.step].map(number);
  state.layer = link.layer ?? null;
  return number(link.incident);
}

const newest = () => runs.reduce((best, run) => (!best || run.time > best.time ? run : best), null)?.name ?? null;

function saveLink() {
  writeLink({
    run: state.run,
    compare: state.compare,
    optimizer: state.optimizer || null,
    stat: state.stat === "ratio" ? null : state.stat,
    colour: state.colour === "blue-orange" ? null : state.colour,
    from: state.from === null ? null : Math.round(state.from),
    to: state.to === null ? null : Math.round(state.to),
    step: state.step,
    layer: state.layer,
    incident: state.incident?.number,
  });
}

const say = {
  bounds: () => [Math.min(...panels.map((panel) => panel.extent.start)), Math.max(...panels.map((panel) => panel.extent.end))],
  decades: () => {
    const found = panels.map((panel) => panel.decades()).filter((one) => one !== null);
    return found.length ? [Math.min(...found.map((one) => one[0])), Math.max(...found.map((one) => one[1]))] : [-1, 1];
  },
  cursor: (place, source) => {
    for (const panel of panels) {
      panel.drawCursor(place);
      if (panel !== source) panel.tip.hidden = true;
    }
  },
  pin: (place) => {
    state.step = place;
    panels.forEach((panel) => panel.drawPin());
    saveLink();
  },
  zoom: async (from, to) => {
    const least = Math.max(...panels.map((panel) => (4 * (panel.extent.end - panel.extent.start)) / Math.max(panel.extent.windows, 1)));
    if (from !== null && to - from < least) [from, to] = [(from + to - least) / 2, (from + to + least) / 2];
    const wide = from === null || panels.every((panel) => from <= say.bounds()[0] && to >= say.bounds()[1]);
    [state.from, state.to] = wide ? [null, null] : [Math.max(0, from), to];
    page.reset.disabled = wide;
    saveLink();
    await load();
  },
  choose: async (panel, incident) => {
    if (panel.isChosen(incident)) {
      Object.assign(state, { incident: null, layer: null, step: null });
      drawSide();
      return say.zoom(null, null);
    }
    const blamed = Array.isArray(incident.blame) ? incident.blame[0]?.layer : null;
    Object.assign(state, { incident: { panel, number: incident.number, optimizer: incident.optimizer }, layer: blamed ?? null, step: incident.place });
    const { start, end, windows } = panel.extent;
    // Some thirty windows on both sides; in a short run, that has hardly more, a sixth of it.
    const reach = Math.max((end - start) / 40, Math.min((30 * (end - start)) / Math.max(windows, 1), (end - start) / 6));
    drawSide();
    await say.zoom(Math.max(start, incident.place - reach), Math.min(end, incident.place + reach));
    if (state.layer) panel.reveal(state.layer);
  },
  speak: (text) => (page.live.textContent = text),
};

function drawSide() {
  drawIncidents(
    page.side,
    panels.map((panel) => ({ panel, title: panels.length > 1 ? panel.run : null, story: panel.story, optimizer: panel.extent.optimizer })),
    state.incident,
    say.choose,
  );
  page.side.querySelector("[aria-pressed=true]")?.scrollIntoView({ block: "nearest" });
}

const load = () =>
  guarded(async () => {
    await Promise.all(panels.map((panel) => panel.load()));
    // The norm's scale is shared: only now is the other run's range known.
    if (panels.length > 1) panels.forEach((panel) => panel.view && panel.drawNorm());
  });

async function guarded(action) {
  try {
    await action();
    if (page) page.problem.hidden = true;
  } catch (error) {
    // The empty page has no place for it, and tries again at the next reload.
    if (!page) return;
    page.problem.textContent = `GradGuard could not read this: ${error.message}. Reloading TensorBoard's data tries again.`;
    page.problem.hidden = false;
  }
}

function drawTools() {
  const change = (name, then) => (value) => {
    state[name] = value;
    then();
    saveLink();
  };
  const redraw = () => panels.forEach((panel) => panel.layout());
  const reopen = () => {
    Object.assign(state, { from: null, to: null, step: null, incident: null, layer: null });
    if (state.compare === state.run) state.compare = null;
    openRuns();
  };
  const optimizers = runs.find((run) => run.name === state.run)?.optimizers ?? [0];
  page.reset = h("button", { type: "button", disabled: state.from === null, onclick: () => say.zoom(null, null) }, "Show all steps");
  page.copy = h("button", { type: "button", onclick: copyLink }, "Copy link");
  page.tools.replaceChildren(
    select("Run", runs.map((run) => [run.name, run.name]), state.run, change("run", reopen)),
    select("Beside", [["", "none"], ...runs.filter((run) => run.name !== state.run).map((run) => [run.name, run.name])], state.compare ?? "", (value) => change("compare", reopen)(value || null)),
    ...(optimizers.length > 1 ? [select("Optimizer", optimizers.map((one) => [String(one), String(one)]), String(state.optimizer), (value) => change("optimizer", reopen)(Number(value)))] : []),
    select("Statistic", STATISTICS, state.stat, change("stat", redraw)),
    select("Colours", COLOURS, state.colour, change("colour", redraw)),
    h("span", { class: "gap" }),
    page.reset,
    page.copy,
  );
}

async function copyLink() {
  saveLink();
  try {
    await navigator.clipboard.writeText(address());
    page.copy.textContent = "Copied";
  } catch {
    // Without HTTPS a browser may refuse; the address bar holds the same link.
    page.copy.textContent = "Copy it from the address bar";
  }
  setTimeout(() => (page.copy.textContent = "Copy link"), 2000);
}

async function openRuns(incident = null) {
  const names = [state.run, state.compare].filter((name) => name !== null);
  await guarded(async () => {
    const ticket = (opening = {});
    const stories = await Promise.all(names.map(fetchStory));
    // Of two openings that overlap, the one asked for last wins.
    if (ticket !== opening) return;
    panels = names.map((name, index) => new Panel(name, stories[index], state, say));
    page.main.replaceChildren(...panels.map((panel) => panel.element));
    page.main.parentElement.classList.toggle("two", panels.length > 1);
    if (incident !== null) {
      const found = stories[0].incidents.find((one) => one.number === incident && one.optimizer === panels[0].extent.optimizer);
      if (found) state.incident = { panel: panels[0], number: found.number, optimizer: found.optimizer };
    }
    drawTools();
    drawSide();
    saveLink();
    await load();
    if (state.layer && state.incident) panels[0].reveal(state.layer);
  });
}

/** After TensorBoard has read more: keep what the user looks at, and fetch what is new. */
async function refresh() {
  await guarded(async () => {
    const before = runs.map((run) => run.name).join("\n");
    runs = await fetchRuns();
    if (!runs.length || !panels.length) return start();
    if (!panels.every((panel) => runs.some((run) => run.name === panel.run))) return start();
    const stories = await Promise.all(panels.map((panel) => fetchStory(panel.run)));
    panels.forEach((panel, index) => panel.settle(stories[index]));
    if (runs.map((run) => run.name).join("\n") !== before) drawTools();
    drawSide();
    await load();
  });
}

function drawEmpty() {
  [panels, page] = [[], null];
  document.body.replaceChildren(
    h(
      "div",
      { class: "empty" },
      h("div", { class: "empty-mark", "aria-hidden": "true" }, h("i"), h("i"), h("i"), h("i"), h("i")),
      h("h1", {}, "No GradGuard data here yet"),
      h("p", {}, "Give the callback to your trainer, with TensorBoard's logger, and train a few steps:"),
      h("pre", {}, h("code", {}, "from lightning import Trainer\nfrom lightning.pytorch.loggers import TensorBoardLogger\nfrom lightning_gradguard import GradGuard\n\ntrainer = Trainer(\n    logger=TensorBoardLogger(\"logs\"),\n    callbacks=[GradGuard()],\n)\ntrainer.fit(model)")),
      h("p", { class: "quiet" }, "Then start TensorBoard on the same folder: ", h("code", {}, "tensorboard --logdir logs"), ". This page fills by itself when data arrives."),
    ),
  );
}

function drawFrame() {
  page = {
    tools: h("nav", { class: "tools", "aria-label": "What to show" }),
    problem: h("p", { class: "problem", role: "alert", hidden: true }),
    main: h("main", {}),
    side: h("aside", { "aria-label": "Incidents" }),
    live: h("div", { class: "unseen", "aria-live": "polite" }),
  };
  document.body.replaceChildren(
    page.tools,
    page.problem,
    h("div", { class: "columns" }, page.main, page.side),
    h("footer", { class: "quiet" }, "Drag to zoom, double-click to show all, click to mark a step. In the heatmap: arrow keys, Enter, + − 0."),
    page.live,
  );
}

async function start() {
  runs = await fetchRuns();
  if (!runs.length) return drawEmpty();
  drawFrame();
  await openRuns(takeLink());
}

/** Called by TensorBoard once the module is loaded. */
export async function render() {
  document.documentElement.lang = "en";
  const sheet = h("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href });
  const styled = new Promise((done) => ["load", "error"].forEach((event) => sheet.addEventListener(event, done)));
  document.head.append(h("meta", { charset: "utf-8" }), sheet);
  followTheme(() => panels.forEach((panel) => panel.layout()));
  await styled;
  onReload(refresh);
  onLink(() => runs.length && location.hash !== undefined && openRuns(takeLink()));
  try {
    await start();
  } catch (error) {
    document.body.replaceChildren(h("p", { class: "problem", role: "alert" }, `GradGuard could not start: ${error.message}`));
  }
}
