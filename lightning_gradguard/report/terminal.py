"""The story of a run as lines of text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.records import Incident
from lightning_gradguard.report.story import RunStory
from lightning_gradguard_tensorboard.wire import COLUMNS

_COLOURS = {"good": "32", "warning": "33", "bad": "31", "unknown": "90"}
_BARS = "▁▂▃▄▅▆▇█"
_PEAK, _LOSS = COLUMNS.index("norm_peak"), COLUMNS.index("loss_mean")
NEWEST = 20
_CELLS = 60
ACTIONS = 3


def render_text(story: RunStory, *, color: bool = False) -> str:
    """Return the story for a terminal, incidents newest first.

    Args:
        story: What to tell.
        color: Whether to use ANSI colours; names from the journal can never bring their own.
    """
    return "\n".join(_lines(story, color)) + "\n"


def brief(story: RunStory, *, color: bool = False, width: int | None = None) -> str:
    """Return what a person who watches needs, in few lines.

    The verdict, the answers, norm and loss, the newest incidents.

    Args:
        story: What to tell.
        color: Whether to use ANSI colours.
        width: Columns of the terminal, beyond which lines are broken; None to break none.
    """
    lines = list(_head(story, color, width))
    for incident in story.contents.incidents[:-4:-1]:
        opening = wording.opening(incident)
        # Alarms are told at each doubling: their count would lag behind that of skipped steps above it.
        result = "still open" if incident.closed is None else wording.result(incident)
        lines += _broken("  ", f"{opening[0].upper()}{opening[1:]}: {result}", width)
    for when, said in story.notes[-2:]:
        lines += _broken("  ", f"note, {when}: {wording.clean(said)}", width)
    return "\n".join(lines) + "\n"


def _head(story: RunStory, color: bool, width: int | None = None) -> Iterator[str]:
    head = story.headline
    yield _paint(wording.clean(story.name), "1", color)
    said = wording.clean(f"{head.word}{'' if head.word.endswith(':') else '.'} {head.text}")
    for line in _broken("  ● ", said, width):
        yield line[:2] + _paint(line[2:], _COLOURS[head.level], color)
    for question, answer in head.answers:
        yield from _broken(f"    {question:13}  ", wording.clean(answer), width)
    for optimizer, run in story.optimizers.items():
        label = wording.clean(f" ({story.names[optimizer]})") if len(story.optimizers) > 1 else ""
        cells = _CELLS if width is None else max(min(_CELLS, width - 46 - len(label)), 10)
        norms, losses = (run.windows.table[:, column].tolist() for column in (_PEAK, _LOSS))
        yield f"  log10 gradient norm{label}  {_sparkline(norms, cells)}"
        known = [loss for loss in losses if math.isfinite(loss)]
        if known:
            log = min(known) > 0.0
            name = "log10 loss" if log else "loss, linear"
            yield f"  {name + label:{19 + len(label)}}  {_sparkline(losses, cells, unknown=' ', log=log)}"


def _broken(begin: str, said: str, width: int | None) -> list[str]:
    """Return a sentence in lines no longer than ``width``, those after the first set in."""
    if width is None or len(begin) + len(said) <= width:
        return [begin + said]
    room = max(width - len(begin), 20)
    lines = textwrap.wrap(said, room, break_long_words=False, break_on_hyphens=False)
    return [begin + lines[0], *(" " * len(begin) + line for line in lines[1:])]


def _lines(story: RunStory, color: bool) -> Iterator[str]:
    yield from _head(story, color)
    incidents = story.contents.incidents[::-1]
    for incident in incidents[:NEWEST]:
        yield ""
        yield from (f"  {line}" for line in _incident(incident, color))
    if len(incidents) > NEWEST:
        yield f"  … and {wording.count(len(incidents) - NEWEST, 'earlier incident')}"
    if story.contents.notices:
        yield ""
        yield from (f"  note, {when}: {wording.clean(said)}" for when, said in story.notes[-NEWEST:])
    if story.missing:
        yield ""
        yield f"  {_paint('Not shown:', '33', color)}"
        yield from (f"    {sentence}" for sentence in story.missing)


def _incident(incident: Incident, color: bool) -> Iterator[str]:
    opening = wording.opening(incident)
    yield _paint(opening[0].upper() + opening[1:], "1", color)
    yield f"  {wording.deeds(incident)}; {wording.result(incident)}"
    yield from (f"  {name}: {text}" for name, text in wording.findings(incident))
    for action in incident.actions[:ACTIONS]:
        yield f"  step {action.step:,}: {wording.evidence(action)}; {wording.reason(action)}"
    if incident.alarms > ACTIONS:
        yield f"  … {wording.count(incident.alarms, 'alarming step')} in all"


def _sparkline(values: list[float], width: int = _CELLS, unknown: str = "!", log: bool = True) -> str:
    """Return numbers as bars, ``unknown`` where one was not finite; a cell shows the largest that it covers.

    On a log scale a number that is not above zero is as low as the lowest one that is.
    """
    size = -(-len(values) // width) or 1
    cells = [values[i : i + size] for i in range(0, len(values), size)]
    tops = [max((value for value in cell if math.isfinite(value)), default=math.nan) for cell in cells]
    levels = [(math.log10(top) if top > 0.0 else -math.inf) if log else top for top in tops]
    known = [level for level in levels if math.isfinite(level)]
    if not known:
        return unknown * len(cells)
    low, high = min(known), max(known)
    # Small changes of a logarithm are no news; what is linear has no such measure.
    span = max(high - low, 1.0) if log else high - low or 1.0
    bars = [
        unknown if not all(map(math.isfinite, cell)) else _BARS[int((max(level, low) - low) / span * 7.999)]
        for level, cell in zip(levels, cells, strict=True)
    ]
    reach = f"{low:.1f} to {high:.1f}" if log else f"{wording.number(low)} to {wording.number(high)}"
    return f"{''.join(bars)}  {reach}"


def _paint(text: str, code: str, color: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if color else text
