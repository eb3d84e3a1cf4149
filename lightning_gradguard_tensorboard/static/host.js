// What the page has to do with the TensorBoard around it: the address, the theme, the reload button.

const PREFIX = "p.gradguard.";

/** The state kept in the address, as a plain object of strings. */
export function readLink() {
  const state = {};
  for (const part of parent.location.hash.replace(/^#/, "").split("&")) {
    const [name, value] = part.split("=", 2);
    if (!name.startsWith(PREFIX) || value === undefined) continue;
    try {
      state[name.slice(PREFIX.length)] = decodeURIComponent(value);
    } catch {
      // A mangled link opens the tab without this part.
    }
  }
  return state;
}

/**
 * Put the state into the address. It replaces the entry: the back button leaves the tab, as everywhere in TensorBoard.
 */
export function writeLink(state) {
  const others = parent.location.hash
    .replace(/^#/, "")
    .split("&")
    .filter((part) => part.includes("=") && !part.startsWith(PREFIX));
  const ours = Object.entries(state)
    .filter(([, value]) => value !== undefined && value !== null && value !== "")
    .map(([name, value]) => `${PREFIX}${name}=${encodeURIComponent(value)}`);
  parent.history.replaceState(parent.history.state, "", "#" + ["gradguard", ...others, ...ours].join("&"));
}

export const onLink = (listener) => parent.addEventListener("hashchange", listener);
export const address = () => parent.location.href;

/** Follow TensorBoard's theme, now and when it is switched. */
export function followTheme(changed) {
  const apply = () => {
    const dark = parent.document.body.classList.contains("dark-mode");
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    changed();
  };
  new MutationObserver(apply).observe(parent.document.body, { attributes: true, attributeFilter: ["class"] });
  apply();
}

/** Hear of TensorBoard's reloads, by the message port that its dynamic plugins share with it. */
export function onReload(listener) {
  const channel = new MessageChannel();
  channel.port1.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.isReply) return;
    if (message.type === "experimental.DataReloaded") listener();
    channel.port1.postMessage(
      JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }),
    );
  };
  parent.postMessage("experimental.bootstrap", "*", [channel.port2]);
}
