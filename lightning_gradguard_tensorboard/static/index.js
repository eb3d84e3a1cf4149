// The page: which runs, which stretch, which incident; the state lives in the address, so that a link shows what its sender saw.

import { fetchRuns, fetchStory, fetchView } from "./api.js";
import { h, put, select } from "./dom.js";
import { csv, fileName, markdown, png, save } from "./export.js";
import { STATISTICS } from "./heat.js";
import { address, followTheme, onLink, onReload, readLink, writeLink } from "./host.js";
import { drawIncidents } from "./incidents.js";
import { COLOURS } from "./palette.js";
import { Panel } from "./panel.js";
import { ORDERS } from "./rows.js";

const state = {
  run: null, compare: null, over: [], optimizer: 0, stat: "ratio", order: "forward", search: "", colour: "blue-orange",
  from: null, to: null, step: null, layer: null, incident: null,
};
const MOST_OVER = 3;
const LIVE = 5000;
let runs = [];
let panels = [];
let others = [];
let page = null;
let opening = null;
let news = "";

const number = (text) => (text === undefined || text === "" || !Number.isFinite(Number(text)) ? null : Number(text));
const known = (options, value, otherwise) => (options.some(([name]) => name === value) ? value : otherwise);
const unless = (value, usual) => (value === usual ? null : value);

