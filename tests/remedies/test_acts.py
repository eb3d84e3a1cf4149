"""Remedies are known by what they do: one that does the same under another name takes the place of a built-in one
everywhere."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_gradguard
from lightning_gradguard import Guard
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies import Remedy, RemedyContext
from tests.builders import mlp, regression, same, through_a_file

NAMES = {
    "clip": "trim",
    "skip": "sit-this-one-out",
    "rollback": "return",
    "reinitialize": "amend",
    "initialize": "begin-again",
    "backoff": "slow-down",
    "clear": "wipe",
    "tune": "adjust",
}


def another(kind: type[Remedy]) -> Remedy:
    """Return a remedy that does what a built-in one does, of another class and under another name."""

    class Other(Remedy):
        name = NAMES[kind.name]
        acts = kind.acts
        deferrable = kind.deferrable
        uses_snapshots = kind.uses_snapshots

        def __init__(self) -> None:
            self.inner = kind()

        def apply(self, context: RemedyContext) -> Outcome:
            return dataclasses.replace(self.inner.apply(context), remedy=self.name)

    def method(name: str) -> Callable[..., Any]:
        return lambda self, *args, **more: getattr(self.inner, name)(*args, **more)

    for name, value in vars(Remedy).items():
        if not name.startswith("_") and name not in vars(Other) and not isinstance(value, property):
            setattr(Other, name, method(name))
    for name in ("on_device", "rate_factor", "cooled", "at_work"):
        setattr(Other, name, property(attrgetter(f"inner.{name}")))
    return Other()


@dataclasses.dataclass
class Trouble:
    """A run in which one act is called for."""

    rate: float = 0.01
    steps: int = 160
    large_start: bool = False
    data: Callable[[int], float] = lambda step: 1.0
    loss: Callable[[int], float] = lambda step: 1.0
    damaged: int | None = None
    forgets: bool = False
    momentum: float = 0.9


TROUBLES = {
    Act.CLIP: Trouble(loss=lambda step: 200.0 if step == 100 else 1.0),
    Act.SKIP: Trouble(data=lambda step: math.nan if step == 100 else 1.0),
    Act.REINITIALIZE: Trouble(damaged=100),
    Act.INITIALIZE: Trouble(large_start=True),
    Act.ROLLBACK: Trouble(rate=2.0),
    Act.BACKOFF: Trouble(rate=2.0),
    Act.CLEAR: Trouble(rate=0.2, forgets=True),
    Act.TUNE: Trouble(rate=0.2, momentum=0.995),
}


def run(
    trouble: Trouble, remedies: list[Remedy], *, until_trial: bool = False
) -> tuple[dict[str, Any], list[Any], Guard]:
    network = mlp()
    if trouble.large_start:
        first, *rest = network
        network = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 16), *rest)
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(100.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=trouble.rate, momentum=trouble.momentum)
    if trouble.large_start:
        optimizer = torch.optim.Adam(network.parameters(), lr=trouble.rate)
    guard, reports = Guard(network, remedies=remedies), []
    guard.attach(optimizer)
    for index, (x, y) in enumerate(regression(trouble.steps)):
        if index == trouble.damaged:
            with torch.no_grad():
                network[0].weight.mul_(1e5)
        if not trouble.forgets:
            optimizer.zero_grad()
        guard.before_backward()
        loss = nn.functional.mse_loss(network(x * trouble.data(index)), y)
        (loss * trouble.loss(index)).backward()
        reports.append(guard.before_step(optimizer, loss=loss, batch=(x, y)))
        optimizer.step()
        guard.after_step()
        if until_trial and guard.attach(optimizer).treatment.trial is not None:
            break
    return dict(network.state_dict()), reports, guard


def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(NAMES[name] for name in names)


@pytest.mark.parametrize("act", Act)
def test_one_that_does_the_same_under_another_name_changes_nothing(act: Act) -> None:
    weights, reports, guard = run(TROUBLES[act], default_remedies())
    mine, told, own = run(TROUBLES[act], [another(type(remedy)) for remedy in default_remedies()])
    assert same(weights, mine)
    assert [r.skipped for r in reports] == [r.skipped for r in told]
    decisions = [r.decision for r in reports if r.decision is not None]
    assert any(act in decision.remedies for decision in decisions), "the act was never called for"
    assert [(renamed(d.remedies), d.cause) for d in decisions] == [
        (r.decision.remedies, r.decision.cause) for r in told if r.decision is not None
    ]
    assert [renamed(i.remedies) for i in guard.incidents] == [i.remedies for i in own.incidents]
    assert [i.helped for i in guard.incidents] == [i.helped for i in own.incidents]
    assert [renamed(t.treatment) for i in guard.incidents for t in i.trials] == [
        t.treatment for i in own.incidents for t in i.trials
    ]


def test_a_trial_under_another_name_goes_on_after_a_checkpoint() -> None:
    others = [another(type(remedy)) for remedy in default_remedies()]
    _, reports, guard = run(TROUBLES[Act.BACKOFF], others, until_trial=True)
    assert reports[-1].decision is not None and "slow-down" in reports[-1].decision.remedies
    again = Guard(mlp(), remedies=others)
    again.load_state_dict(through_a_file(guard.state_dict()))
    track = again.attach(torch.optim.SGD(again.module.parameters(), lr=2.0, momentum=0.9))
    assert track.treatment.trial is not None and track.treatment.trial.lowers_rate


def words(file: Path) -> set[str]:
    """Return the acts that a file names by a string; what a remedy calls itself, and docstrings, do not count."""
    tree = ast.parse(file.read_text())
    own = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "name"
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in own and node.value in {act.value for act in Act}
    }


def test_nobody_knows_a_remedy_by_its_name() -> None:
    """Who wants to know what a remedy does asks for its acts, or looks at its outcome."""
    root = Path(lightning_gradguard.__file__).parent
    by_name = {
        file.relative_to(root).as_posix(): found
        for file in root.rglob("*.py")
        if not file.is_relative_to(root / "report") and (found := words(file))
    }
    assert by_name == {"policy/act.py": {act.value for act in Act}}
