"""The report page as a person opens it: from a file, without a network, in light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gradguard.cli import main
from lightning_gradguard.diagnostics import Journal
from tests.diagnostics.examples import HOSTILE, incident, window

pytestmark = pytest.mark.browser

LAYERS = tuple(f"conv{i}" for i in range(8))
ATTACK = '"><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def write(folder: Path, layers: tuple[str, ...] = LAYERS, layer: str = "conv2") -> Path:
    """Write a journal with one bad window, and the page of it."""
    journal = Journal(folder)
    for tick in range(60):
        bad = np.zeros(len(layers))
        bad[2] = tick == 40
        peaks = np.linspace(1.0, 2.0, len(layers)) * (300.0 if tick == 20 else 1.0)
        journal.window(
            window(
                tick, layers=layers, layer_peaks=peaks, layer_nonfinite=bad, norm_peak=math.nan if tick == 40 else 2.0
            )
        )
    journal.incident(incident(layer=layer, closed=52, helped=True), "closed")
    journal.close()
    page = folder / "page.html"
    assert main(["report", str(folder), "--html", str(page), "--no-color"]) == 0
    return page


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """Open a page as a mail's attachment is opened, and hold it to making no request and no complaint."""
    contexts, complaints = [], []

    def browse(page: Path, scheme: str = "light") -> Any:
        context = chromium.new_context(offline=True, color_scheme=scheme, viewport={"width": 1300, "height": 1000})
        contexts.append(context)
        shown = context.new_page()
        shown.on("console", lambda said: complaints.append(said.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on(
            "request",
            lambda asked: (
                complaints.append(asked.url)
                if asked.url not in (page.as_uri(),) and not asked.url.startswith("data:")
                else None
            ),
        )
        shown.goto(page.as_uri())
        return shown

    yield browse
    for context in contexts:
        context.close()
    assert complaints == []


def pixels(page: Any) -> dict[tuple[int, ...], int]:
    """Count the colours of the heatmap as it is on the screen."""
    import io

    from PIL import Image

    shot = Image.open(io.BytesIO(page.locator("svg image:visible").first.screenshot())).convert("RGB")
    return {colour: count for count, colour in shot.getcolors(1 << 24)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_offline_and_shows_the_heatmap(tmp_path: Path, opened: Any, scheme: str, capsys: Any) -> None:
    page = opened(write(tmp_path / "run"), scheme)
    ground = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    ink = page.locator("body").evaluate("body => getComputedStyle(body).color")
    brightness = [sum(int(part) for part in colour[4:-1].split(",")[:3]) / 3 for colour in (ground, ink)]
    assert (brightness[0] > 200 > 100 > brightness[1]) == (scheme == "light")
    assert (brightness[0] < 60 < 180 < brightness[1]) == (scheme == "dark")
    assert (
        "1 incident in 1,500 steps; the last: non-finite at step 40, first in conv2"
        in page.locator(".verdict").inner_text()
    )
    counted = pixels(page)
    nonfinite = (195, 0, 126) if scheme == "light" else (255, 77, 184)
    assert counted.get(nonfinite, 0) > 50, "the one cell of NaN"
    assert sum(n for (r, g, b), n in counted.items() if r > b + 60 and r > 100 and (r, g, b) != nonfinite) > 500, (
        "the spike"
    )
    calm = max(counted, key=lambda colour: counted[colour])
    assert (sum(calm) / 3 > 200) == (scheme == "light"), "what is calm has the page's own colour"


def test_a_dot_leads_to_its_incident(tmp_path: Path, opened: Any, capsys: Any) -> None:
    page = opened(write(tmp_path / "run"))
    page.locator("g.dot circle").first.click()
    assert page.url.endswith("#incident-0-1-40")
    assert page.locator("article:target h4").inner_text().startswith("1 non-finite at step 40")


def test_hostile_names_stay_text(tmp_path: Path, opened: Any, capsys: Any) -> None:
    layers = (ATTACK, HOSTILE, *LAYERS[2:])
    page = opened(write(tmp_path / "run", layers, ATTACK))
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, script").count() == 0
    assert ATTACK in page.locator("article").inner_text()