function takeLink() {
  const link = readLink();
  const has = (name) => runs.some((run) => run.name === name);
  state.run = has(link.run) ? link.run : has(state.run) ? state.run : newest();
  state.compare = has(link.compare) && link.compare !== state.run ? link.compare : null;
  state.over = (link.over ?? "").split(",").map(decode).filter((name) => has(name) && name !== state.run).slice(0, MOST_OVER);
  state.optimizer = number(link.optimizer) ?? 0;
  state.stat = known(STATISTICS, link.stat, "ratio");
  state.order = known(ORDERS, link.order, "forward");
  state.search = link.search ?? "";
  state.colour = known(COLOURS, link.colour, "blue-orange");
  [state.from, state.to, state.step] = [link.from, link.to, link.step].map(number);
  state.layer = link.layer ?? null;
  return number(link.incident);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

const newest = () => runs.reduce((best, run) => (!best || run.time > best.time ? run : best), null)?.name ?? null;

function saveLink() {
  writeLink({
    run: state.run,
    compare: state.compare,
    over: state.over.map(encodeURIComponent).join(","),
    optimizer: state.optimizer || null,
    stat: unless(state.stat, "ratio"),
    order: unless(state.order, "forward"),
    search: state.search,
    colour: unless(state.colour, "blue-orange"),
    from: state.from === null ? null : Math.round(state.from),
    to: state.to === null ? null : Math.round(state.to),
    step: state.step,
    layer: state.layer,
    incident: state.incident?.number,
  });
}

const extents = () => [...panels.map((panel) => panel.extent), ...others.map((other) => other.extent)];

/** What panels ask of the page, and tell it. */
const say = {
  bounds: () => [Math.min(...extents().map((one) => one.start)), Math.max(...extents().map((one) => one.end))],
  decades: () => {
    const views = [...panels, ...others].filter((one) => one.view);
    const found = views.map((one) => Panel.decadesOf(one.view)).filter((one) => one !== null);
    return found.length ? [Math.min(...found.map((one) => one[0])), Math.max(...found.map((one) => one[1]))] : [-1, 1];
  },
  /** Runs that are drawn over a panel's own. */
  others: (panel) => (panel === panels[0] ? others.filter((other) => other.view) : []),
  cursor: (place, source) => {
    for (const panel of panels) {
      panel.drawCursor(place);
      if (panel !== source) panel.tip.hidden = true;
    }
  },
  pin: (place, row, panel) => {
    state.step = place;
    const at = row === undefined ? null : panel?.heat.rows[row];
    if (place === null) state.layer = null;
    else if (at?.kind === "layer") state.layer = at.name;
    panels.forEach((one) => (one.drawPin(), one.heat.paint()));
    saveLink();
  },
  layer: (name) => {
    state.layer = state.layer === name ? null : name;
    panels.forEach((panel) => panel.heat.paint());
    saveLink();
  },
  zoom: async (from, to) => {
    const least = Math.max(...panels.map((panel) => (4 * (panel.extent.end - panel.extent.start)) / Math.max(panel.extent.windows, 1)));
    if (from !== null && to - from < least) [from, to] = [(from + to - least) / 2, (from + to + least) / 2];
    const [first, last] = say.bounds();
    const wide = from === null || (from <= first && to >= last);
    [state.from, state.to] = wide ? [null, null] : [Math.max(0, from), to];
    page.reset.hidden = wide;
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
    // Some thirty windows on both sides; in a short run, that has hardly more, a sixth of it. Trials are seen whole.
    const reach = Math.max((end - start) / 40, Math.min((30 * (end - start)) / Math.max(windows, 1), (end - start) / 6));
    const over = incident.told.trials.reduce((last, one) => Math.max(last, one.to), incident.place);
    drawSide();
    await say.zoom(Math.max(start, incident.place - reach), Math.min(end, Math.max(incident.place + reach, over + reach / 4)));
    if (state.layer) panel.reveal(state.layer);
  },
  optimizer: (index) => {
    Object.assign(state, { optimizer: index, incident: null, layer: null, step: null });
    openRuns();
  },
  ticket: async (panel, incident, button) => {
    await copy(markdown(incident, panel.run, address()), button, "Copy as Markdown");
  },
  search: () => page.search.focus(),
  speak: (text) => (page.live.textContent = text),
};

function drawSide() {
  drawIncidents(
    page.side,
    panels.map((panel) => ({ panel, title: panels.length > 1 ? panel.run : null, story: panel.story, optimizer: panel.extent.optimizer })),
    state.incident,
    say,
  );
  page.side.querySelector("[aria-pressed=true]")?.scrollIntoView({ block: "nearest" });
}

const load = () =>
  guarded(async () => {
    const [from, to] = say.bounds();
    const wanted = { from: state.from ?? from, to: state.to ?? to, columns: 800 };
    const laid = others.map(async (other) => (other.view = await fetchView({ ...wanted, run: other.run, optimizer: other.extent.optimizer })));
    const sampled = await Promise.all([...panels.map((panel) => panel.load()), ...laid]);
    // The scale is shared: only now is the other runs' range known.
    if (panels.length > 1 || others.length) panels.forEach((panel) => panel.layout());
    // A large run's layers are weighed only once they have been read.
    if (sampled.includes(true)) await resettle();
  });

async function resettle() {
  const stories = await Promise.all(panels.map((panel) => fetchStory(panel.run)));
  panels.forEach((panel, index) => (panel.settle(stories[index]), panel.heat.draw()));
}

async function guarded(action) {
  try {
    await action();
    if (page) page.problem.hidden = true;
  } catch (error) {
    // The empty page has no place for it, and tries again by itself.
    if (!page) return;
    page.problem.textContent = `GradGuard could not read this: ${error.message}. It tries again by itself.`;
    page.problem.hidden = false;
    news = "";
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
    state.over = state.over.filter((name) => name !== state.run);
    openRuns();
  };
  const optimizers = panels[0]?.story.optimizers ?? [];
  const rest = runs.filter((run) => run.name !== state.run);
  const free = rest.filter((run) => !state.over.includes(run.name));
  page.reset = h("button", { type: "button", hidden: state.from === null, onclick: () => say.zoom(null, null) }, "Show all steps");
  page.copy = h("button", { type: "button", onclick: () => (saveLink(), copy(address(), page.copy, "Copy link")) }, "Copy link");
  page.search = h("input", { type: "search", placeholder: "all layers", value: state.search, "aria-label": "Search layers", oninput: (event) => change("search", redraw)(event.target.value) });
  put(
    page.tools,
    select("Run", runs.map((run) => [run.name, run.name]), state.run, change("run", reopen)),
    select("Beside", [["", "none"], ...rest.map((run) => [run.name, run.name])], state.compare ?? "", (value) => change("compare", reopen)(value || null)),
    free.length > 0 && state.over.length < MOST_OVER && select("Draw over", [["", state.over.length ? "one more …" : "none"], ...free.map((run) => [run.name, run.name])], "", (value) => value && change("over", reopen)([...state.over, value])),
    state.over.map((name, index) =>
      h("button", { type: "button", class: "chip", "aria-label": `Draw ${name} no more`, title: name, onclick: () => change("over", reopen)(state.over.filter((one) => one !== name)) }, h("i", { class: `swatch other-key other-${index}` }), h("span", { class: "text" }, name), " ×"),
    ),
    optimizers.length > 1 && select("Optimizer", optimizers.map((one) => [String(one.optimizer), one.name]), String(state.optimizer), (value) => change("optimizer", reopen)(Number(value))),
    select("Statistic", STATISTICS, state.stat, change("stat", redraw)),
    select("Order", ORDERS, state.order, change("order", redraw)),
    h("label", { class: "field" }, h("span", {}, "Layers"), page.search),
    select("Colours", COLOURS, state.colour, change("colour", redraw)),
    h("span", { class: "gap" }),
    page.reset,
    page.copy,
    h(
      "details",
      { class: "menu" },
      h("summary", {}, "Save"),
      h("div", {}, h("button", { type: "button", onclick: savePicture }, "Picture (PNG)"), h("button", { type: "button", onclick: saveNumbers }, "Numbers (CSV)")),
    ),
  );
}

const saveNumbers = () => save(csv(panels[0]), fileName(panels[0].run, "csv"), "text/csv");
const savePicture = () =>
  guarded(async () => {
    for (const panel of panels) save(await png(panel), fileName(panel.run, "png"), "image/png");
  });

async function copy(text, button, usual) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Without HTTPS a browser may refuse.
    button.textContent = text === address() ? "Copy it from the address bar" : "The browser refuses to copy";
  }
  setTimeout(() => (button.textContent = usual), 2000);
}

