"""A run whose teacher, average or buffer turns NaN: named, put back at once, and nothing else is treated."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from lightning_gradguard import Guard
from lightning_gradguard.records import StepReport
from lightning_gradguard.snapshots import SnapshotStore
from tests.builders import mlp, regression, same

SPOILT = 60


class Taught(nn.Module):
    """A network whose loss hears a part that no optimizer trains."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = mlp()
        self.teacher: nn.Module = copy.deepcopy(self.net)
        if kind == "averaged":
            self.teacher = AveragedModel(self.net, avg_fn=get_ema_avg_fn(0.9))
        self.teacher.requires_grad_(kind != "frozen")
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.moves = kind in ("average", "averaged")

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.teacher(x)
        out = self.net(x)
        return nn.functional.mse_loss(out * self.scale.mean(), y) + 0.1 * nn.functional.mse_loss(out, target)

    def follow(self) -> None:
        if isinstance(self.teacher, AveragedModel):
            self.teacher.update_parameters(self.net)
        elif self.moves:
            for mine, theirs in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                mine.data.lerp_(theirs.data, 0.1)


class Loop:
    """Train it."""

    def __init__(self, kind: str = "frozen", **options: Any) -> None:
        torch.manual_seed(0)
        self.module = Taught(kind)
        self.optimizer = torch.optim.Adam(self.module.net.parameters(), lr=1e-3)
        self.notices: list[str] = []
        self.guard = Guard(self.module, **options) if options.pop("guarded", True) else None
        self.batches = iter(regression(400))

    def step(self) -> StepReport | None:
        x, y = next(self.batches)
        self.optimizer.zero_grad()
        loss = self.module.loss(x, y)
        loss.backward()
        report = None if self.guard is None else self.guard.before_step(self.optimizer, loss=loss, batch=(x, y))
        self.optimizer.step()
        if self.guard is not None:
            self.guard.after_step()
        self.module.follow()
        return report

    def run(self, steps: int) -> list[StepReport]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return [report for _ in range(steps) if (report := self.step()) is not None]


def teacher(module: Taught) -> Tensor:
    return next(p for name, p in module.teacher.named_parameters() if name.endswith("0.weight"))


def scale(module: Taught) -> Tensor:
    return module.scale


@pytest.mark.parametrize("where", [teacher, scale])
@pytest.mark.parametrize("kind", ["frozen", "trainable", "average", "averaged"])
def test_it_is_named_and_put_back_at_once(kind: str, where: Callable[[Taught], Tensor]) -> None:
    loop = Loop(kind)
    loop.run(SPOILT)
    before = where(loop.module).detach().clone()
    where(loop.module).data[1] = torch.nan
    [report] = loop.run(1)
    assert report.skipped
    assert report.decision is not None
    assert (report.decision.remedies, report.decision.cause) == (("skip",), "layer")
    assert "put back" in report.outcomes[0].detail
    after = where(loop.module).detach()
    assert after.isfinite().all()
    assert torch.allclose(after, before, atol=0.1)
    assert not any(one.skipped for one in loop.run(30))
    assert loop.guard is not None
    [incident] = loop.guard.incidents
    assert incident.culprit == ("" if where is scale else incident.culprit)
    assert where is scale or str(incident.culprit).startswith("teacher")
    assert incident.remedies == ("skip",)
    assert incident.trials == ()
    assert incident.blame[0].broken
    assert incident.blame[0].weight_ratio is None
    assert "put back" in str(incident)
    assert "only skipped" not in str(incident)


def test_the_run_goes_on_as_if_that_batch_had_not_been() -> None:
    spoilt, well = Loop(), Loop()
    for loop in (spoilt, well):
        loop.run(SPOILT)
    teacher(spoilt.module).data.fill_(torch.nan)
    spoilt.run(1)
    next(well.batches)
    for loop in (spoilt, well):
        loop.run(20)
    assert same(spoilt.module.state_dict(), well.module.state_dict())


def test_a_healthy_run_is_not_changed() -> None:
    for kind in ("frozen", "averaged"):
        guarded, bare = Loop(kind), Loop(kind, guarded=False)
        guarded.run(120)
        bare.run(120)
        assert same(guarded.module.state_dict(), bare.module.state_dict())


def test_what_nobody_uses_is_put_back_with_the_next_snapshot() -> None:
    loop = Loop("averaged")
    loop.module.loss = lambda x, y: nn.functional.mse_loss(loop.module.net(x), y)  # type: ignore[method-assign]
    loop.run(SPOILT)
    teacher(loop.module).data.fill_(torch.nan)
    assert not any(report.skipped for report in loop.run(30))
    assert teacher(loop.module).isfinite().all()
    assert loop.guard is not None
    assert loop.guard.incidents == ()


def test_without_room_for_a_copy_it_is_named_and_nothing_is_tried() -> None:
    taken = sum(p.nbytes for p in mlp().parameters())
    # Three snapshots of weights, the teacher that began as their copy and Adam's two moments, and not a byte more.
    loop = Loop(snapshots=SnapshotStore(max_bytes=12 * taken))
    loop.run(SPOILT)
    assert loop.guard is not None
    [track] = loop.guard._tracks
    assert track.snapshots.latest is not None
    assert not loop.guard._run.bystanders.kept
    teacher(loop.module).data.fill_(torch.nan)
    reports = loop.run(20)
    assert all(report.skipped for report in reports)
    [incident] = loop.guard.incidents
    assert incident.culprit == "teacher.0"
    assert incident.remedies == ("skip",)


def test_who_only_watches_changes_nothing() -> None:
    loop = Loop(mode="watch")
    loop.run(SPOILT)
    teacher(loop.module).data.fill_(torch.nan)
    loop.run(3)
    assert teacher(loop.module).isnan().all()


def test_weights_that_spoil_a_buffer_again_and_again_are_treated() -> None:
    loop = Loop("trainable")
    loop.run(SPOILT)
    teacher(loop.module).data.fill_(torch.nan)
    reports = loop.run(1)
    for _ in range(20):
        teacher(loop.module).data.fill_(torch.nan)
        reports += loop.run(1)
    assert reports[0].decision is not None
    assert reports[0].decision.cause == "layer"
    assert any("rollback" in report.decision.remedies for report in reports if report.decision is not None)


def test_a_batch_that_is_corrupt_is_to_blame_for_what_it_spoils() -> None:
    loop = Loop()
    loop.run(SPOILT)
    assert loop.guard is not None
    x, y = next(loop.batches)
    x[0] = torch.nan
    loop.optimizer.zero_grad()
    loss = loop.module.loss(x, y)
    loss.backward()
    loop.module.scale.data.fill_(torch.nan)
    report = loop.guard.before_step(loop.optimizer, loss=loss, batch=(x, y))
    assert report.decision is not None
    assert report.decision.cause == "batch"
    assert loop.module.scale.tolist() == [1.0] * 3
