"""Steps that are left to the device: judged there at once, learned of one step later, and never waited for.

There need not be a GPU: the same code runs on the CPU once that counts as a device that works on by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradguard import Guard, Policy, SnapshotStore, deferred_step
from lightning_gradguard.arriving import Arriving
from lightning_gradguard.defaults import default_detectors
from lightning_gradguard.detectors import Detector, Spike
from lightning_gradguard.diagnostics import Sink
from lightning_gradguard.records import Verdict, Window
from lightning_gradguard.remedies import Clip
from lightning_gradguard.witnesses import RouterLoad
from tests.builders import mlp, regression, same, spoil, through_a_file

CALM = 50
"""Steps after which nothing keeps the host from leaving steps to the device."""
PATHS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "for-loop": {"foreach": False},
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, lr=1e-2),
    "sgd": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=1e-3),
}
ALL = [(family, path) for family in OPTIMIZERS for path in PATHS]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU count as a device that works on by itself."""
    monkeypatch.setattr(deferred_step, "DEVICES", frozenset({"cpu", "cuda"}))


class Loop:
    """A plain loop that can say how many of its steps were left to the device."""

    def __init__(
        self, family: str = "sgd", path: str = "foreach", *, network: nn.Module | None = None, **options: Any
    ) -> None:
        self.network = network or mlp(norm=True)
        self.optimizer = OPTIMIZERS[family](self.network.parameters(), **PATHS[path])
        self.guard: Guard | None = Guard(self.network, **options) if options.pop("guarded", True) else None
        self.left = 0
        self.done = 0

    @property
    def track(self) -> Any:
        assert self.guard is not None
        return self.guard.attach(self.optimizer)

    def step(self, batch: Any, by: float = 1.0) -> Any:
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.network(batch[0]), batch[1]) * by
        loss.backward()
        report = None
        if self.guard is not None:
            report = self.guard.before_step(self.optimizer, loss=loss, batch=batch, batch_index=self.done)
            self.left += self.track.gate.waiting
        self.optimizer.step()
        self.done += 1
        return report

    def run(self, batches: Any, by: float = 1.0) -> list[Any]:
        return [self.step(batch, by) for batch in batches]

    def state(self) -> Any:
        return self.network.state_dict(), self.optimizer.state_dict()


def batches(count: int = CALM) -> Any:
    return regression(count)


def bad(batch: Any, value: float = math.nan) -> Any:
    (spoiled,) = spoil([batch], 0, value=value)
    return spoiled


