"""When, by the clock on the wall: of an incident, and of the last that was heard of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Heard:
    """The last that was heard of a run.

    Args:
        time: Seconds since 1970, NaN where nothing tells.
        ended: Whether it said that it ended; a run that is killed says nothing.
    """

    time: float = math.nan
    ended: bool = False


def moment(time: Any) -> str:
    """Return a time of day with its date, on this machine's clock; nothing where none is known."""
    if not isinstance(time, (int, float)) or not math.isfinite(time) or time <= 0:
        return ""
    try:
        return datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return ""


def at(time: Any) -> list[dict[str, str]]:
    """Return a piece of a sentence, which the page writes anew by the reader's own clock."""
    return [{"text": f", {moment(time)}", "time": str(time)}] if moment(time) else []


def heard(last: Heard) -> list[dict[str, str]]:
    """Return whether a run has ended, as pieces of a sentence."""
    if last.ended:
        return [{"text": "; the run has ended"}]
    return [{"text": "; last heard of"}, *at(last.time)] if at(last.time) else []
