"""The watch over the optimizer's state, and what it says of one that was written to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from lightning_gradguard.attribution.optimizer_state import StateWatch

Optimizer = torch.optim.Optimizer
Overwrite = Callable[[Tensor], object]

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
    "amsgrad": lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
    "one-by-one": lambda p: torch.optim.AdamW(p, 1e-3, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 1e-2),
}


class Loop:
    """A small regression under a guard; ``happen`` is called before each step."""

    def __init__(self, optimizer: str, *, guarded: bool = True, mode: str = "guard") -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.optimizer: Optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self.guard = Guard(self.net, mode=mode) if guarded else None  # type: ignore[arg-type]
        self.data = torch.Generator().manual_seed(1)
        self.reports: list[str] = []

    def run(self, steps: int, happen: Callable[[int, Optimizer], object] = lambda step, optimizer: None) -> None:
        for step in range(steps):
            with torch.no_grad():
                happen(step, self.optimizer)
            x = torch.randn(32, 6, generator=self.data)

            def closure(x: Tensor = x) -> Tensor:
                self.optimizer.zero_grad()
                loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
                loss.backward()
                return loss

            loss = closure()
            if self.guard is not None:
                report = self.guard.before_step(self.optimizer, loss=loss)
                self.reports.append(report.verdict.detector if report.verdict is not None else "")
            self.optimizer.step(closure if isinstance(self.optimizer, torch.optim.LBFGS) else None)

    @property
    def weights(self) -> Tensor:
        return nn.utils.parameters_to_vector(self.net.parameters()).detach().clone()


def each(optimizer: Optimizer, key: str, overwrite: Overwrite) -> None:
    for entry in optimizer.state.values():
        overwrite(entry[key])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizers_own_writes_are_none(optimizer: str) -> None:
    loop = Loop(optimizer, guarded=False)
    watch, seen = StateWatch(loop.optimizer), []
    loop.run(20, lambda step, _: seen.append(watch.written()))
    assert not any(seen)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "amsgrad", "fused", "one-by-one", "rmsprop", "adagrad"])
def test_one_write_of_somebody_else_is_seen_before_the_step(optimizer: str) -> None:
    loop = Loop(optimizer, guarded=False)
    watch, seen = StateWatch(loop.optimizer), []

    def happen(step: int, optimizer: Optimizer) -> None:
        if step == 12:
            next(v for v in next(iter(optimizer.state.values())).values() if v.dim()).mul_(2.0)
        seen.append(watch.written())

    loop.run(20, happen)
    assert [i for i, written in enumerate(seen) if written] == [12]


def test_a_state_that_was_replaced_is_seen_as_well() -> None:
    loop = Loop("adam", guarded=False)
    watch, seen = StateWatch(loop.optimizer), []

    def happen(step: int, optimizer: Optimizer) -> None:
        if step == 6:
            optimizer.load_state_dict(optimizer.state_dict())
        if step == 12:
            for entry in optimizer.state.values():
                entry |= {key: entry[key].clone() for key in ("exp_avg", "exp_avg_sq")}
        seen.append(watch.written())

    loop.run(20, happen)
    # That tensors were replaced is seen when the old ones have not been written to for a step.
    assert [i for i, written in enumerate(seen) if written] == [6, 13]


def test_parameters_without_a_gradient_cost_no_look_at_the_whole_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts, and heads of several tasks, are not used at every step."""
    heads = [nn.Linear(4, 1), nn.Linear(4, 1)]
    optimizer = torch.optim.Adam([p for head in heads for p in head.parameters()], 1e-3)
    watch, looks = StateWatch(optimizer), []
    look_up = StateWatch._look_up
    monkeypatch.setattr(StateWatch, "_look_up", lambda self: looks.append(step) or look_up(self))
    for step in range(40):
        optimizer.zero_grad()
        used = heads if step < 4 or step % 3 == 0 else heads[:1]
        sum(head(torch.ones(2, 4)).sum() for head in used).backward()
        watch.written()
        optimizer.step()
    assert max(looks) <= 3


def test_tensors_that_keep_no_count_are_not_watched() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    with torch.inference_mode():
        optimizer.state[parameter] = {"momentum_buffer": torch.ones(3)}
    watch = StateWatch(optimizer)
    assert [watch.written() for _ in range(3)] == [False] * 3


