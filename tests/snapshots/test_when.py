"""Which states are copied: not those of a run that fails to learn, but those of one whose loss climbs in health."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.policy import Trial
from lightning_gradguard.records import Incident
from lightning_gradguard.snapshots.schedule import PATIENT_INTERVALS
from lightning_gradguard.step.copying import worth_copying
from tests.builders import calm, statistics, taught


def track(norms: list[float], losses: list[float], **known: Any) -> Any:
    model = nn.Linear(2, 2)
    made = Guard(model, snapshots=SnapshotStore(every=50)).attach(torch.optim.SGD(model.parameters(), 0.1))
    made.snapshots.take(0, made.parameters, made.trained.buffers(), made.optimizer)
    made.baseline = taught(norms, losses)
    for name, value in known.items():
        setattr(made.baseline.updates, name, value)
    return made


CLIMBING = [2.0 + 0.02 * step for step in range(300)]


def worth(found: Any, step: int, loss: float, norm: float = 1.0) -> bool:
    return worth_copying(found, step, statistics(norm, step=step, loss=loss))


def test_a_loss_that_climbs_where_updates_replace_weights_earns_no_snapshots() -> None:
    climbing = track(calm(300), CLIMBING, ratio=2 * LARGE)
    climbing.snapshots.pinned = False
    assert not worth(climbing, 100, CLIMBING[-1])


@pytest.mark.parametrize("steps", [100, 300])
def test_a_loss_that_honestly_climbs_earns_snapshots(steps: int) -> None:
    """The loss of a GAN's generator, or of a value that follows its rewards."""
    assert worth(track(calm(steps), CLIMBING[:steps]), 10_000, CLIMBING[steps - 1])


def test_a_young_run_that_has_not_learned_keeps_its_beginning() -> None:
    first = calm(9, level=2.3, spread=0.02)
    assert not worth(track(calm(30), first + calm(21, level=2.3, spread=0.02)), 30, 2.3)
    assert worth(track(calm(30), first + calm(21, level=1.0, spread=0.02)), 30, 1.0)


def test_a_run_that_lost_what_it_had_learned_is_waited_for_but_not_for_ever() -> None:
    found = track(calm(300), [2.3] * 100 + calm(100, level=0.2, spread=0.05) + [1.5] * 100)
    assert not worth(found, 60, 1.5)
    assert worth(found, 200, 1.5)


def test_a_state_that_a_climbing_rate_is_losing_is_no_place_to_go_back_to() -> None:
    """Before nine losses in a row are worse than all at the best: the level has left it by what convicts a rate."""
    losses = [27.0] * 9 + calm(60, level=3.0, spread=0.1) + [11.0] * 5
    for convicted, expected in ((True, False), (False, True)):
        found = track(calm(len(losses)), losses, convicted=convicted)
        assert worth(found, 60, 5.0) is expected


def test_a_state_whose_loss_is_above_the_untrained_one_is_refused_for_three_intervals() -> None:
    """A new task may begin there; whoever died there is convicted by then."""
    found = track(calm(300), [2.3] * 100 + [0.2] * 40 + [9.0] * 160)
    due = 10
    said = [worth(found, due + step, 9.0) for step in (0, PATIENT_INTERVALS * 50 - 1, PATIENT_INTERVALS * 50)]
    assert said == [False, False, True]
    level = track(calm(300), [2.3] * 100 + [0.2] * 200)
    assert worth(level, due, 0.2)


def test_a_step_of_large_gradients_or_an_odd_loss_is_no_time_for_a_snapshot() -> None:
    found = track(calm(300), [1.0] * 300)
    assert worth(found, 100, 1.0)
    assert not worth(found, 100, 1.0, norm=4.0) and not worth(found, 100, 3.0)


def test_while_there_is_nothing_to_go_back_to_anything_is_better() -> None:
    found = track(calm(20), [2.3] * 20)
    found.snapshots = SnapshotStore()
    assert worth(found, 20, 99.0, norm=99.0)


def test_during_an_incident_only_a_treatment_that_does_well_earns_snapshots() -> None:
    found = track(calm(100), [2.3] * 50 + [0.2] * 50)
    found.incident = Incident(1, 0, 90, "divergence")
    assert not worth(found, 100, 0.2)
    found.treatment.trial = Trial("learning rate", ("rollback", "backoff"), 90)
    assert not worth(found, 100, 0.2), "it has hardly begun"
    found.treatment.trial.losses = [0.2] * 10
    assert worth(found, 100, 0.2)
    assert worth(found, 15, 0.2), "sooner than usual"
    for _ in range(20):
        found.baseline.accept(1.0, 0.3)
    assert not worth(found, 100, 0.3)
