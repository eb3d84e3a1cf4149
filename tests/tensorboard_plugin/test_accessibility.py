"""No serious fault that axe-core finds, in light and dark; ``AXE_CORE`` may name another ``axe.min.js`` than the package's."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic
from browsing import Tab, loaded


def axe() -> Path:
    """Where axe-core is: in a package that carries it along, so that no other one is fetched."""
    found = importlib.util.find_spec("axe_playwright_python")
    carried = Path(found.origin).parent if found is not None and found.origin else Path()
    return Path(os.environ.get("AXE_CORE", carried / "axe.min.js"))


AXE = axe()
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed")]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, serve: Any) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("logs")
    synthetic.write_run(folder / "sick", synthetic.transformer(6), windows=200, sick=True)
    synthetic.write_run(folder / "diverged", synthetic.transformer(2), windows=100, diverge=True)
    synthetic.write_lasting(folder / "many")
    with serve(folder) as at:
        yield at


@pytest.mark.parametrize("theme", ["", "?darkMode=true"])
@pytest.mark.parametrize("run", ["sick", "diverged", "many"])
def test_axe_finds_no_serious_fault(chromium: Any, address: str, run: str, theme: str) -> None:
    tab = Tab(chromium, address)
    frame = tab.open(theme, run=run)
    if run == "sick":
        frame.locator(".incident").first.click()
        frame.locator(".ticket").wait_for()
    elif run == "many":
        loaded(frame, "0-1200")
    (inner,) = [one for one in tab.page.frames if one != tab.page.main_frame]
    inner.evaluate(AXE.read_text(encoding="utf-8"))
    found = inner.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    serious = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
    tab.context.close()
    assert serious == []