NOISE = torch.Generator().manual_seed(3)
SPOILT: list[tuple[str, str, Overwrite]] = [
    ("sgd", "momentum_buffer", lambda t: t.copy_(1e4 * torch.randn(t.shape, generator=NOISE))),
    ("sgd", "momentum_buffer", lambda t: t.fill_(torch.nan)),
    ("adam", "exp_avg", lambda t: t.fill_(torch.inf)),
    ("adam", "exp_avg", lambda t: t.mul_(1e5)),
    ("adam", "exp_avg_sq", lambda t: t.zero_()),
    ("fused", "exp_avg_sq", lambda t: t.fill_(torch.nan)),
    ("fused", "exp_avg_sq", lambda t: t.zero_()),
    ("one-by-one", "exp_avg", lambda t: t.copy_(1e3 * torch.randn(t.shape, generator=NOISE))),
    ("rmsprop", "momentum_buffer", lambda t: t.add_(1e4)),
    ("adagrad", "sum", lambda t: t.mul_(1e9)),
]


@pytest.mark.parametrize(("optimizer", "key", "overwrite"), SPOILT)
def test_no_update_is_made_from_a_spoilt_state(optimizer: str, key: str, overwrite: Overwrite) -> None:
    loop = Loop(optimizer)
    sizes: list[float] = []
    last = loop.weights

    def happen(step: int, opt: Optimizer) -> None:
        nonlocal last
        sizes.append(float((loop.weights - last).norm()))
        last = loop.weights
        if step == 60:
            each(opt, key, overwrite)

    loop.run(90, happen)
    assert loop.reports[60] == "spoilt-state" and set(loop.reports[:60] + loop.reports[61:]) == {""}
    assert loop.guard is not None
    (incident,) = loop.guard.incidents
    assert (
        incident.form == "state"
        and incident.remedies == ("skip", "rollback")
        and key in incident.actions[0].verdict.reason
    )
    # Going back from 60 to 40 is no update, but shows as a change.
    assert all(size < 10 * max(sizes[1:60]) for size in sizes[62:])
    each(loop.optimizer, key, lambda t: pytest.fail("not finite") if not t.isfinite().all() else None)


INNOCENT: list[tuple[str, str, Overwrite]] = [
    ("sgd", "momentum_buffer", lambda t: t.zero_()),
    ("sgd", "momentum_buffer", lambda t: t.mul_(3.0)),
    ("adam", "exp_avg", lambda t: t.zero_()),
    ("adam", "exp_avg_sq", lambda t: t.mul_(2.0)),
    ("rmsprop", "square_avg", lambda t: t.mul_(0.5)),
    ("adagrad", "sum", lambda t: t.fill_(0.1)),
]


@pytest.mark.parametrize(("optimizer", "key", "overwrite"), INNOCENT)
def test_what_users_do_to_a_state_is_left_alone(optimizer: str, key: str, overwrite: Overwrite) -> None:
    def happen(step: int, opt: Optimizer) -> None:
        if step % 25 == 24:
            each(opt, key, overwrite)

    guarded, plain = Loop(optimizer), Loop(optimizer, guarded=False)
    for loop in (guarded, plain):
        loop.run(120, happen)
    assert guarded.guard is not None and guarded.guard.incidents == ()
    assert torch.equal(guarded.weights, plain.weights)


def test_what_was_infinite_in_health_is_no_evidence() -> None:
    """An optimizer of the user's own may begin with an infinity."""
    loop = Loop("sgd")

    def happen(step: int, opt: Optimizer) -> None:
        for entry in opt.state.values():
            entry.setdefault("least", torch.full((3,), torch.inf))
            if step > 20 and step % 20 == 15:
                entry["least"].fill_(torch.inf)

    loop.run(60, happen)
    assert loop.guard is not None and loop.guard.incidents == ()


def test_all_of_adams_moments_may_be_reset_together() -> None:
    def happen(step: int, opt: Optimizer) -> None:
        if step == 60:
            each(opt, "exp_avg", Tensor.zero_)
            each(opt, "exp_avg_sq", Tensor.zero_)

    loop = Loop("adam")
    loop.run(90, happen)
    assert loop.guard is not None and loop.guard.incidents == ()


def test_who_only_watches_reports_it_and_changes_nothing() -> None:
    loops = Loop("adam", mode="watch"), Loop("adam", guarded=False)
    for loop in loops:
        loop.run(61, lambda step, opt: each(opt, "exp_avg", lambda t: t.fill_(torch.nan)) if step == 60 else None)
    assert loops[0].reports[60] == "spoilt-state"
    torch.testing.assert_close(loops[0].weights, loops[1].weights, rtol=0, atol=0, equal_nan=True)
