// The frame of the page, with nothing in it yet, and the page for a folder without runs of ours.

import { h } from "./dom.js";
import { address } from "./host.js";

const EXAMPLE = `from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_gradguard import GradGuard

trainer = Trainer(
    logger=TensorBoardLogger("logs"),
    callbacks=[GradGuard()],
)
trainer.fit(model)`;

const SHEETS = ["./style.css", "./charts.css"].map((name) => new URL(name, import.meta.url).href);

/** Load the style sheets; the promise is kept when they are in place. */
export function dress() {
  const links = SHEETS.map((href) => h("link", { rel: "stylesheet", href }));
  const loaded = (link) =>
    new Promise((done) => ["load", "error"].forEach((event) => link.addEventListener(event, done)));
  const styled = Promise.all(links.map(loaded));
  document.head.append(h("meta", { charset: "utf-8" }), ...links);
  return styled;
}

/** The text of the style sheets, for a picture that must stand alone. */
export const styles = async () =>
  (await Promise.all(SHEETS.map(async (href) => (await fetch(href)).text()))).join("\n");

/** Say what to do where there is nothing to show. */
export function drawEmpty() {
  document.body.replaceChildren(
    h(
      "div",
      { class: "empty" },
      h("div", { class: "empty-mark", "aria-hidden": "true" }, h("i"), h("i"), h("i"), h("i"), h("i")),
      h("h1", {}, "No GradGuard data here yet"),
      h("p", {}, "Give the callback to your trainer, with TensorBoard's logger, and train a few steps:"),
      h(
        "pre",
        {},
        h("code", {}, EXAMPLE),
      ),
      h(
        "p",
        { class: "quiet" },
        "Then start TensorBoard on the same folder: ",
        h("code", {}, "tensorboard --logdir logs"),
        ". This page fills by itself when data arrives.",
      ),
    ),
  );
}

/** Draw the frame; return its parts. */
export function drawFrame() {
  const page = {
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
    h(
      "footer",
      { class: "quiet" },
      "Drag to zoom, double-click to show all, click to mark a step. ",
      "In the heatmap: arrow keys, Enter, + − 0, / to search.",
    ),
    page.live,
  );
  return page;
}

/** Copy a text, and say so on the button that was asked. */
export async function copy(text, button, usual) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Without HTTPS a browser may refuse.
    button.textContent = text === address() ? "Copy it from the address bar" : "The browser refuses to copy";
  }
  setTimeout(() => (button.textContent = usual), 2000);
}
