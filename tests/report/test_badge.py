"""An incident's circle stands on the chart, and beside the layer that it blames."""

from __future__ import annotations

import re
from pathlib import Path

from lightning_gradguard.report import render_page
from tests.diagnostics.test_wording import KEPT_AT_ONCE
from tests.report.test_story import story


def test_the_blamed_layer_is_told_apart_in_the_map(tmp_path: Path) -> None:
    page = render_page([story(tmp_path / "run", KEPT_AT_ONCE)])
    (blamed,) = re.findall(r'<text class="layer blamed"[^>]*>([^<]*)<', page)
    assert blamed == "conv2", "all three may burn"
    assert page.count('<g class="dot good"') == 2, "on the chart, and beside the name"
