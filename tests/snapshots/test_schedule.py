"""When snapshots are due."""

from __future__ import annotations

from lightning_gradguard.snapshots.schedule import Schedule


def test_gaps_double_until_they_are_the_interval() -> None:
    schedule, due = Schedule(100), []
    for step in range(500):
        if schedule.has_come(step, soon=False):
            due.append(step)
            schedule.took(step)
    assert due == [0, 10, 20, 40, 80, 160, 260, 360, 460]


def test_in_a_trial_the_next_one_comes_soon() -> None:
    schedule = Schedule(100)
    schedule.took(200)
    assert next(step for step in range(201, 230) if schedule.has_come(step, soon=True)) == 210
    assert not schedule.overdue(599) and schedule.overdue(600)
