"""The guard in a plain loop: flow, sinks, errors, memory."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradguard import Guard, GuardError, Policy, SnapshotStore, TrainingDiverged
from lightning_gradguard.defaults import default_detectors
from lightning_gradguard.detectors import Detector, Drift, Spike
from lightning_gradguard.diagnostics import Sink
from lightning_gradguard.diagnostics.wording import evidence
from lightning_gradguard.history.interval import ExponentialInterval
from lightning_gradguard.history.ranks import chance_of_lower
from lightning_gradguard.records import Incident, Verdict, Window
from lightning_gradguard.remedies import Clip, LearningRateBackoff, Remedy, RemedyContext, Skip
from tests.builders import mlp, regression, same, spoil


class Loop:
    """A plain loop around one network."""

    def __init__(self, *, norm: bool = False, **options: Any) -> None:
        self.network = mlp(norm=norm)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)
        self.guard = Guard(self.network, **options)
        self.guard.attach(self.optimizer)
        self.done = 0

    def step(self, batch: Any, by: float = 1.0, **more: Any) -> Any:
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.network(batch[0]), batch[1]) * by
        loss.backward()
        report = self.guard.before_step(self.optimizer, loss=loss, batch=batch, batch_index=self.done, **more)
        self.optimizer.step()
        self.done += 1
        return report

    def run(self, batches: Sequence[Any], by: float = 1.0) -> list[Any]:
        return [self.step(batch, by) for batch in batches]


class Records(Sink):
    """Remember what it was told."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.incidents: list[tuple[str, Incident]] = []
        self.notices: list[tuple[int, str]] = []
        self.closed = 0

    def window(self, window: Window) -> None:
        self.windows.append(window)

    def incident(self, incident: Incident, event: Any) -> None:
        self.incidents.append((event, incident))

    def notice(self, step: int, message: str) -> None:
        self.notices.append((step, message))

    def close(self) -> None:
        self.closed += 1


class FullDisk(Sink):
    """Fail at everything."""

    def window(self, window: Window) -> None:
        raise OSError("no space left")

    def incident(self, incident: Incident, event: Any) -> None:
        raise OSError("no space left")

    def close(self) -> None:
        raise OSError("already closed")


class Alarm(Detector):
    """Raise the alarm at some steps, in a given form."""

    name = "alarm"

    def __init__(self, *, at: Sequence[int] = (), form: Any = "divergence") -> None:
        self.at, self.form = set(at), form

    def judge(self, statistics: Any, baseline: Any) -> Verdict | None:
        return Verdict(self.form, self.name, 1.0, 1.0, "for a test") if statistics.step in self.at else None


# -- record


def test_an_incident_is_told_from_its_opening_to_its_end() -> None:
    sink = Records()
    loop = Loop(sinks=[sink], policy=Policy(calm=5), log_every=10)
    loop.run(spoil(regression(60), 30))
    assert [event for event, _ in sink.incidents] == ["opened", "closed"]
    last = sink.incidents[-1][1]
    assert (last.step, last.batch, last.culprit, last.closed) == (30, 30, "batch", 35)
    assert last.helped is None and last.trials == (), "first aid is no treatment whose use could be measured"
    assert loop.guard.incidents == (last,)
    assert "incident 1 at step 30" in loop.guard.report() and "skipped the step: calm again" in loop.guard.report()


def test_windows_cover_every_step_once() -> None:
    sink = Records()
    loop = Loop(sinks=[sink], log_every=7)
    loop.run(spoil(regression(60), 30))
    loop.guard.flush()
    covered = [step for w in sink.windows for step in range(w.first_step, w.step + 1)]
    assert covered == list(range(60))
    assert [w.tick for w in sink.windows] == list(range(len(sink.windows)))
    assert sink.windows[-1].skipped == 1
    assert any(not math.isfinite(w.norm_peak) for w in sink.windows)


def test_a_sink_that_fails_is_switched_off_with_one_warning_and_the_rest_goes_on() -> None:
    sink = Records()
    loop = Loop(sinks=[FullDisk(), sink], log_every=5)
    with pytest.warns(RuntimeWarning, match="FullDisk") as caught:
        reports = loop.run(spoil(regression(60), 30))
    assert sum("FullDisk" in str(w.message) for w in caught) == 1
    assert [i for i, r in enumerate(reports) if r.skipped] == [30]
    assert len(sink.windows) > 5 and sink.incidents
    loop.guard.close()
    assert sink.closed == 1


