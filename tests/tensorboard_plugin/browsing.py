"""The tab in a headless Chromium: opened, looked at, and held to what it must not do."""

from __future__ import annotations

from typing import Any

NONFINITE = (195, 0, 126)
# TensorBoard says the first on every page, and these tests' own look at the pixels causes the second.
KNOWN = ("Multiple instances of Three.js", "Canvas2D: Multiple readback operations")


class Tab:
    """The page, and what it must not do."""

    def __init__(self, chromium: Any, address: str) -> None:
        self.address = address
        self.context = chromium.new_context(viewport={"width": 1400, "height": 1100})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complain(said.text, said.type in ("error", "warning")))
        self.page.on("pageerror", lambda error: self.complain(str(error)))
        inside = (address, "data:", "blob:")
        self.page.on("request", lambda asked: self.complain(asked.url, not asked.url.startswith(inside)))

    def complain(self, text: str, bad: bool = True) -> None:
        if bad and not any(known in text for known in KNOWN):
            self.complaints.append(text)

    def open(self, query: str = "", **state: str) -> Any:
        self.page.goto("about:blank")
        link = "".join(f"&p.gradguard.{name}={value}" for name, value in state.items())
        self.page.goto(f"{self.address}/{query}#gradguard{link}")
        frame = self.page.frame_locator("iframe")
        frame.locator("[data-loaded], .empty").first.wait_for(timeout=20_000)
        return frame


def colours(frame: Any) -> dict[tuple[int, int, int], int]:
    """Count the pixels of the heatmap by colour."""
    counted = frame.locator("canvas.heat").first.evaluate(
        """canvas => {
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const counts = {};
            for (let i = 0; i < data.length; i += 4) {
                const key = [data[i], data[i + 1], data[i + 2]].join();
                counts[key] = (counts[key] ?? 0) + 1;
            }
            return counts;
        }"""
    )
    return {tuple(map(int, key.split(","))): count for key, count in counted.items()}  # type: ignore[misc]


def extent(frame: Any) -> list[int]:
    return [int(place) for place in frame.locator(".panel").first.get_attribute("data-loaded").split("-")]


def loaded(frame: Any, extent: str) -> None:
    frame.locator(f".panel[data-loaded='{extent}']").first.wait_for(timeout=10_000)
