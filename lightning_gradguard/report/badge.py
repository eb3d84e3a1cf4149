"""An incident's numbered circle, on a chart and beside the layer that it blames."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from lightning_gradguard_tensorboard import colours
from lightning_gradguard_tensorboard.telling import clean


def badge(record: Mapping[str, Any], x: float, y: float, radius: float = 8.5) -> str:
    """Return the circle, which leads to what is said of the incident."""
    sheet, level = colours.sheet("light"), record["told"]["level"]
    told = f"incident {record['number']:,} at step {record['step']:,}: {record.get('form')}"
    anchor = f"incident-{record['optimizer']}-{record['number']}-{record['step']}"
    return (
        f'<a href="#{anchor}">'
        f'<g class="dot {level}" stroke="{sheet[level]}" stroke-width="{radius / 4.25:.1f}" fill="{sheet["ground"]}">'
        f"<title>{html.escape(clean(told))}</title>"
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
        f'<text x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle" stroke="none" fill="{sheet["ink"]}">'
        f"{record['number']}</text></g></a>"
    )