def test_a_sink_that_cannot_be_closed_costs_a_warning_only() -> None:
    guard = Guard(mlp(), sinks=[FullDisk()])
    with pytest.warns(RuntimeWarning, match="could not be closed"):
        guard.close()


def test_a_notice_is_not_repeated_at_every_step() -> None:
    class Mutters(Detector):
        name = "mutters"

        def judge(self, statistics: Any, baseline: Any) -> Verdict:
            return Verdict("vanishing", self.name, 1.0, 1.0, "hm", alarm=False)

    sink = Records()
    loop = Loop(sinks=[sink], detectors=[Mutters()])
    assert not any(r.skipped for r in loop.run(regression(100)))
    assert len(sink.notices) == 1 and loop.guard.incidents == ()


def test_the_record_of_an_endless_incident_is_bounded() -> None:
    loop = Loop(on_exhausted="continue")
    loop.run(regression(150))
    loop.run(regression(200), by=math.nan)
    (incident,) = loop.guard.incidents
    assert incident.alarms == 200 and len(incident.actions) <= 20
    assert incident.actions[0].step == 150 and incident.actions[-1].step == 349


# -- acting


def test_a_report_tells_what_was_done() -> None:
    loop = Loop()
    reports = loop.run(spoil(regression(40), 30))
    assert [r.skipped for r in reports] == [i == 30 for i in range(40)]
    bad = reports[30]
    assert bad.verdict.form == "non-finite" and bad.decision.remedies == ("skip",) and bad.outcomes[0].applied
    assert not bad.statistics.finite and bad.statistics.nonfinite
    assert reports[29].verdict is None and reports[29].statistics.finite


def test_a_rollback_returns_to_good_weights_and_lowers_the_rate() -> None:
    loop = Loop(detectors=[Alarm(at=[150])], snapshots=SnapshotStore(every=10), on_exhausted="continue")
    loop.run(regression(150))
    assert loop.guard.attach(loop.optimizer).baseline.losses.learned
    taken = loop.guard.attach(loop.optimizer).snapshots.latest
    assert taken is not None
    loop.step(regression(1)[0])
    assert set(loop.guard.incidents[0].remedies) >= {"rollback", "backoff"}
    for name, value in loop.network.named_parameters():
        assert torch.equal(value, taken.parameters[name])
    assert loop.guard.attach(loop.optimizer).remedies.lr_factor < 1.0
    assert loop.optimizer.param_groups[0]["lr"] == 0.01


def test_going_back_to_the_start_does_not_let_a_corrupt_batch_be_the_measure() -> None:
    """The snapshot of step 0 knows no norm, but the run did."""
    loop = Loop(detectors=[Alarm(at=[40]), *default_detectors()])
    loop.run(regression(1))
    loop.guard.attach(loop.optimizer).snapshots.schedule.due = 10**6  # the first one stays the only one
    loop.run(regression(40))
    assert loop.guard.attach(loop.optimizer).baseline.count == 0, "it went back to the start"
    report = loop.step(regression(1)[0], by=1e4)
    assert report.skipped
    loop.run(regression(30))
    assert all(r.verdict is None for r in loop.run(regression(5)))


def test_a_loss_that_is_nan_for_a_while_does_not_convict_the_rate_of_a_young_run() -> None:
    loop = Loop()
    loop.run(regression(20))
    loop.run(regression(40), by=math.nan)
    assert not any(r.skipped for r in loop.run(regression(10))[5:])
    assert loop.guard.attach(loop.optimizer).remedies.lr_factor > 1e-3


def test_a_loss_that_is_huge_for_a_while_does_not_cost_the_run_its_rate() -> None:
    loop = Loop()
    loop.run(regression(150))
    loop.run(regression(12), by=1e5)
    loop.run(regression(120))
    assert loop.guard.attach(loop.optimizer).remedies.lr_factor > 1e-2


def test_a_repaired_first_layer_takes_its_share_of_the_first_update_with_it() -> None:
    """The ratio was the layer's doing: kept, it would convict the rate of a plateau that is not its doing later."""
    loop = Loop()
    with torch.no_grad():
        loop.network[0].weight.mul_(1e4)
    loop.guard = Guard(loop.network)
    reports = loop.run(regression(8))
    assert any("reinitialize" in r.decision.remedies for r in reports if r.decision is not None)
    (track,) = loop.guard._tracks
    assert reports[0].statistics.update_ratio > 1.0 > track.baseline.updates.ratio > 0.0


