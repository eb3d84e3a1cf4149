"""Arbitrary sequences of remedies and updates keep the optimizer's state, the weights and the rates consistent."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gradguard import SnapshotStore
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.detectors.bad_start import LARGEST
from lightning_gradguard.records import Decision, Outcome, Suspect
from lightning_gradguard.remedies import Augment, Regularize, SwapActivation
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from tests.builders import context_for, mlp, regression, same, through_a_file

RATE = 0.01
OPTIMIZERS: dict[str, Any] = {
    "sgd-momentum": partial(torch.optim.SGD, lr=RATE, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=RATE),
    "adamw-amsgrad": partial(torch.optim.AdamW, lr=RATE, amsgrad=True),
    "adamw-fused": partial(torch.optim.AdamW, lr=RATE, fused=True),
    "adam-for-loop-tensor-rate": partial(torch.optim.Adam, lr=torch.tensor(RATE), foreach=False),
    "rmsprop": partial(torch.optim.RMSprop, lr=RATE, momentum=0.9),
    "adagrad": partial(torch.optim.Adagrad, lr=RATE),
    "nadam": partial(torch.optim.NAdam, lr=RATE),
}
BATCH, UNTOUCHED = regression(1)[0], regression(1)[0]
OPTIONAL = (Regularize, Augment, SwapActivation)
REMEDIES = [remedy.name for remedy in (*default_remedies(), *OPTIONAL)]
LAYERS = ["0", "1", "3", "batch", "gone"]
# What happens in one step: nothing, a snapshot, or remedies in any order and number; with gradients of any kind.
ACTS = st.one_of(
    st.just("step"),
    st.just("snapshot"),
    st.lists(st.sampled_from(REMEDIES), min_size=1, max_size=4),
)
GRADIENTS = st.sampled_from([1.0, 1.0, 1.0, 0.0, 1e4, 1e30, math.inf, math.nan])
STEPS = st.lists(st.tuples(ACTS, GRADIENTS, st.lists(st.sampled_from(LAYERS), unique=True), st.booleans()), max_size=14)


class Run:
    """A network, its optimizer and every remedy there is."""

    def __init__(self, kind: str) -> None:
        self.module = mlp(norm=True)
        self.optimizer = OPTIMIZERS[kind](self.module.parameters())
        self.snapshots = SnapshotStore()
        self.running = RunningStatistics(self.module)
        self.remedies = {remedy.name: remedy for remedy in (*default_remedies(), *(kind() for kind in OPTIONAL))}
        self.number = 0

    def go(self, act: Any, scale: float, layers: list[str], start: bool) -> list[Outcome]:
        """Make one step, and return what the remedies did in it."""
        self.optimizer.zero_grad()
        self.remedies["augment"].before_forward(BATCH)
        initialize: Any = self.remedies["initialize"]
        measured = initialize.at_work
        (nn.functional.mse_loss(self.module(BATCH[0]), BATCH[1]) * scale).backward()
        if act == "snapshot":
            self.keep()
        asked = act if isinstance(act, list) else []
        decision = Decision(tuple(asked), "for a test")
        blame = [Suspect(layer, 1.0, "x") for layer in layers]
        more: dict[str, Any] = {"snapshots": self.snapshots, "running": self.running, "blame": blame, "start": start}
        context = context_for(
            self.module, self.optimizer, decision=decision, step=self.number, limit=2.0, target=1.0, **more
        )
        outcomes = [self.remedies[name].apply(context) for name in asked if not (measured and name == "initialize")]
        if not context.statistics.norm < LARGEST:
            # As the ladder does: neither what is not finite reaches the optimizer, nor what has no finite square.
            self.remedies["skip"].apply(context)
        if measured:
            initialize.finish()
            self.remedies["skip"].apply(context)
        for remedy in self.remedies.values():
            remedy.before_update(context)
        self.optimizer.step()
        for remedy in self.remedies.values():
            remedy.after_update()
        self.running.accept()
        self.number += 1
        return outcomes

    def keep(self) -> None:
        names, buffers = dict(self.module.named_parameters()), dict(self.module.named_buffers())
        self.snapshots.take(self.number, names, buffers, self.optimizer)

    def check(self) -> None:
        """All that has to hold after each step, whatever was done in it."""
        held = set(self.optimizer.state)
        assert held <= set(self.module.parameters()), "state of what is no parameter"
        for parameter, state in self.optimizer.state.items():
            assert state and bool(parameter.isfinite().all())
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    assert value.isfinite().all(), key
                    assert value.dim() == 0 or value.shape == parameter.shape, key
        assert all(bool(b.isfinite().all()) for b in self.module.buffers())
        assert same(BATCH, UNTOUCHED)
        assert [float(g["lr"]) for g in self.optimizer.param_groups] == [pytest.approx(RATE)]
        for remedy in self.remedies.values():
            again = type(remedy)()
            again.load_state_dict(through_a_file(remedy.state_dict()))
            assert same(again.state_dict(), remedy.state_dict())


@pytest.mark.parametrize("kind", OPTIMIZERS)
@given(steps=STEPS)
def test_any_sequence_of_remedies_keeps_the_optimizer_consistent(kind: str, steps: list[Any]) -> None:
    run = Run(kind)
    run.keep()
    for what in steps:
        run.go(*what)
        run.check()
    # What was saved after it is taken up by an optimizer that knows nothing of it.
    initialize: Any = run.remedies["initialize"]
    initialize.close()
    other = copy.deepcopy(run.module)
    fresh = OPTIMIZERS[kind](other.parameters())
    fresh.load_state_dict(through_a_file(run.optimizer.state_dict()))
    for module, optimizer in ((run.module, run.optimizer), (other, fresh)):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(BATCH[0]), BATCH[1]).backward()
        optimizer.step()
    assert same(run.module.state_dict(), other.state_dict())


@pytest.mark.parametrize("kind", OPTIMIZERS)
@given(steps=STEPS)
def test_going_back_undoes_any_sequence_bit_by_bit(kind: str, steps: list[Any]) -> None:
    run = Run(kind)
    for _ in range(3):
        run.go("step", 1.0, [], False)
    run.keep()
    weights = copy.deepcopy(run.module.state_dict())
    state = copy.deepcopy(run.optimizer.state_dict()["state"])
    for act, *rest in steps:
        run.go("step" if act == "snapshot" else act, *rest)
    outcome = run.remedies["rollback"].apply(
        context_for(run.module, run.optimizer, snapshots=run.snapshots, buffers=dict(run.module.named_buffers()))
    )
    assert outcome.applied
    assert same(dict(run.module.state_dict()), dict(weights))
    assert same(run.optimizer.state_dict()["state"], state)