class Bounded(nn.Sequential):
    """A network whose gradients stay calm whatever becomes of its first weights."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        super().__init__(nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))


@pytest.mark.parametrize("count", [1, 3])
def test_a_damage_that_only_the_loss_shows_is_looked_for_in_the_next_step(count: int) -> None:
    loop, healthy = Loop("adamw", network=Bounded()), batches(150)
    loop.run(healthy[:120])
    weight = loop.network[0].weight  # type: ignore[index]
    with torch.no_grad():
        weight.copy_(1e3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    before = loop.left
    loop.run(healthy[120 : 120 + count])
    assert loop.left == before + 1, "the first step shows the loss, the second is judged by the host"
    assert loop.guard is not None and bool(loop.guard.incidents) is (count > 1)
    if count > 1:
        (incident,) = loop.guard.incidents
        assert (incident.step, incident.culprit, incident.remedies) == (121, "0", ("skip", "reinitialize"))


# -- a healthy run


def single() -> nn.Module:
    torch.manual_seed(5)
    return nn.Linear(8, 1, bias=False)


@pytest.mark.parametrize(("family", "path"), ALL)
@pytest.mark.parametrize("make", [partial(mlp, norm=True), single], ids=["many tensors", "single tensor"])
def test_a_healthy_run_is_bit_identical(make: Callable[[], nn.Module], family: str, path: str) -> None:
    guarded, plain = Loop(family, path, network=make()), Loop(family, path, network=make(), guarded=False)
    guarded.run(batches(100))
    plain.run(batches(100))
    assert guarded.left > 50
    assert same(guarded.state(), plain.state())
    assert guarded.guard is not None and guarded.guard.incidents == ()


def test_what_is_learned_is_what_the_host_would_have_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Loop()
    there.run(batches(120))
    monkeypatch.setattr(deferred_step, "DEVICES", frozenset())
    here = Loop()
    here.run(batches(120))
    assert there.left > 50 and here.left == 0
    assert there.guard is not None and here.guard is not None
    assert same(there.guard.state_dict(), here.guard.state_dict())


# -- a bad step, in the middle of a calm run


def before_and_after(family: str, path: str, spoiled: Any, by: float = 1.0) -> tuple[Loop, Any, Any]:
    loop = Loop(family, path)
    good = batches(CALM + 10)
    loop.run(good[:CALM])
    before = through_a_file(loop.state())
    loop.step(spoiled(good[CALM]), by)
    assert loop.track.gate.waiting, "the step was left to the device"
    after = through_a_file(loop.state())
    loop.run(good[CALM + 1 :])
    return loop, before, after


@pytest.mark.parametrize("family", OPTIMIZERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_fused_optimizer_makes_no_update_of_a_bad_step(family: str, value: float) -> None:
    loop, before, after = before_and_after(family, "fused", lambda batch: bad(batch, value))
    assert same(before, after)
    assert loop.guard is not None
    (incident,) = loop.guard.incidents
    assert (incident.form, incident.step, incident.batch, incident.culprit) == ("non-finite", CALM, CALM, "batch")
    assert incident.remedies == ("skip",)


@pytest.mark.parametrize(("family", "path"), [(f, p) for f, p in ALL if p != "fused"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_on_other_optimizers_a_bad_step_has_no_gradient(family: str, path: str, value: float) -> None:
    loop, _, after = before_and_after(family, path, lambda batch: bad(batch, value))
    twin = Loop(family, path, guarded=False)
    good = batches(CALM + 1)
    twin.run(good[:CALM])
    twin.network.eval()  # the running statistics of the bad batch do not count
    twin.optimizer.zero_grad()
    (twin.network(good[CALM][0]).sum() * 0.0).backward()
    twin.optimizer.step()
    assert same(after[0], twin.network.state_dict())
    assert loop.guard is not None and [i.form for i in loop.guard.incidents] == ["non-finite"]


@pytest.mark.parametrize("path", PATHS)
def test_running_statistics_forget_the_batch_of_a_skipped_step(path: str) -> None:
    _, before, after = before_and_after("sgd", path, bad)
    running = [name for name in before[0] if "running" in name or "tracked" in name]
    assert running
    assert all(torch.equal(before[0][name], after[0][name]) for name in running)


def test_a_moderate_spike_is_clipped_by_a_fused_optimizer_as_the_host_would(monkeypatch: pytest.MonkeyPatch) -> None:
    there, _, after = before_and_after("sgd", "fused", lambda batch: batch, by=200.0)
    assert there.guard is not None
    (incident,) = there.guard.incidents
    outcome = incident.actions[0].outcomes[0]
    assert outcome.remedy == "clip" and 0.0 < outcome.coefficient < 1.0
    monkeypatch.setattr(deferred_step, "DEVICES", frozenset())
    here = Loop("sgd", "fused")
    good = batches(CALM + 1)
    here.run(good[:CALM])
    here.step(good[CALM], 200.0)
    for name, value in here.network.state_dict().items():
        torch.testing.assert_close(after[0][name], value, rtol=1e-5, atol=1e-7)


def test_what_a_fused_optimizer_was_told_holds_for_one_step() -> None:
    loop, _, _ = before_and_after("sgd", "fused", bad)
    assert not {"grad_scale", "found_inf"} & set(vars(loop.optimizer))


def test_a_first_step_of_momentum_is_not_left_uninitialised() -> None:
    loop = Loop("sgd", "fused")
    loop.run(batches())
    loop.optimizer.state.clear()
    loop.step(bad(batches(1)[0]))
    loop.run(batches(3))
    assert all(p.isfinite().all() for p in loop.network.parameters())


def test_after_a_bad_step_the_host_judges_at_once_until_the_incident_is_over() -> None:
    loop = Loop()
    loop.run(batches())
    loop.step(bad(batches(1)[0]))
    left = loop.left
    loop.run(batches(15))
    assert loop.left == left
    loop.run(batches(40))
    assert loop.left > left
    assert loop.guard is not None and loop.guard.incidents[0].closed is not None


def test_a_damaged_layer_is_repaired_one_step_later() -> None:
    loop = Loop(network=mlp())
    loop.run(batches(60))
    with torch.no_grad():
        loop.network.get_parameter("0.weight").mul_(1e6)
    loop.run(batches(10))
    assert loop.guard is not None
    (incident,) = loop.guard.incidents
    assert incident.step == 60 and incident.actions[0].outcomes[0].remedy == "skip"
    assert incident.actions[1].step == 61 and incident.culprit == "0"
    assert {"reinitialize", "rollback"} & set(incident.remedies)
    assert loop.network.get_parameter("0.weight").abs().max() < 100.0


def test_a_slow_trouble_is_asked_of_the_step_in_hand() -> None:
    class Slow(Detector):
        name = "slow"
        deferrable = True

        def judge(self, statistics: Any, baseline: Any) -> Any:
            if statistics.step < CALM + 5:
                return None
            return Verdict("divergence", "slow", 1.0, 1.0, "for a test")

    loop = Loop(detectors=[*default_detectors(), Slow()])
    loop.run(batches(CALM + 10))
    assert loop.guard is not None
    incident = loop.guard.incidents[0]
    assert incident.step == CALM + 6
    assert "rollback" in incident.actions[0].decision.remedies


# -- where the host must judge


class Own(Detector):
    """Says nothing of what can wait."""

    name = "own"

    def judge(self, statistics: Any, baseline: Any) -> None:
        return None


def test_after_an_update_that_may_have_overrun_the_weights_the_host_measures_the_next() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.05)
    guard, data, left, large = Guard(network), torch.Generator().manual_seed(1), [], []
    for _ in range(160):
        x = torch.randn(32, 8, generator=data)
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        report = guard.before_step(optimizer, loss=loss)
        left.append(guard.attach(optimizer).gate.waiting)
        large.append((report.statistics.update_ratio or 0.0) > 0.1)
        optimizer.step()
        schedule.step()
    first = guard.incidents[0]
    last = max(step for step in range(first.step) if left[step])
    assert any(large[last + 1 : first.step]), "its size was known before the losses convicted it"
    assert first.actions[0].decision.cause == "learning rate" and first.helped
    assert float(loss.detach()) < 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"detectors": [*default_detectors(), Own()]},
        {"detectors": [Spike()]},
        {"remedies": [Clip()]},
        {"policy": Policy(patience=1)},
    ],
    ids=["own detector", "nobody sees a NaN", "nobody skips", "no patience"],
)
def test_what_cannot_wait_is_judged_by_the_host(options: Any) -> None:
    loop = Loop(**options)
    loop.run(batches(80))
    assert loop.left == 0


def test_steps_with_a_snapshot_are_judged_by_the_host() -> None:
    loop = Loop(snapshots=SnapshotStore(every=20))
    loop.run(batches(100))
    snapshot = loop.track.snapshots.latest
    assert snapshot is not None and snapshot.step >= 80
    assert 40 < loop.left < 68


def test_sparse_and_wide_gradients_are_judged_by_the_host() -> None:
    network = mlp().double()
    loop = Loop(network=network)
    loop.run([(x.double(), y.double()) for x, y in batches(60)])
    assert loop.left == 0


# -- watching, and the record


def test_who_only_watches_changes_nothing_and_records_the_bad_step() -> None:
    good = batches(CALM + 5)
    watched, plain = Loop(mode="watch"), Loop(guarded=False)
    for i, batch in enumerate(good):
        for loop in (watched, plain):
            loop.step(batch, 1e4 if i == CALM else 1.0)
    assert watched.left > 10 and same(watched.state(), plain.state())
    assert watched.guard is not None
    (incident, *_) = watched.guard.incidents
    assert incident.step == CALM and incident.actions[0].outcomes == ()


def test_the_last_step_is_not_lost() -> None:
    loop = Loop()
    loop.run(batches())
    loop.step(bad(batches(1)[0]))
    assert loop.guard is not None and loop.guard.incidents == ()
    loop.guard.flush()
    assert [i.step for i in loop.guard.incidents] == [CALM]


def test_a_resumed_run_goes_on_as_if_it_had_not_been_interrupted() -> None:
    good = batches(CALM + 40)
    good[CALM] = bad(good[CALM])
    for cut in (CALM, CALM + 1, CALM + 2, CALM + 35):
        straight, first = Loop(), Loop()
        straight.run(good)
        first.run(good[:cut])
        assert first.guard is not None and straight.guard is not None
        saved = through_a_file({"guard": first.guard.state_dict(), "loop": first.state()})
        second = Loop()
        second.done = cut
        second.network.load_state_dict(saved["loop"][0])
        second.optimizer.load_state_dict(saved["loop"][1])
        assert second.guard is not None
        second.guard.load_state_dict(saved["guard"])
        second.guard.attach(second.optimizer)  # before the first batch is seen
        second.run(good[cut:])
        assert same(straight.state(), second.state())
        assert same(straight.guard.state_dict(), second.guard.state_dict())


# -- nobody waits


READS = {Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__bool__, Tensor.__float__, Tensor.__int__}
SCALARS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")


class Waits(TorchDispatchMode):
    """Count what would wait for a device.

    Numbers that are read from a tensor, and answers whose size depends on one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().partition(".")[0] in SCALARS
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Count what is read from a tensor that has not been brought to the host on purpose."""

    def __init__(self, track: Any) -> None:
        super().__init__()
        self.track, self.count = track, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        seen = (one for w in self.track.witnesses._witnesses for one in vars(w).values() if isinstance(one, Arriving))
        brought = (self.track.gate._pinned, *self.track.accumulator._weights.arriving, *(one.values for one in seen))
        self.count += func in READS and not any(args[0] is known for known in brought)
        return func(*args, **(kwargs or {}))


def waits(loop: Loop, batch: Any) -> int:
    """Return how often the guard alone would wait in one step."""
    loop.optimizer.zero_grad()
    loss = nn.functional.mse_loss(loop.network(batch[0]), batch[1])
    loss.backward()
    assert loop.guard is not None
    with Waits() as dispatched, Reads(loop.track) as read:
        loop.guard.before_step(loop.optimizer, loss=loss, batch=batch)
    loop.optimizer.step()
    with Waits() as after:
        loop.guard.after_step()
    return dispatched.count + read.count + after.count


@pytest.mark.parametrize(("family", "path"), ALL)
def test_the_healthy_path_waits_for_nothing(family: str, path: str) -> None:
    loop = Loop(family, path)
    loop.run(batches())
    counted = []
    for batch in batches(20):
        if loop.track.snapshots.due(loop.track.steps + 1):
            loop.step(batch)  # The host copies the state, for which it waits.
        else:
            counted.append(waits(loop, batch))
    assert len(counted) >= 19 and set(counted) == {0}


def test_the_count_sees_the_host_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    loop.run(batches())
    monkeypatch.setattr(deferred_step, "DEVICES", frozenset())
    assert waits(loop, batches(1)[0]) > 0


# -- on a real one


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize(("family", "path"), ALL)
def test_cuda_runs_under_the_strictest_watch_for_synchronisation(family: str, path: str) -> None:
    network = mlp(norm=True).cuda()
    loop = Loop(family, path, network=network)
    good = [(x.cuda(), y.cuda()) for x, y in batches(100)]
    loop.run(good[:CALM])
    for batch in good[CALM:]:
        loop.optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(batch[0]), batch[1])
        loss.backward()
        assert loop.guard is not None
        track = loop.track
        calm = not track.snapshots.due(track.steps + 1)
        torch.cuda.set_sync_debug_mode("error" if calm else "default")
        try:
            loop.guard.before_step(loop.optimizer, loss=loss, batch=batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        loop.optimizer.step()
    assert loop.guard is not None and loop.guard.incidents == ()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize(("family", "path"), ALL)
def test_cuda_runs_are_bit_identical_and_skip_a_nan(family: str, path: str) -> None:
    good = [(x.cuda(), y.cuda()) for x, y in batches(100)]
    guarded = Loop(family, path, network=mlp(norm=True).cuda())
    plain = Loop(family, path, network=mlp(norm=True).cuda(), guarded=False)
    guarded.run(good)
    plain.run(good)
    assert guarded.left > 50 and same(guarded.state(), plain.state())
    guarded.step(bad(good[0]))
    guarded.run(good[:2])
    assert all(p.isfinite().all() for p in guarded.network.parameters())
    assert guarded.guard is not None and len(guarded.guard.incidents) == 1


@pytest.mark.parametrize("family", OPTIMIZERS)
def test_witnesses_look_once_a_window_and_the_weights_stay_as_they_are(family: str) -> None:
    states = []
    for witnesses in ([], [RouterLoad(modules=["0"])]):
        windows: list[Window] = []

        class Keeping(Sink):
            def window(self, window: Window, windows: list[Window] = windows) -> None:
                windows.append(window)

        loop = Loop(family, "foreach", witnesses=witnesses, sinks=[Keeping()], log_every=10)
        assert loop.guard is not None
        for batch in batches(200):
            loop.guard.before_forward(batch)
            loop.step(batch)
        states.append(loop.state())
        assert loop.left > 100
        seen = [{told.witness for told in window.witnessed} for window in windows[-10:]]
        expected = {"update_ratio"} | ({"second_moment"} if family == "adamw" else set())
        assert seen == [expected | ({"router_load"} if witnesses else set())] * 10
    assert same(*states)