def test_a_rate_that_leaps_is_convicted_by_the_losses_it_makes_and_the_run_goes_on_below_it() -> None:
    loop = Loop()
    loop.run(regression(150))
    loop.optimizer.param_groups[0]["lr"] = 100.0
    reports = loop.run(regression(100))
    (incident,) = loop.guard.incidents
    assert incident.step == 151 and incident.helped and incident.remedies == ("skip", "rollback", "backoff")
    assert [(t.cause, t.treatment, t.outcome) for t in incident.trials] == [
        ("learning rate", ("rollback", "backoff"), "kept")
    ]
    assert max(r.statistics.loss for r in reports[-10:]) < 0.1 < min(r.statistics.loss for r in reports[1:4])
    assert loop.optimizer.param_groups[0]["lr"] == 100.0


def test_a_run_that_goes_back_far_is_not_lost_again_because_its_loss_is_where_it_was_then() -> None:
    loop, batches = Loop(), regression(450)
    loop.run(batches[:150])
    loop.optimizer.param_groups[0]["lr"] = 0.3
    reports = loop.run(batches[150:])
    assert 0.3 * loop.guard.attach(loop.optimizer).remedies.lr_factor > 1e-4
    assert loop.guard.incidents[0].helped
    assert sum(float(r.statistics.loss) for r in reports[-20:]) / 20 < 0.02


def test_a_rising_rate_is_brought_down_each_time_that_it_loses_the_run() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 1.05)
    guard, data = Guard(network), torch.Generator().manual_seed(1)
    for _ in range(260):
        x = torch.randn(32, 8, generator=data)
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=x)
        optimizer.step()
        schedule.step()
    trials = [trial for incident in guard.incidents for trial in incident.trials]
    assert {(t.cause, t.outcome) for t in trials} == {("learning rate", "kept")}
    assert all(i.helped for i in guard.incidents)
    assert float(loss.detach()) < 0.1


def test_a_rate_that_was_backed_off_is_not_lowered_twice_in_what_is_remembered() -> None:
    loop = Loop(detectors=[Alarm(at=[40])], snapshots=SnapshotStore(every=10))
    loop.run(regression(60))
    track = loop.guard.attach(loop.optimizer)
    track.baseline.updates.rate = 0.0
    loop.run(regression(1))
    assert 0.0 < track.remedies.lr_factor < 1.0
    assert track.baseline.updates.rate == pytest.approx(0.01 * track.remedies.lr_factor, rel=0.01)


def test_a_healthy_run_of_noisy_losses_has_a_state_of_late_to_go_back_to() -> None:
    """Its loss falls to a quarter, in batches of eight; its first updates were a sixth of the weights."""
    loop = Loop(norm=True)
    loop.optimizer = torch.optim.SGD(loop.network.parameters(), lr=0.05)
    reports = loop.run(regression(400))
    track = loop.guard.attach(loop.optimizer)
    losses = [float(report.statistics.loss) for report in reports]
    assert chance_of_lower(losses[-100:], losses[:9]) < 1e-3 and not loop.guard.incidents
    assert track.snapshots.latest.step >= 200


@pytest.mark.parametrize("first", [0.0, 1e-3, 0.01])
def test_a_rate_that_leaps_in_any_group_is_brought_down_with_the_groups_in_proportion(first: float) -> None:
    loop = Loop()
    weights = list(loop.network.parameters())
    loop.optimizer = torch.optim.SGD(
        [{"params": weights[:2], "lr": first}, {"params": weights[2:]}], lr=0.01, momentum=0.9
    )
    loop.guard = Guard(loop.network)
    loop.run(regression(150))
    loop.optimizer.param_groups[1]["lr"] = 100.0
    before = weights[0].detach().clone()
    reports = loop.run(regression(100))
    (incident,) = loop.guard.incidents
    assert incident.helped and {t.cause for t in incident.trials} == {"learning rate"}
    assert max(r.statistics.loss for r in reports[-10:]) < max(r.statistics.loss for r in reports[1:4]) / 10
    assert torch.equal(before, weights[0]) is (first == 0.0)
    assert [group["lr"] for group in loop.optimizer.param_groups] == [first, 100.0]