async function openRuns(incident = null) {
  const names = [state.run, state.compare].filter((name) => name !== null);
  await guarded(async () => {
    const ticket = (opening = {});
    const stories = await Promise.all([...names, ...state.over].map(fetchStory));
    // Of two openings that overlap, the one asked for last wins.
    if (ticket !== opening) return;
    panels = names.map((name, index) => new Panel(name, stories[index], state, say));
    others = state.over.map((run, index) => other(run, index, stories[names.length + index]));
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
    if (state.layer) panels[0].reveal(state.layer);
  });
}

function other(run, index, story) {
  const extent = story.optimizers.find((one) => one.optimizer === state.optimizer) ?? story.optimizers[0];
  return { run, index, extent, view: null };
}

/** Fetch what is new, and keep what the user looks at. */
async function refresh() {
  await guarded(async () => {
    const before = runs.map((run) => run.name).join("\n");
    runs = await fetchRuns();
    news = newsOf(runs);
    if (!runs.length || !panels.length) return start();
    if (!panels.every((panel) => runs.some((run) => run.name === panel.run))) return start();
    const stories = await Promise.all([...panels, ...others].map((one) => fetchStory(one.run)));
    panels.forEach((panel, index) => panel.settle(stories[index]));
    others.forEach((one, index) => (one.extent = other(one.run, index, stories[panels.length + index]).extent));
    if (runs.map((run) => run.name).join("\n") !== before) drawTools();
    drawSide();
    await load();
  });
}

/** What there is to tell of the runs in sight: it changes when something was written. */
const newsOf = (all) => {
  const seen = [...panels, ...others].map((one) => one.run);
  return JSON.stringify(all.map((run) => [run.name, seen.includes(run.name) ? run.time : 0]));
};

/** Ask for news while the tab is open and in sight; a server that is slow to answer is asked less often. */
async function follow() {
  const began = performance.now();
  if (document.visibilityState === "visible" && document.documentElement.clientWidth > 0) {
    try {
      const now = newsOf(await fetchRuns());
      if (now !== news) await refresh();
    } catch {
      // TensorBoard may be restarting.
    }
  }
  setTimeout(follow, Math.max(LIVE, 10 * (performance.now() - began)));
}

function drawEmpty() {
  [panels, others, page] = [[], [], null];
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
    h("h1", { class: "unseen" }, "GradGuard"),
    page.tools,
    page.problem,
    h("div", { class: "columns" }, page.main, page.side),
    h("footer", { class: "quiet" }, "Drag to zoom, double-click to show all, click to mark a step. In the heatmap: arrow keys, Enter, + − 0, / to search."),
    page.live,
  );
}

async function start() {
  runs = await fetchRuns();
  if (!runs.length) return drawEmpty();
  drawFrame();
  await openRuns(takeLink());
  news = newsOf(runs);
}

/** Called by TensorBoard once the module is loaded. */
export async function render() {
  document.documentElement.lang = "en";
  document.title = "GradGuard";
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
  setTimeout(follow, LIVE);
}
