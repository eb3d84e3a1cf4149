"""A long incident costs few lines."""

from __future__ import annotations

import dataclasses

from lightning_gradguard.diagnostics.milestones import is_milestone
from lightning_gradguard.records import Incident

OPEN = Incident(1, 0, 4, "sudden")


def test_a_million_alarms_cost_a_few_dozen_lines() -> None:
    told = [n for n in range(1, 5000) if is_milestone(dataclasses.replace(OPEN, alarms=n), "acted")]
    assert told == [*range(1, 11), 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]


def test_beginning_and_end_are_always_told() -> None:
    assert all(is_milestone(dataclasses.replace(OPEN, alarms=11), event) for event in ("opened", "closed"))
