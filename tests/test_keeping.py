"""Which states are copied: not those of a run that fails to learn or has died, but those of one whose loss honestly climbs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.baseline import INSANE
from lightning_gradguard.keeping import worth_keeping
from tests.builders import calm, statistics, taught


def lane(norms: list[float], losses: list[float], **known: Any) -> Any:
    model = nn.Linear(2, 2)
    made = Guard(model, snapshots=SnapshotStore(every=50)).attach(torch.optim.SGD(model.parameters(), 0.1))
    made.snapshots.take(0, made.parameters, made.buffers, made.optimizer)
    made.baseline = taught(norms, losses)
    for name, value in known.items():
        setattr(made.baseline, name, value)
    return made


CLIMBING = [2.0 + 0.02 * step for step in range(300)]


@pytest.mark.parametrize(
    ("known", "kept"), [({}, True), ({"update_ratio": 2 * INSANE}, False), ({"setback": 10}, False)]
)
def test_a_loss_that_honestly_climbs_earns_snapshots(known: dict[str, Any], kept: bool) -> None:
    found = lane(calm(300), CLIMBING, **known)
    assert worth_keeping(found, 300, statistics(1.0, step=300, loss=CLIMBING[-1])) is kept


def test_a_young_run_that_has_not_learned_keeps_its_beginning() -> None:
    found = lane(calm(20), [2.3] * 20)
    assert not worth_keeping(found, 20, statistics(1.0, step=20, loss=2.3))


def test_a_run_that_lost_what_it_had_learned_is_waited_for_but_not_for_ever() -> None:
    found = lane(calm(300), [2.3] * 100 + [0.2] * 100 + [1.5] * 100)
    assert not worth_keeping(found, 40, statistics(1.0, step=40, loss=1.5))
    assert worth_keeping(found, 60, statistics(1.0, step=60, loss=1.5))


def test_a_collapsed_run_is_never_kept() -> None:
    found = lane(calm(200) + calm(60, level=0.05), [2.3] * 100 + [0.2] * 100 + [1.5] * 60)
    assert found.baseline.collapsed
    assert not worth_keeping(found, 10_000, statistics(0.05, step=10_000, loss=1.5))