def test_without_memory_for_snapshots_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(SnapshotStore, "take", refuse)
    loop = Loop()
    with pytest.warns(RuntimeWarning, match="rollback is switched off") as caught:
        reports = loop.run(spoil(regression(60), 30))
    assert sum("switched off" in str(w.message) for w in caught) == 1
    assert [i for i, r in enumerate(reports) if r.skipped] == [30]


def test_groups_added_in_mid_run_forget_references_of_the_old_norm() -> None:
    network = mlp()
    optimizer = torch.optim.SGD(network[2].parameters(), lr=1e-4)
    guard = Guard(network, detectors=[Spike(), Drift()])
    for step, (x, y) in enumerate(regression(200)):
        if step == 80:
            optimizer.add_param_group({"params": network[0].parameters()})
        optimizer.zero_grad()
        # The new parameters' gradients are 1,000 times as large.
        (nn.functional.mse_loss(network(x), y) * (1.0 if step < 80 else 1e3)).backward()
        assert not guard.before_step(optimizer).skipped
        optimizer.step()
    assert guard.incidents == ()


@pytest.mark.parametrize(("on_exhausted", "stops"), [("stop", True), ("continue", True)])
def test_a_spent_budget_is_told_in_the_report(on_exhausted: Any, stops: bool) -> None:
    loop = Loop(on_exhausted=on_exhausted, policy=Policy(max_skipped=3))
    loop.run(regression(20))
    reports = loop.run(regression(10), by=math.nan)
    assert [r.stop for r in reports] == [False] * 2 + [stops] * 8
    assert all(r.skipped for r in reports)
    assert len(loop.guard.incidents) == 1


def test_a_spent_budget_can_raise_with_a_report_of_what_was_tried() -> None:
    loop = Loop(on_exhausted="raise", policy=Policy(max_skipped=3))
    loop.run(regression(20))
    with pytest.raises(TrainingDiverged, match="skipped the step"):
        loop.run(regression(10), by=math.nan)
    assert loop.optimizer.param_groups[0]["lr"] == 0.01


# -- what the gradients do not tell


