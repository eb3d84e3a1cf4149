"""What comes often is looked at less and less often."""

from __future__ import annotations

import itertools

from lightning_gradguard.history.interval import GAP, WIDEST, ExponentialInterval


def test_the_gap_doubles_while_the_cause_stays_up_to_the_widest() -> None:
    interval = ExponentialInterval()
    looked = [step for step in range(3000) if interval.due(step)]
    gaps = [b - a for a, b in itertools.pairwise(looked)]
    assert looked[0] == 0 and gaps[:4] == [GAP, 2 * GAP, 4 * GAP, 8 * GAP] and gaps[-1] == WIDEST


def test_after_a_pause_it_is_looked_at_once_and_often_again() -> None:
    interval = ExponentialInterval()
    for step in range(1000):
        interval.due(step)
    assert interval.due(10_000) and not interval.due(10_000 + GAP - 1) and interval.due(10_000 + GAP)
