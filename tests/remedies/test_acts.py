"""Remedies are known by what they do: one that does the same under another name takes the place of a built-in one everywhere."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies import LearningRateBackoff, Remedy, RemedyContext, Rollback, Skip
from tests.builders import mlp, regression, same, through_a_file


class Sits(Remedy):
    """Do what Skip does, under another name."""

    name: ClassVar[str] = "sit-this-one-out"
    acts: ClassVar[frozenset[str]] = frozenset({Act.SKIP})
    deferrable: ClassVar[bool] = True

    def __init__(self) -> None:
        self._skip = Skip()

    @property
    def on_device(self) -> bool:
        return True

    def apply(self, context: RemedyContext) -> Outcome:
        done = self._skip.apply(context)
        return Outcome(self.name, done.applied, done.detail, done.layers, done.coefficient)

    def after_update(self) -> None:
        self._skip.after_update()


class Returns(Remedy):
    """Do what Rollback does, under another name."""

    name: ClassVar[str] = "return"
    acts: ClassVar[frozenset[str]] = frozenset({Act.ROLLBACK})
    deferrable: ClassVar[bool] = True
    uses_snapshots: ClassVar[bool] = True

    def __init__(self) -> None:
        self._rollback = Rollback()

    def apply(self, context: RemedyContext) -> Outcome:
        done = self._rollback.apply(context)
        return Outcome(self.name, done.applied, done.detail, done.layers, done.coefficient, done.back_to)

    def state_dict(self) -> dict[str, Any]:
        return self._rollback.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rollback.load_state_dict(state)


class Slows(Remedy):
    """Do what the back-off does, under another name."""

    name: ClassVar[str] = "slow-down"
    acts: ClassVar[frozenset[str]] = frozenset({Act.BACKOFF})
    deferrable: ClassVar[bool] = True

    def __init__(self) -> None:
        self._backoff = LearningRateBackoff()

    @property
    def rate_factor(self) -> float:
        return self._backoff.rate_factor

    def rate(self, scheduled: float) -> float:
        return self._backoff.rate(scheduled)

    def known_rates(self) -> tuple[float, float]:
        return self._backoff.known_rates()

    def apply(self, context: RemedyContext) -> Outcome:
        done = self._backoff.apply(context)
        return Outcome(self.name, done.applied, done.detail)

    def take_back(self) -> None:
        self._backoff.take_back()

    def before_update(self, context: RemedyContext) -> None:
        self._backoff.before_update(context)

    def after_update(self) -> None:
        self._backoff.after_update()

    def state_dict(self) -> dict[str, Any]:
        return self._backoff.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._backoff.load_state_dict(state)


OTHERS = {"skip": Sits, "rollback": Returns, "backoff": Slows}
NAMES = {name: kind.name for name, kind in OTHERS.items()}


def run(
    remedies: list[Remedy], rate: float, *, spoilt: int | None = None, until_trial: bool = False
) -> tuple[dict[str, Any], list[Any], Guard]:
    network = mlp()
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    guard, reports = Guard(network, remedies=remedies), []
    for index, (x, y) in enumerate(regression(160)):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x * math.nan if index == spoilt else x), y)
        loss.backward()
        reports.append(guard.before_step(optimizer, loss=loss, batch=(x, y)))
        optimizer.step()
        guard.after_step()
        if until_trial and guard.attach(optimizer).treatment.trial is not None:
            break
    return dict(network.state_dict()), reports, guard


def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(NAMES.get(name, name) for name in names)


@pytest.mark.parametrize(("rate", "spoilt"), [(0.01, 100), (2.0, None)], ids=["a bad batch", "a rate too high"])
def test_one_that_does_the_same_under_another_name_changes_nothing(rate: float, spoilt: int | None) -> None:
    others = [OTHERS[remedy.name]() if remedy.name in OTHERS else remedy for remedy in default_remedies()]
    weights, reports, guard = run(default_remedies(), rate, spoilt=spoilt)
    mine, told, own = run(others, rate, spoilt=spoilt)
    assert same(weights, mine)
    assert [r.skipped for r in reports] == [r.skipped for r in told]
    decisions = [(r.decision.remedies, r.decision.cause) for r in reports if r.decision is not None]
    assert decisions
    assert [(renamed(names), cause) for names, cause in decisions] == [
        (r.decision.remedies, r.decision.cause) for r in told if r.decision is not None
    ]
    assert [renamed(t.treatment) for i in guard.incidents for t in i.trials] == [
        t.treatment for i in own.incidents for t in i.trials
    ]
    if spoilt is None:
        assert any("slow-down" in names for names in (r.decision.remedies for r in told if r.decision is not None))


def test_a_trial_under_another_name_goes_on_after_a_checkpoint() -> None:
    others = [OTHERS[remedy.name]() if remedy.name in OTHERS else remedy for remedy in default_remedies()]
    _, reports, guard = run(others, 2.0, until_trial=True)
    assert reports[-1].decision is not None and "slow-down" in reports[-1].decision.remedies
    again = Guard(mlp(), remedies=others)
    again.load_state_dict(through_a_file(guard.state_dict()))
    track = again.attach(torch.optim.SGD(again.module.parameters(), lr=2.0, momentum=0.9))
    assert track.treatment.trial is not None and track.treatment.trial.lowers_rate