class Saturates(Loop):
    """A network whose gradients stay calm whatever the inputs are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.network = nn.Sequential(nn.Tanh(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.05)
        self.guard = Guard(self.network, **options)
        self.guard.attach(self.optimizer)


def saturating(count: int) -> list[Any]:
    generator = torch.Generator().manual_seed(5)
    inputs = [0.1 * torch.randn(16, 8, generator=generator) for _ in range(count)]
    return [(x, 0.1 * x.sum(1, keepdim=True)) for x in inputs]


def test_a_batch_that_saturates_the_network_is_skipped_by_loss_and_scale() -> None:
    batches = saturating(110)
    bad = {80, 81, 100}
    clean, loop = Saturates(), Saturates()
    clean.network.load_state_dict(loop.network.state_dict())
    clean.run([batch for i, batch in enumerate(batches) if i not in bad])
    reports = loop.run([(x * 1e4, y) if i in bad else (x, y) for i, (x, y) in enumerate(batches)])
    assert {i for i, report in enumerate(reports) if report.skipped} == bad
    assert {i.actions[0].verdict.detector for i in loop.guard.incidents} == {"loss-leap"}
    assert {i.culprit for i in loop.guard.incidents} == {"batch"}
    assert same(clean.network.state_dict(), loop.network.state_dict())


@pytest.mark.parametrize("frozen", ["0", "2"])
def test_a_broken_layer_that_nobody_trains_is_named(frozen: str) -> None:
    loop = Loop(policy=Policy(patience=1))
    layer = loop.network.get_submodule(frozen).requires_grad_(False)
    others = [p for p in loop.network.parameters() if p.requires_grad]
    loop.optimizer = torch.optim.SGD(others, lr=0.01)
    loop.guard.attach(loop.optimizer)
    loop.run(regression(30))
    with torch.no_grad():
        layer.weight.fill_(math.nan)  # type: ignore[operator, union-attr]
    loop.run(regression(5))
    (incident,) = loop.guard.incidents
    assert (incident.step, incident.culprit) == (30, frozen)


def test_data_that_have_changed_for_good_are_not_skipped_for_ever() -> None:
    batches = saturating(120)
    loop = Saturates(policy=Policy(max_skipped=20))
    reports = loop.run([(x * 1e4, y) if i >= 60 else (x, y) for i, (x, y) in enumerate(batches)])
    skipped = [i for i, report in enumerate(reports) if report.skipped]
    assert skipped[:9] == list(range(60, 69))
    later = [report.verdict.detector for report in reports[69:] if report.verdict is not None]
    assert "loss-leap" not in later and len(later) < 10, "a spike now and then, while the network adapts"
    assert not any(report.stop for report in reports)


def test_a_mended_layer_is_looked_at_again_when_all_is_calm() -> None:
    """What damaged it may have gone on, where neither loss nor gradients show it: a normalisation cancels the scale."""
    loop, batches = Loop(norm=True), regression(140)
    loop.run(batches[:100])
    layer = loop.network[0]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight[0, 0] = math.nan
    for batch in batches[100:]:
        loop.step(batch)
        with torch.no_grad():
            layer.weight.mul_(1.3 if loop.done < 115 else 1.0)
    told = [action.verdict.detector for incident in loop.guard.incidents for action in incident.actions]
    assert told == ["non-finite", "check-up"]
    assert [incident.culprit for incident in loop.guard.incidents] == ["0", "0"]
    assert float(layer.weight.detach().norm()) < 5.0


def test_examinations_for_a_single_odd_loss_become_rare_where_those_are_common() -> None:
    interval = ExponentialInterval()
    common = [step for step in range(3000) if interval.due(step)]
    gaps = [b - a for a, b in itertools.pairwise(common)]
    assert gaps[:6] == [10, 20, 40, 80, 160, 320] and set(gaps[5:]) == {320}
    assert interval.due(10_000) and not interval.due(10_005) and interval.due(10_010), (
        "after a long peace it begins anew"
    )


# -- errors


class Fails(Detector):
    """Raise in one of its methods."""

    name = "users-own"

    def __init__(self, *, where: str = "judge") -> None:
        self.where = where

    def _maybe(self, here: str) -> None:
        if here == self.where:
            raise ZeroDivisionError("a mistake")

    def judge(self, statistics: Any, baseline: Any) -> None:
        self._maybe("judge")

    def accept(self, statistics: Any, baseline: Any) -> None:
        self._maybe("accept")

    def reject(self, statistics: Any) -> None:
        self._maybe("reject")

    def limit(self, baseline: Any) -> float:
        self._maybe("limit")
        return math.inf


class Stumbles(Remedy):
    """Raise in one of its methods."""

    name = "clip"

    def __init__(self, *, where: str = "apply") -> None:
        self.where = where

    def apply(self, context: RemedyContext) -> Any:
        if self.where == "apply":
            raise LookupError("another mistake")
        return Clip().apply(context)

    def before_update(self, context: RemedyContext) -> None:
        if self.where == "before_update":
            raise LookupError("another mistake")


@pytest.mark.parametrize("where", ["judge", "accept", "reject", "limit"])
def test_whichever_method_of_a_detector_fails_it_is_named(where: str) -> None:
    loop = Loop(detectors=[Fails(where=where), *Guard()._parts.detectors], log_every=1)
    with pytest.raises(GuardError, match=r"detector 'users-own' failed.*a mistake"):
        loop.run(spoil(regression(30), 20))


@pytest.mark.parametrize("where", ["apply", "before_update"])
def test_whichever_method_of_a_remedy_fails_it_is_named(where: str) -> None:
    loop = Loop(detectors=[Alarm(at=[20], form="sudden")], remedies=[Stumbles(where=where)])
    with pytest.raises(GuardError, match=r"remedy 'clip' failed.*another mistake"):
        loop.run(regression(30))


class Undoes(Remedy):
    """Count what is undone; fail at it once, with an error that is given."""

    name = "users-own"

    def __init__(self, *, error: type[BaseException] | None = None) -> None:
        self.error, self.changed, self.undone = error, False, 0

    def apply(self, context: RemedyContext) -> Any:
        raise AssertionError("nothing calls for it")

    def before_update(self, context: RemedyContext) -> None:
        self.changed = True

    def after_update(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.changed, self.undone = False, self.undone + 1


def test_what_was_changed_for_an_update_is_undone_once() -> None:
    loop = Loop(remedies=[Undoes(), LearningRateBackoff()])
    loop.run(regression(5))
    remedy: Any = loop.guard.attach(loop.optimizer).remedies["users-own"]
    loop.guard.after_step()
    assert not remedy.changed and remedy.undone == 5


def test_what_was_changed_for_an_update_that_never_came_is_undone_before_the_next_step() -> None:
    loop = Loop(remedies=[Undoes()])
    for _ in range(3):
        loop.guard.before_step(loop.optimizer, loss=1.0)
    remedy: Any = loop.guard.attach(loop.optimizer).remedies["users-own"]
    assert remedy.changed and remedy.undone == 2
    loop.guard.after_step()
    assert not remedy.changed and remedy.undone == 3


def test_an_interrupt_while_one_remedy_undoes_its_work_keeps_no_other_from_doing_so() -> None:
    loop = Loop(remedies=[Undoes(error=KeyboardInterrupt), LearningRateBackoff()])
    backoff: Any = loop.guard.attach(loop.optimizer).remedies["backoff"]
    backoff.bracket.bad, backoff.bracket.in_use = 0.01, 0.005
    with pytest.raises(KeyboardInterrupt):
        loop.run(regression(1))
    assert loop.optimizer.param_groups[0]["lr"] == 0.005
    loop.guard.after_step()
    assert loop.optimizer.param_groups[0]["lr"] == 0.01


def test_an_error_puts_rates_back() -> None:
    loop = Loop(detectors=[Alarm(at=[10])], remedies=[LearningRateBackoff(), Stumbles(where="before_update")])
    with pytest.raises(GuardError):
        loop.run(regression(30))
    assert loop.optimizer.param_groups[0]["lr"] == 0.01


def test_an_isolated_error_lets_the_step_pass_as_if_there_were_no_guard() -> None:
    guarded, plain = Loop(detectors=[Fails()], on_error="warn"), mlp()
    with pytest.warns(RuntimeWarning, match="users-own") as caught:
        reports = guarded.run(regression(20))
    assert sum("users-own" in str(w.message) for w in caught) == 1
    assert not any(r.skipped or r.stop for r in reports)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    for x, y in regression(20):
        optimizer.zero_grad()
        nn.functional.mse_loss(plain(x), y).backward()
        optimizer.step()
    assert same(plain.state_dict(), guarded.network.state_dict())


@pytest.mark.parametrize("where", ["judge", "accept", "reject", "limit"])
def test_an_isolated_error_leaves_the_other_detectors_at_work(where: str) -> None:
    loop = Loop(detectors=[Fails(where=where), *Guard()._parts.detectors], on_error="warn")
    with pytest.warns(RuntimeWarning) as caught:
        reports = loop.run(spoil(regression(30), 20, 21))
    assert [i for i, r in enumerate(reports) if r.skipped] == [20, 21]
    assert sum("users-own" in str(w.message) for w in caught) == 1
    assert all(p.isfinite().all() for p in loop.network.parameters())


@pytest.mark.parametrize("where", ["apply", "before_update"])
def test_an_isolated_remedy_leaves_the_others_at_work(where: str) -> None:
    detectors = [Alarm(at=[40, 45], form="sudden"), *Guard()._parts.detectors]
    loop = Loop(detectors=detectors, remedies=[Stumbles(where=where), Skip()], on_error="warn")
    with pytest.warns(RuntimeWarning, match="clip") as caught:
        reports = loop.run(spoil(regression(60), 50))
    assert sum("another mistake" in str(w.message) for w in caught) == 1
    # Without a remedy that clips, the later spike is skipped.
    assert [i for i, r in enumerate(reports) if r.skipped][-2:] == [45, 50]


@pytest.mark.parametrize("options", [{"remedies": [Clip()]}, {"detectors": [Drift()]}])
def test_a_nan_that_nobody_skips_is_told_once(options: Any) -> None:
    loop = Loop(**options)
    with pytest.warns(RuntimeWarning, match="not finite reaches the weights") as caught:
        loop.run(spoil(regression(30), 20))
    assert sum("reaches the weights" in str(w.message) for w in caught) == 1


@pytest.mark.parametrize("name", ["policy", "snapshots"])
@pytest.mark.parametrize("value", ["default", {"patience": 3}, Policy, 0])
def test_policy_and_snapshots_of_the_wrong_type_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be an instance of"):
        Guard(**{name: value})


def test_without_a_module_the_error_says_what_to_do() -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(GuardError, match="bind"):
        Guard().before_step(torch.optim.SGD(network.parameters(), lr=0.1))


# -- life cycle and memory


def test_closing_leaves_nothing_on_module_or_optimizer() -> None:
    loop = Loop()
    loop.run(spoil(regression(30), 29))
    assert loop.guard.state_dict()["armed"]
    loop.guard.close()
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(child, kind) for child in loop.network.modules() for kind in kinds)
    assert not loop.optimizer._optimizer_step_post_hooks and not loop.optimizer._optimizer_step_pre_hooks
    loop.guard.close()


def test_a_closed_guard_can_go_on() -> None:
    loop, twin = Loop(), Loop()
    batches = spoil(regression(60), 29, 45)
    loop.run(batches[:30])
    loop.guard.close()
    loop.guard.attach(loop.optimizer)
    loop.run(batches[30:])
    twin.run(batches)
    assert same(loop.network.state_dict(), twin.network.state_dict())
    assert same(loop.guard.state_dict(), twin.guard.state_dict())


def test_binding_another_module_forgets_the_first() -> None:
    loop = Loop()
    loop.run(spoil(regression(30), 29))
    loop.guard.close()
    loop.guard.bind(mlp(seed=9))
    assert loop.guard.incidents == () and loop.guard.state_dict()["lanes"] == {}


def size(state: Any) -> int:
    """Count the leaves of a state."""
    if isinstance(state, dict):
        return sum(map(size, state.values())) + len(state)
    return sum(map(size, state)) if isinstance(state, (list, tuple)) else 1


def test_the_state_does_not_grow_over_thousands_of_steps() -> None:
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
    guard = Guard(network, on_exhausted="continue", policy=Policy(calm=3))
    norms = np.exp(0.2 * np.random.default_rng(0).standard_normal(5000))
    norms[100::100] *= 1e9
    norms[150::100] = math.nan
    sizes, tensors = [], []
    for step, norm in enumerate(norms):
        for p in network.parameters():
            p.grad = torch.full_like(p, float(norm))
        guard.before_step(optimizer, loss=1.0)
        optimizer.step()
        if step in (2999, 4999):
            sizes.append(size({k: v for k, v in guard.state_dict().items() if k != "incidents"}))
            # By type: isinstance() would look through dead weak proxies, which other tests leave behind.
            tensors.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    assert sizes[1] <= sizes[0] * 1.02
    assert tensors[1] <= tensors[0] + 5
    assert len(guard.incidents) <= 200


def test_a_validation_between_two_steps_is_not_measured() -> None:
    loop = Loop()
    loop.run(spoil(regression(30), 29))
    assert loop.guard.state_dict()["armed"]
    with torch.no_grad():
        for x, _ in regression(20):
            loop.network(x * 1e6)
    assert loop.guard._run.investigation._probe.readings() == ()


def test_an_objective_without_a_lower_bound_ends_with_the_weights_of_before_it_ran_away() -> None:
    """Weights that are rewarded for their size grow by a tenth a step."""
    network = nn.Linear(8, 8)
    optimizer, guard, sizes = torch.optim.SGD(network.parameters(), lr=0.05), Guard(network), []
    guard.attach(optimizer)
    for step in range(400):
        optimizer.zero_grad()
        loss = -sum(p.square().sum() for p in network.parameters()) * (1.0 if step >= 50 else -1e-3)
        loss.backward()
        report = guard.before_step(optimizer, loss=loss)
        optimizer.step()
        sizes.append(float(network.weight.detach().norm()))
        if report.stop:
            break
    assert report.stop and sizes[-1] < 0.1 * max(sizes)
    assert "stopped: at step" in guard.report() and "no lower bound of the loss is in sight" in guard.report()
    assert evidence(guard.incidents[-1].actions[-1]).startswith("loss -")


def test_an_objective_whose_unit_grows_a_millionfold_is_let_be() -> None:
    """A reward in cents, in euros, in thousands of euros: the weights have long settled."""
    network = nn.Linear(8, 3)
    optimizer, guard = torch.optim.Adam(network.parameters(), lr=1e-3), Guard(network)
    guard.attach(optimizer)
    data, stops = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), []
    for step in range(700):
        optimizer.zero_grad()
        loss = -network(data).softmax(1)[:, 0].mean() * 1.03**step
        loss.backward()
        stops.append(guard.before_step(optimizer, loss=loss).stop)
        optimizer.step()
    assert float(loss.detach()) < -1e8 and not any(stops) and guard.report() == "no incident"
