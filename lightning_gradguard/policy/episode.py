"""The episode under way: its alarms are counted, and weighed against what bad data alone would make of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import THIN_HISTORY
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Decision, GradientStatistics, Suspect

CURED = 2
"""Calm steps after which an alarm counts as cured: the next one is of another batch's making."""
BY_CHANCE = 5e-5
"""Probability of a row of NaN that is taken for no chance: one in twenty runs of a thousand steps sees such a one."""

_KEYS = {
    "strikes": "strikes",
    "row": "_row",
    "ordinary": "_ordinary",
    "harmless": "_harmless",
    "convicted": "_convicted",
    "past": "_past",
    "skipped": "_held",
    "nans": "_nans",
    "calm": "_calm",
    "quiet": "_quiet",
    "innocent": "_innocent",
    "untested": "_untested",
}
"""The attributes, with the keys that checkpoints have for them."""


class Episode:
    """Count alarms and calm steps.

    Attributes:
        past: Steps at which past episodes ended.
        skipped: Steps skipped in a row.
        nans: Alarms of the run whose gradients were not finite.
        calm: Steps of the run without alarm.
        strikes: Alarms of the episode.
        row: Alarms in a row.
        ordinary: Ordinary steps of the episode.
        quiet: Calm steps in a row.
        harmless: Alarms of the row whose loss was not above its history.
        convicted: Alarms of the episode that going back has ended.
        untested: Times that weights just gone back to exploded at once.
        innocent: Whether batches alone were at fault so far.
    """

    def __init__(self) -> None:
        self.past: list[int] = []
        self.skipped = self.nans = self.calm = 0
        self.open()

    def open(self) -> None:
        """Begin to count the alarms of another episode."""
        self.strikes = self.row = self.ordinary = self.quiet = self.harmless = 0
        self.convicted = self.untested = 0
        self.innocent = True

    def close(self, step: int, memory: int) -> None:
        """End the episode, and remember it for ``memory`` steps unless batches alone were at fault."""
        if not self.innocent:
            self.past = [*self.recent(step, memory), step]
        self.open()

    def recent(self, step: int, memory: int) -> list[int]:
        """Return the steps at which past episodes ended, as far as they are remembered."""
        return [end for end in self.past if step - end <= memory]

    def count(self, statistics: GradientStatistics, suspects: Sequence[Suspect], known: Baseline) -> None:
        """Count an alarm."""
        self.strikes += 1
        # Weights whose gradients are finite once are not broken; large gradients may pause for a step.
        cured = CURED if statistics.finite else 1
        if self.row == 0 or self.quiet >= cured:
            self.row = self.harmless = 0
        self.row += 1
        self.harmless += known.losses.elevated(statistics.loss) is False
        self.quiet = 0
        self.nans += not statistics.finite
        self.innocent = self.innocent and any(suspect.is_batch for suspect in suspects)

    def note(self, decision: Decision) -> None:
        """Note what is done about the alarm."""
        skip, back = Act.SKIP in decision.remedies, Act.ROLLBACK in decision.remedies
        if back:
            # The weights brought these about, and no data.
            self.convicted += self.row
            self.nans = max(0, self.nans - self.row)
        self.skipped = self.skipped + 1 if skip else 0
        # Weights that were gone back to, and that no update has touched since.
        self.untested = self.untested + back if skip and Act.INITIALIZE not in decision.remedies else 0

    def rest(self, *, ordinary: bool) -> None:
        """Count a step without alarm; an ``ordinary`` one also ends the row of alarms."""
        self.skipped = self.untested = 0
        if ordinary:
            self.row = 0
            self.ordinary += 1
        self.quiet += 1
        self.calm += 1

    def accuses_weights(self, statistics: GradientStatistics, known: Baseline, patience: int) -> bool:
        """Return whether there have been so many alarms in a row that no bad data explain them.

        Skipped steps leave the weights alone, and bad batches come in rows by chance.
        """
        patience = min(patience, 2) if known.count < THIN_HISTORY else patience
        if patience == 1:
            return self.row >= 1
        if not statistics.finite:
            # Data that hold a NaN now and then make runs of them by chance: at two batches in five, three in a row
            # are common and eight are not. Broken weights make every batch one, and can wait.
            return self.row >= max(3 * patience - 1, _row_by_chance(self.nans - self.row, self.calm))
        return self.row >= max(patience, _row_by_chance(self.strikes - self.row - self.convicted, self.ordinary))

    def state_dict(self) -> dict[str, Any]:
        """Return all counts."""
        return {
            **{key: getattr(self, name) for name, key in _KEYS.items()},
            _KEYS["past"]: list(self.past),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        for name, key in _KEYS.items():
            setattr(self, name, state[key])


def _row_by_chance(bad: int, good: int) -> int:
    """Return how many bad batches in a row the data alone may make, by their share before this row."""
    share = bad / (bad + good) if bad > 0 else 0.0
    return math.ceil(math.log(BY_CHANCE) / math.log(share)) if 0.0 < share < 1.0 else 0
