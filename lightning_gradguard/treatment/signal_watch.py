"""What was seen of the signal on its way through the network, and when its layers are to be measured again."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightning_gradguard.attribution.signal import ALIKE, Signal
from lightning_gradguard.records import Verdict, to_json, verdict_from_json

LIFE = 40
"""Accepted steps after which a run that does not move is asked for the first time whether its output depends on its
input; then after twice as many each time."""


class SignalWatch:
    """Remember what becomes of the signal.

    Attributes:
        growth: Growth of the signal from input to output at the first step, where its layers were measured.
        varied: How much output and answers varied over the batch at the first step, where that was measured.
        dead: Whether the output was found not to depend on the input.
        seen: What became of the signal in this batch of a fresh network, where it was measured.
        looking: The alarm for which the layers are measured in the batch at hand, before anything is treated.
        looked: Whether the layers were measured in the last batch, for an alarm.
    """

    def __init__(self) -> None:
        self.growth: float | None = None
        self.varied: tuple[float, float] | None = None
        self.dead = False
        self.seen: Signal | None = None
        self.looking: Verdict | None = None
        self.looked = False
        # Accepted steps after which to look whether the output still depends on the input.
        self._next_look = LIFE

    def begin(self, first: Signal) -> None:
        """Note what an untrained network makes of the signal."""
        self.growth = first.growth
        if first.variation is not None and first.answers is not None:
            self.varied = first.variation, first.answers

    def collapsed(self, now: Signal) -> bool:
        """Return whether output and answers vary a hundredth as much as those of the untrained network did."""
        if self.varied is None or now.variation is None or now.answers is None:
            return False
        return now.variation < ALIKE * self.varied[0] and now.answers < ALIKE * self.varied[1]

    def time_to_look(self, accepted: int) -> bool:
        """Return whether to look, after so many accepted steps, if the output still depends on the input."""
        if accepted < self._next_look:
            return False
        self._next_look *= 2
        return True

    def look_soon(self, accepted: int) -> None:
        """Look anew some steps from now: a treatment has ended."""
        self._next_look = accepted + LIFE

    def look_for(self, verdict: Verdict | None) -> None:
        """Note whether the layers are measured in the next batch for an alarm, or else that nothing is looked for."""
        self.looked = verdict is not None
        self.looking = self.looking if verdict is None else verdict

    def alarm(self) -> Verdict | None:
        """Return the alarm that had the layers measured in this batch, once."""
        verdict, self.looking = self.looking, None
        return verdict

    def go_back(self, *, look: bool) -> None:
        """Forget what was measured of weights that a rollback has replaced.

        What was measured of the first weights holds where the layers are looked at there (``look``).
        """
        self.growth, self.dead = self.growth if look else None, False

    def redraw(self) -> None:
        """Forget how the signal grew in weights that have been drawn anew."""
        self.growth = None

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen, in the same form where nothing was."""
        signals = [] if self.seen is None else [self.seen]
        return {
            "growth": [self.growth] if self.growth is not None else [],
            "varied": list(self.varied or ()),
            "signal": [v for s in signals for v in (s.source, s.growth, s.variation) if v is not None],
            "looking": [dataclasses.asdict(self.looking)] if self.looking is not None else [],
            "looked": self.looked,
            "dead": self.dead,
        }

    @property
    def next_look(self) -> int:
        """Accepted steps after which to look whether the output still depends on the input."""
        return self._next_look

    def load_state_dict(self, state: dict[str, Any], next_look: int) -> None:
        """Take back what :meth:`state_dict` returned, and :attr:`next_look`."""
        self.growth = next(map(float, state["growth"]), None)
        self.varied = (float(state["varied"][0]), float(state["varied"][1])) if state["varied"] else None
        source, growth, variation, *_ = [*map(float, state["signal"]), None, None, None]
        self.seen = Signal(source, growth, variation) if source is not None and growth is not None else None
        self.looking = next((verdict_from_json(to_json(verdict)) for verdict in state["looking"]), None)
        self.looked, self.dead, self._next_look = bool(state["looked"]), bool(state["dead"]), int(next_look)
