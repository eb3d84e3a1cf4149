"""An incident as a static card for a notebook, which strips scripts and style sheets.

What was found and tried, and a picture of it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any

from . import colours, telling

WIDTH, HEIGHT, LEFT = 560, 112, 8


def incident_html(record: Mapping[str, Any]) -> str:
    """Return one incident, told from its JSON, as HTML whose styles are all inline."""
    sheet = colours.sheet("light")
    level, glyph, word = telling.STATES[telling.state(record)]
    opening = telling.opening(record)
    terms = [("result", telling.result(record)), *telling.findings(record)]
    rows = "".join(
        f'<tr><td style="color:{sheet["quiet"]};vertical-align:top;text-align:left">{_text(name)}</td>'
        f'<td style="text-align:left">{_text(text)}</td></tr>'
        for name, text in terms
    )
    return (
        f'<div style="border-left:4px solid {sheet[level]};padding:6px 12px;max-width:640px">'
        f"<b>{_text(opening[:1].upper() + opening[1:])}</b> "
        f'<span style="color:{sheet[level]}">{glyph} {_text(word)}</span>'
        f'<table style="margin:6px 0;border-collapse:collapse">{rows}</table>{draw(record)}</div>'
    )


def incident_text(record: Mapping[str, Any]) -> str:
    """Return one incident, told from its JSON, as a sentence: when, where, what was done, and how it stands."""
    return f"{telling.opening(record)}; {telling.deeds(record)}; {telling.result(record)}"


def draw(record: Mapping[str, Any]) -> str:
    """Return a small ``<svg>`` of the treatments on an axis of steps, with the levels of the loss compared, if any."""
    trials = [
        one
        for one in telling.dicts(record.get("trials"))
        if all(isinstance(one.get(k), int) for k in ("opened", "closed"))
    ]
    numbers = [telling.number(one.get(key)) for one in trials for key in ("before", "trouble", "after")]
    known = [value for value in numbers if math.isfinite(value)]
    if not trials or not known:
        return ""
    start: int = min([int(record.get("step") or 0), *(one["opened"] for one in trials)])
    end: int = max(one["closed"] for one in trials)
    sheet, log = colours.sheet("light"), min(known) > 0
    levels = [math.log10(v) if log else v for v in known]
    low, high = min(levels), max(levels)

    def x(step: float) -> float:
        return LEFT + 60 + (WIDTH - LEFT - 80) * (step - start) / max(end - start, 1)

    def y(value: float) -> float:
        level = math.log10(value) if log else value
        return 22 + (HEIGHT - 50) * (1 - (level - low) / max(high - low, 1e-9))

    parts = [p for one in trials for p in _trial(one, sheet, x, y)]
    axis = HEIGHT - 18
    parts.append(f'<path d="M{x(start):.1f} {axis}H{x(end):.1f}" stroke="{sheet["quiet"]}"/>')
    parts += [
        _label(f"step {step:,}", x(step), HEIGHT - 4, sheet["quiet"], at)
        for step, at in ((start, "start"), (end, "end"))
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" '
        'aria-label="Treatments, and the loss before and after" '
        f'font-family="system-ui, sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


def _trial(one: Mapping[str, Any], sheet: dict[str, str], x: Any, y: Any) -> Iterable[str]:
    outcome = str(one.get("outcome"))
    colour = sheet[{"kept": "good", "taken back": "bad"}.get(outcome, "warning")]
    left, right = x(one["opened"]), max(x(one["closed"]), x(one["opened"]) + 3)
    place = f'x="{left:.1f}" y="16" width="{right - left:.1f}" height="{HEIGHT - 34}"'
    yield f'<rect {place} fill="{colour}" fill-opacity=".15" stroke="{colour}" stroke-opacity=".6"/>'
    yield _label(outcome, (left + right) / 2, 11, colour, "middle")
    for key, at in (("before", left - 52), ("trouble", left - 10), ("after", right - 20)):
        value = telling.number(one.get(key))
        if math.isfinite(value):
            yield f'<path d="M{max(at, 0):.1f} {y(value):.1f}h20" stroke="{sheet["ink"]}" stroke-width="2.5"/>'
            end = key == "after"
            yield _label(
                telling.short(value),
                right if end else max(at, 0),
                y(value) - 4,
                sheet["quiet"],
                "end" if end else "start",
            )


def _label(text: str, x: float, y: float, colour: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{_text(text)}</text>'


def _text(text: str) -> str:
    return html.escape(telling.clean(text))
