"""What the policy has to know of a run besides the alarm."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from lightning_gradguard.attribution.signal import Signal
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.policy.trial import Trial


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of a run besides the alarm.

    Args:
        baseline: What is known of healthy steps.
        can: What can be done: acts, and the names of remedies that do none of them.
        start: Whether the run is fresh from its initialisation, has learned nothing, and can go back to its first step.
        looked: Whether the layers were measured in this very batch.
        trial: The trial under way, if any.
        signal: What becomes of the signal at the first step, where that was measured.
        odd: What is odd about the numbers of the optimizer, in words; asked where something can be done about it.
        searching: Whether the rate is not known to be good: far above the usual one, or between what has worked and
            what has failed, on its way back to the schedule.
        passed: Whether any step of the run has gone without alarm.
        stale: Whether the gradients hold those of updates before, which nobody clears.
        displaced: Whether the weights have moved farther than their updates can have carried them.
        foretold: Whether the size of the optimizer's updates is known, or bounded.
        aside: What is said where nothing but what no optimizer trains is at fault; else empty.
    """

    baseline: Baseline
    can: Collection[str]
    start: bool = False
    looked: bool = True
    trial: Trial | None = None
    signal: Signal | None = None
    odd: str | None = None
    searching: bool = False
    passed: bool = False
    stale: bool = False
    displaced: bool = False
    foretold: bool = True
    aside: str = ""
