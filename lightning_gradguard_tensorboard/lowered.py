"""Where the learning rate was lowered: at the step of the treatment, and not in the middle of the window around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .codes import Floats
from .series import Timeline
from .telling import QUARTER, Held, lowered_to
from .wire import COLUMNS

_FACTOR, _RATE, _GOOD, _BAD = map(COLUMNS.index, ("lr_factor", "rate", "rate_good", "rate_bad"))
_COOLED = COLUMNS.index("cooled")


def lowered(run: Timeline, records: Iterable[Mapping[str, Any]]) -> list[float]:
    """Return the places at which the factor on the rate fell.

    A treatment tells its step; where none does, all that is known is the window, and its beginning is named.

    Args:
        run: The windows of one optimizer.
        records: Its incidents.
    """
    told = sorted({float(place) for record in records for place in _treated(record)})
    factor, axis = run.table[:, _FACTOR] / _cooled(run), run.axis
    fell = np.flatnonzero(factor[1:] < factor[:-1]) + 1
    return [_within(told, axis.first[c - 1], axis.last[c], axis.first[c]) for c in fell]


def held(run: Timeline, records: Sequence[Mapping[str, Any]]) -> Held | None:
    """Return how the rate is held far below the schedule's at the end of a run, or None where it is not.

    Only a run with a strip of the rate can tell: there a rate was found to be too high.

    Args:
        run: The windows of one optimizer.
        records: Its incidents.
    """
    table, cooled = run.table.copy(), _cooled(run)
    # What is held, and not what its cool-down has left of it.
    table[:, [_FACTOR, _RATE]] /= cooled[:, None]
    if not len(table) or not 0.0 < table[-1, _FACTOR] < QUARTER:
        return None
    factor, rate, good, bad = table[-1, [_FACTOR, _RATE, _GOOD, _BAD]].tolist()
    if not np.isfinite(bad):
        return None
    free = np.flatnonzero(table[:, _FACTOR] >= 1.0)
    first = int(free[-1]) + 1 if len(free) else 0
    marks, treated = lowered(run, records), {float(place) for record in records for place in _treated(record)}
    place = _within(marks, run.axis.first[max(first - 1, 0)], run.axis.last[first], run.axis.first[first])
    step = int(place - run.axis.offsets[first])
    eased = sum(mark > place and mark not in treated for mark in marks)
    low = next((told for record in records if (told := _lowered_to(record, step)) is not None), table[first, _RATE])
    return Held(factor, step, rate, good if good > 0.0 else None, float(low), eased, bool(cooled[-1] < 1.0))


def stairs_at(first: Floats, last: Floats, marks: Sequence[float]) -> tuple[Floats, Floats]:
    """Return where columns begin and end if the rate steps where it was lowered, and not at the edge of the column.

    >>> stairs_at(np.array([0.0, 10.0]), np.array([10.0, 20.0]), [3.0, 12.0])
    (array([ 3., 12.]), array([12., 20.]))
    """
    begins, ends = first.copy(), last.copy()
    for place in marks:
        c = int(np.searchsorted(first, place, side="right")) - 1
        if c >= 0 and place < last[c]:
            begins[c] = place
            if c and last[c - 1] >= first[c]:
                ends[c - 1] = place
    return begins, ends


def _cooled(run: Timeline) -> Floats:
    """Return the share of a held rate that was in use; 1 in records of older versions."""
    shares: Floats = np.nan_to_num(run.table[:, _COOLED], nan=1.0)
    return np.where(shares > 0.0, shares, 1.0)


def _within(places: Sequence[float], low: float, high: float, otherwise: float) -> float:
    return next((float(place) for place in reversed(places) if low <= place < high), float(otherwise))


def _lowered_to(record: Mapping[str, Any], step: int) -> float | None:
    """Return the rate to which a treatment at a step has lowered it, or None where none tells."""
    return next((rate for at, rate in lowered_to(record) if at == step), None)


def _treated(record: Mapping[str, Any]) -> list[float]:
    told = record["told"]
    return [one["from"] for one in (*told["trials"], *([told["pending"]] if "pending" in told else []))]
