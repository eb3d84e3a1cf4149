"""The witnesses of one optimizer: who looks when, what is usual, and what they say when an incident opens."""

from __future__ import annotations

import copy
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from lightning_gradguard.records import Testimony, Window
from lightning_gradguard.witnesses.modules import ModuleWitness
from lightning_gradguard.witnesses.second_moment import SecondMoment
from lightning_gradguard.witnesses.update_ratio import UpdateRatio
from lightning_gradguard.witnesses.witness import Witness, WitnessContext

WINDOWS_KNOWN = 16
"""Windows whose median is what is usual."""
LEAST_KNOWN = 6
"""Windows from which there is a usual."""

Seen = dict[str, float]


class WitnessStand:
    """Ask witnesses once a window; one that fails is silent from then on.

    What is usual is learned from windows without an open incident only, and anew in a run that is resumed.

    Args:
        asked_for: Prototypes of those beyond the two that every optimizer has.
    """

    def __init__(self, asked_for: Sequence[Witness] = ()) -> None:
        self._witnesses: list[Witness] = [UpdateRatio(), SecondMoment(), *map(copy.deepcopy, asked_for)]
        self._of_modules = [one for one in self._witnesses if isinstance(one, ModuleWitness)]
        self._last: dict[str, Seen] = {}
        self._before: dict[str, deque[Seen]] = {}
        self.complaints: list[tuple[str, str]] = []

    @property
    def armed(self) -> bool:
        """Whether hooks are in place."""
        # Asked at each step, of which most runs have nobody to ask.
        return bool(self._of_modules) and any(one.armed for one in self._of_modules)

    def arm(self, module: nn.Module, trained: Iterable[nn.Parameter]) -> None:
        """Put the hooks of those that look into modules in place, before a batch goes through it."""
        trained = list(trained)
        for one in list(self._of_modules):
            if not one.armed:
                self._safely(one, lambda one=one: one.arm(module, trained))  # type: ignore[misc]

    def look(self, scene: WitnessContext, *, first: bool) -> None:
        """Look at a step right before its update.

        Args:
            scene: The step.
            first: Whether it is the first of a window; at another only hooks that are in place are read.
        """
        for one in list(self._witnesses):
            if isinstance(one, ModuleWitness):
                if one.armed:
                    self._safely(one, lambda one=one: one.look(scene))  # type: ignore[misc]
            elif first:
                self._safely(one, lambda one=one: one.look(scene))  # type: ignore[misc]

    def hear(self, window: Window, *, calm: bool) -> tuple[Testimony, ...]:
        """Return what was seen in a window that has ended, one number a witness.

        Args:
            window: The window.
            calm: Whether it may become a part of what is usual: no incident is open.
        """
        told = []
        for one in list(self._witnesses):
            seen: Seen = {}
            self._safely(one, lambda one=one, seen=seen: seen.update(one.take(window)))  # type: ignore[misc]
            if not seen:
                continue
            if calm and one.name in self._last:
                self._before.setdefault(one.name, deque(maxlen=WINDOWS_KNOWN)).append(self._last[one.name])
            self._last[one.name] = seen
            where = max(seen, key=lambda place: _rank(seen[place]))
            told.append(Testimony(one.name, seen[where], where))
        return tuple(told)

    def testify(self) -> tuple[Testimony, ...]:
        """Return the evidence of the last windows: whose value had left its usual level, and where most."""
        told = []
        for one in self._witnesses:
            found = [
                Testimony(one.name, value, place, usual)
                for place, value in self._last.get(one.name, {}).items()
                if one.speaks(value, usual := self._usual(one.name, place))
            ]
            if found:
                told.append(max(found, key=lambda t: _rank(t.value / (t.usual or 1.0))))
        return tuple(told)

    def close(self) -> None:
        """Take all hooks off."""
        for one in self._of_modules:
            one.disarm()

    def _usual(self, name: str, place: str) -> float | None:
        known = [seen[place] for seen in self._before.get(name, ()) if math.isfinite(seen.get(place, math.nan))]
        return statistics.median(known) if len(known) >= LEAST_KNOWN else None

    def _safely(self, witness: Witness, act: Callable[[], object]) -> None:
        """Let a witness do something; where it fails it is dismissed, and why is kept to be told."""
        try:
            act()
        except Exception as error:
            self._witnesses.remove(witness)
            if isinstance(witness, ModuleWitness):
                witness.disarm()
                self._of_modules.remove(witness)
            self._last.pop(witness.name, None)
            why = str(error) if isinstance(error, LookupError) else repr(error)
            self.complaints.append((witness.name, f"{type(witness).__name__} is silent from now on: {why}"))


def _rank(value: float) -> float:
    """Return what sorts a NaN above all numbers."""
    return math.inf if math.isnan(value) else value
