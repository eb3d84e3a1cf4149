// The page: which runs, which stretch, which incident, and what happens when the user acts.
// Longer than 200 lines: all that may happen on the page is in one place.

import "./modules.js";

import { fetchRuns, fetchStory, fetchView } from "./api.js";
import { h } from "./dom.js";
import { csv, fileName, markdown, png, save } from "./export.js";
import { address, followTheme, onLink, onReload } from "./host.js";
import { drawIncidents } from "./incidents.js";
import { decades } from "./norm.js";
import { copy, drawEmpty, drawFrame, dress } from "./page.js";
import { Panel } from "./panel.js";
import { saveLink, state, takeLink } from "./state.js";
import { choices } from "./statistics.js";
import { around, widened } from "./stretch.js";
import { drawTools } from "./tools.js";

const LIVE = 5000;
let runs = [];
let panels = [];
let others = [];
let page = null;
let opening = null;
let news = "";

const extents = () => [...panels.map((panel) => panel.extent), ...others.map((other) => other.extent)];

/** What panels ask of the page, and tell it. */
const say = {
  bounds: () => [Math.min(...extents().map((one) => one.start)), Math.max(...extents().map((one) => one.end))],
  decades: () => {
    const views = [...panels, ...others].filter((one) => one.view);
    const found = views.map((one) => decades(one.view)).filter((one) => one !== null);
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
    if (from !== null) [from, to] = widened(from, to, panels.map((panel) => panel.extent));
    const [first, last] = say.bounds();
    const wide = from === null || (from <= first && to >= last);
    [state.from, state.to] = wide ? [null, null] : [Math.max(0, from), to];
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
    Object.assign(state, {
      incident: { panel, number: incident.number, step: incident.step, optimizer: incident.optimizer },
      layer: blamed ?? null,
      step: incident.place,
    });
    drawSide();
    await say.zoom(...around(incident, panel.extent));
    if (state.layer) panel.heat.reveal(state.layer);
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
    panels.map((panel) => ({
      panel,
      title: panels.length > 1 ? panel.run : null,
      story: panel.story,
      optimizer: panel.extent.optimizer,
    })),
    say,
  );
  // Within the side only: the page itself stays where it is, with the verdict in sight.
  const card = page.side.querySelector("[aria-pressed=true]")?.parentElement;
  if (card) page.side.scrollTop = Math.max(0, card.offsetTop - page.side.offsetTop - 40);
}

const saveNumbers = () => save(csv(panels[0]), fileName(panels[0].run, "csv"), "text/csv");
const savePicture = () =>
  guarded(async () => {
    for (const panel of panels) save(await png(panel), fileName(panel.run, "png"), "image/png");
  });
const changeStatistic = () => guarded(() => Promise.all(panels.map((panel) => panel.changeStatistic())));
const drawBar = () => drawTools(page, { runs, panels }, { openRuns, savePicture, saveNumbers, changeStatistic });

const load = () =>
  guarded(async () => {
    const [from, to] = say.bounds();
    const wanted = { from: state.from ?? from, to: state.to ?? to, columns: 800 };
    const laid = others.map(
      async (other) => (other.view = await fetchView({ ...wanted, run: other.run, optimizer: other.extent.optimizer })),
    );
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

async function openRuns(incident = null) {
  const names = [state.run, state.compare].filter((name) => name !== null);
  await guarded(async () => {
    const ticket = (opening = {});
    const stories = await Promise.all([...names, ...state.over].map(fetchStory));
    // Of two openings that overlap, the one asked for last wins.
    if (ticket !== opening) return;
    panels = names.map((name, index) => new Panel(name, stories[index], state, say));
    if (!choices(panels.some((panel) => panel.extent.weighed)).some(([stat]) => stat === state.stat))
      state.stat = "ratio";
    others = state.over.map((run, index) => other(run, index, stories[names.length + index]));
    page.main.replaceChildren(...panels.map((panel) => panel.element));
    page.main.parentElement.classList.toggle("two", panels.length > 1);
    if (incident !== null) {
      const found = stories[0].incidents.find(
        (one) => one.number === incident && one.optimizer === panels[0].extent.optimizer,
      );
      const { number, step, optimizer } = found ?? {};
      if (found) state.incident = { panel: panels[0], number, step, optimizer };
    }
    drawBar();
    drawSide();
    saveLink();
    await load();
    if (state.layer) panels[0].heat.reveal(state.layer);
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
    if (runs.map((run) => run.name).join("\n") !== before) drawBar();
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

async function start() {
  runs = await fetchRuns();
  if (!runs.length) {
    [panels, others, page] = [[], [], null];
    return drawEmpty();
  }
  page = drawFrame();
  await openRuns(takeLink(runs));
  news = newsOf(runs);
}

/** Called by TensorBoard once the module is loaded. */
export async function render() {
  document.documentElement.lang = "en";
  document.title = "GradGuard";
  const styled = dress();
  followTheme(() => panels.forEach((panel) => panel.layout()));
  await styled;
  onReload(refresh);
  onLink(() => runs.length && location.hash !== undefined && openRuns(takeLink(runs)));
  try {
    await start();
  } catch (error) {
    document.body.replaceChildren(
      h("p", { class: "problem", role: "alert" }, `GradGuard could not start: ${error.message}`),
    );
  }
  setTimeout(follow, LIVE);
}
