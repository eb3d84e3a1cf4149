"""How large each layer's weights are, and how far one update moves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .axis import Axis
from .codes import CODE_OF, MISSING, ZERO_CODE, Codes, Halves, Integers
from .series import Timeline, settle


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights' statistics of one optimizer of one run.

    Args:
        names: Layer names in forward order.
        axis: The place of each measurement; it stands for all steps since the one before.
        norms: log2 of the norm of each layer's weights, shape ``(m, layers)``.
        updates: log2 of the norm of an update over that of the weights, shape ``(m, layers)``.
        beginning: The first norm of each layer that is known and above zero, shape ``(layers,)``.
    """

    names: tuple[str, ...]
    axis: Axis
    norms: Codes
    updates: Codes
    beginning: Codes


def weigh(names: Sequence[str], windows: Timeline, ticks: Integers, halves: Halves) -> Weights:
    """Put weight events together with the windows, which know their steps.

    Args:
        names: Layer names.
        windows: The windows.
        ticks: Ticks of the events, shape ``(m,)``.
        halves: Their payloads, shape ``(m, 2, layers)``.
    """
    if not len(windows.axis.ticks):
        ticks, halves = ticks[:0], halves[:0]
    order = settle(ticks)
    at = np.clip(np.searchsorted(windows.axis.ticks, ticks[order]), 0, max(len(windows.axis.ticks) - 1, 0))
    first, last = windows.axis.first[at], windows.axis.last[at]
    first[1:] = last[:-1]
    axis = Axis(ticks[order], np.minimum(first, last), last, windows.axis.offsets[at], windows.axis.wall_times[at])
    bits = halves.view(np.uint16)[order]
    norms, updates = CODE_OF.take(bits[:, 0]), CODE_OF.take(bits[:, 1])
    known = norms > ZERO_CODE
    if not len(norms):
        return Weights(tuple(names), axis, norms, updates, np.full(len(names), MISSING, np.int16))
    beginning = np.take_along_axis(norms, np.argmax(known, axis=0)[None], axis=0)[0]
    return Weights(tuple(names), axis, norms, updates, np.where(known.any(axis=0), beginning, np.int16(MISSING)))
