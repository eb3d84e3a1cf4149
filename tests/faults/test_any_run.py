"""Whatever a run is fed: the guard never raises, no poison passes, and it resumes at any step."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradguard.guard import Guard
from lightning_gradguard.snapshots import SnapshotStore
from tests.builders import mlp, regression, same, through_a_file

BATCHES = regression(8)
VALUES = st.sampled_from(
    [0.0, 1e-45, 1e-38, 1e-10, 1.0, 1.0, 1.0, 1.0, 10.0, 1e4, 1e19, 1e30, 3e38, math.inf, -math.inf, math.nan]
)
LOSSES = st.one_of(st.none(), st.just(1.0), VALUES)
STEPS = st.lists(st.tuples(VALUES, VALUES, LOSSES, st.integers(1, 6)), max_size=25)


class Loop:
    """A plain loop whose gradients, losses and batches are multiplied by what was drawn."""

    def __init__(self) -> None:
        self.network = mlp(norm=True)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        kept = SnapshotStore(in_checkpoint=True)  # to go on exactly, in an incident or not
        self.guard = Guard(self.network, on_exhausted="continue", snapshots=kept)
        self.guard.attach(self.optimizer)
        self.count = 0

    def step(self, by: float, inputs: float, loss: float | None) -> tuple[Any, ...]:
        x, y = BATCHES[self.count % len(BATCHES)]
        self.count += 1
        self.optimizer.zero_grad()
        found = nn.functional.mse_loss(self.network(x * inputs), y)
        found.backward()
        with torch.no_grad():
            for p in self.network.parameters():
                if p.grad is not None:
                    p.grad.mul_(by)
        witness: Tensor | None = None if loss is None else found.detach() * loss
        report = self.guard.before_step(self.optimizer, loss=witness, batch=(x * inputs, y))
        poisoned = not all(p.grad is None or bool(p.grad.isfinite().all()) for p in self.network.parameters())
        assert not poisoned
        self.optimizer.step()
        for state in self.optimizer.state.values():
            assert all(bool(value.isfinite().all()) for value in state.values())
        return repr(report.verdict), repr(report.decision), repr(report.outcomes), report.skipped

    def state(self) -> Any:
        return through_a_file([self.network.state_dict(), self.optimizer.state_dict(), self.guard.state_dict()])

    def load(self, state: Any) -> None:
        for part, saved in zip((self.network, self.optimizer, self.guard), state, strict=True):
            part.load_state_dict(saved)


@given(steps=STEPS, cut=st.integers(0, 60))
def test_any_run_is_guarded_and_resumes_at_any_step(steps: list[Any], cut: int) -> None:
    fed = [(by, inputs, loss) for by, inputs, loss, times in steps for _ in range(times)]
    silent = len(list(itertools.takewhile(lambda what: what[0] * what[1] == 0.0, fed)))
    assume(not 0 < silent < len(fed) or not abs(fed[silent][0]) > 1e15)  # see the test that is expected to fail
    whole = Loop()
    saved, told = None, []
    for number, what in enumerate(fed):
        if number == cut:
            saved = whole.state()
        told.append(whole.step(*what))
        assert all(bool(value.isfinite().all()) for value in whole.network.state_dict().values())
    if saved is None:
        return
    resumed = Loop()
    resumed.load(saved)
    resumed.count = cut
    assert [resumed.step(*what) for what in fed[cut:]] == told[cut:]
    assert same(resumed.state(), whole.state())


def test_a_first_gradient_whose_square_overflows_does_not_end_up_in_adams_second_moment() -> None:
    loop = Loop()
    skipped = [loop.step(1e21 if number < 2 else 1.0, 1.0, 1.0)[-1] for number in range(9)]
    # Two in a row are treated as a bad start: its layers are measured in one batch, and scaled by the next.
    assert skipped[:6] == [True] * 4 + [False] * 2
    assert all(state["exp_avg_sq"].isfinite().all() for state in loop.optimizer.state.values())


def test_nor_does_one_that_follows_on_a_step_without_gradients() -> None:
    loop = Loop()
    loop.step(0.0, 0.0, 1.0)
    assert loop.step(1e30, 1.0, 1.0)[-1]


def test_what_no_optimizer_can_hold_is_skipped_when_no_treatment_is_left() -> None:
    loop = Loop()
    steps = [(1e-10, 3e38, 1.0), *[(3e38, 0.0, 1.0)] * 5, *[(1e30, 0.0, 1e-45)] * 5]
    assert all(loop.step(*what)[-1] for what in steps)


def test_a_single_nan_while_the_first_batch_is_being_forgotten_is_skipped() -> None:
    """The treatment of what no treatment is left for must not let it pass."""
    loop = Loop()
    skipped = [loop.step(by, 1.0, 1.0)[-1] for by in (1.0, *[1e-10] * 4, math.inf, 1.0)]
    assert skipped[5]


def test_a_guard_that_met_its_optimizer_before_the_state_was_loaded_keeps_the_loaded_statistics() -> None:
    whole = Loop()
    for _ in range(10):
        whole.step(1.0, 1.0, 1.0)
    resumed = Loop()
    resumed.load(whole.state())
    assert resumed.step(1.0, math.nan, 1.0)[-1]
    assert same(dict(resumed.network.state_dict()), dict(whole.network.state_dict()))
