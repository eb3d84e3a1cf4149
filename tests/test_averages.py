"""Averages of the weights that others keep go back with the weights."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch import callbacks as ready_made
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from lightning_gradguard import GradGuard, Guard
from lightning_gradguard.detectors import Detector
from lightning_gradguard.records import Verdict
from lightning_gradguard.remedies import Rollback, Skip
from lightning_gradguard.snapshots import SnapshotStore
from tests.builders import Net, loader, mlp, regression, same, through_a_file, trainer

ALARM = 145


class Accuses(Detector):
    """Accuse the optimizer at one step."""

    name = "accuses"

    def judge(self, statistics: Any, baseline: Any) -> Verdict | None:
        return Verdict("state", self.name, 1.0, 1.0, "for a test") if statistics.step == ALARM else None


class Loop:
    """A loop that keeps an average of the weights, until a rollback."""

    def __init__(self, *, known: bool = True) -> None:
        self.network = mlp(norm=True)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01)
        self.average = AveragedModel(self.network, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
        kept = SnapshotStore(in_checkpoint=True)
        self.guard = Guard(self.network, detectors=[Accuses()], remedies=[Skip(), Rollback()], snapshots=kept)
        self.guard.followers = (self.average,) if known else ()
        self.seen: list[Any] = []

    def run(self, batches: Any) -> None:
        for x, y in batches:
            self.seen.append({name: value.clone() for name, value in self.average.state_dict().items()})
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.network(x), y)
            loss.backward()
            if not self.guard.before_step(self.optimizer, loss=loss).skipped:
                self.optimizer.step()
                self.average.update_parameters(self.network)

    @property
    def parts(self) -> list[Any]:
        return [self.network, self.optimizer, self.average, self.guard]


@pytest.mark.parametrize("known", [True, False])
def test_an_average_that_the_guard_knows_goes_back_with_the_weights(known: bool) -> None:
    loop = Loop(known=known)
    loop.run(regression(ALARM + 1))
    snapshot = loop.guard.attach(loop.optimizer).snapshots.latest
    assert snapshot is not None and 0 < snapshot.step < ALARM
    assert all(torch.equal(p, snapshot.parameters[name]) for name, p in loop.network.named_parameters())
    where = snapshot.step if known else ALARM
    assert int(loop.average.n_averaged) == where and same(dict(loop.average.state_dict()), loop.seen[where])


def test_only_the_first_of_several_optimizers_takes_averages_back() -> None:
    network = mlp()
    guard = Guard(network)
    guard.followers = (AveragedModel(network),)
    tracks = [guard.attach(torch.optim.SGD(network[i].parameters(), lr=0.01)) for i in (0, 2)]
    assert [any(name.startswith("average0.") for name in track.trained.buffers()) for track in tracks] == [True, False]


def test_a_run_that_is_resumed_takes_the_average_back_to_where_the_first_would_have() -> None:
    whole, resumed, batches = Loop(), Loop(), regression(ALARM + 1)
    whole.run(batches[: ALARM - 5])
    saved = through_a_file([part.state_dict() for part in whole.parts])
    for part, state in zip(resumed.parts, saved, strict=True):
        part.load_state_dict(state)
    for loop in (whole, resumed):
        loop.run(batches[ALARM - 5 :])
    assert 0 < int(whole.average.n_averaged) < ALARM - 5
    assert same(*(dict(loop.average.state_dict()) for loop in (whole, resumed)))


class Looks(Callback):
    """Note weights and average before some batches."""

    def __init__(self, averaging: Any) -> None:
        self.averaging = averaging
        self.seen: dict[int, list[Any]] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        both = pl_module, self.averaging._average_model.module
        self.seen[batch_idx] = [[p.detach().clone() for p in module.parameters()] for module in both]


def test_the_average_of_lightnings_callback_goes_back_too(tmp_path: Path) -> None:
    if not hasattr(ready_made, "EMAWeightAveraging"):
        pytest.skip("this lightning has no EMAWeightAveraging")
    averaging = ready_made.EMAWeightAveraging(decay=0.9)
    looks, guard = Looks(averaging), GradGuard(detectors=[Accuses()], remedies=[Skip(), Rollback()], journal=False)
    module = Net(mlp(), partial(torch.optim.SGD, lr=0.01))
    trainer(tmp_path, callbacks=[guard, averaging, looks]).fit(module, loader(regression(ALARM + 2)))
    (incident,) = guard.incidents
    back = int(incident.actions[0].outcomes[-1].detail.removeprefix("went back to step "))
    assert 0 < back < incident.step == ALARM
    (weights, average), (now, averaged) = looks.seen[back], looks.seen[ALARM + 1]
    assert same(now, weights) and not same(weights, average)
    # The skipped step's weights count once more.
    torch.testing.assert_close(averaged, [0.9 * a + 0.1 * w for a, w in zip(average, weights, strict=True)])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("kind", ["average", "target network", "frozen since it was drawn"])
def test_a_copy_inside_the_module_goes_back_with_what_it_is_of(kind: str, given: bool) -> None:
    """Nothing tells of a frozen network that it follows another one, but that it was equal at first."""
    module = nn.Module()
    module.network = mlp()
    average = AveragedModel(module.network, avg_fn=get_ema_avg_fn(0.9))
    module.copy = average if kind == "average" else deepcopy(module.network).requires_grad_(False)
    if kind == "frozen since it was drawn":
        torch.nn.utils.vector_to_parameters(
            torch.randn(sum(map(torch.numel, module.copy.parameters()))), module.copy.parameters()
        )
    optimizer = torch.optim.SGD((module if given else module.network).parameters(), lr=0.01)
    guard, seen = Guard(module, detectors=[Accuses()], remedies=[Skip(), Rollback()]), []
    for x, y in regression(ALARM + 1):
        seen.append([p.detach().clone() for p in module.copy.parameters()])
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module.network(x), y)
        loss.backward()
        if not guard.before_step(optimizer, loss=loss).skipped:
            optimizer.step()
            with torch.no_grad():
                for mine, other in zip(module.copy.parameters(), module.network.parameters(), strict=True):
                    mine.lerp_(other, 0.1)
    snapshot = guard.attach(optimizer).snapshots.latest
    assert snapshot is not None and 0 < snapshot.step < ALARM
    follows = given or kind != "frozen since it was drawn"
    assert same(list(module.copy.parameters()), seen[snapshot.step if follows else ALARM])
