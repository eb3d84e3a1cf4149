"""Odd numbers of an optimizer are brought to usable ones on trial: three runs that are rescued, and one that is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from lightning_gradguard.remedies import TuneOptimizer
from tests.builders import context_for, mlp, regression, same, through_a_file

Made = Callable[[Any], torch.optim.Optimizer]
HALF: Made = lambda parameters: torch.optim.Adam(parameters, lr=0.02)  # noqa: E731


class Factors(nn.Module):
    """Embeddings in half precision: the rows that are not in a batch have gradients of 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.users, self.items = nn.Embedding(60, 3), nn.Embedding(40, 3)
        self.half()

    def forward(self, pairs: Tensor) -> Tensor:
        """Return what users think of items."""
        return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1).float()


def ratings(count: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    users, items = torch.randn(60, 3), torch.randn(40, 3)
    pairs = [torch.stack([torch.randint(60, (32,)), torch.randint(40, (32,))], 1) for _ in range(count)]
    return [(p, (users[p[:, 0]] * items[p[:, 1]]).sum(1)) for p in pairs]


def train(module: nn.Module, optimizer: torch.optim.Optimizer, batches: Any, guard: Guard | None) -> list[float]:
    """Return the losses."""
    losses = []
    for x, y in batches:

        def closure(x: Any = x, y: Any = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(module(x), y)
            loss.backward()
            losses.append(float(loss))
            if guard is not None:
                guard.before_step(optimizer, loss=loss, batch=(x, y))
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            optimizer.step()
        if guard is not None:
            guard.after_step()
    return losses


def tuned(guard: Guard) -> list[str]:
    """Return how the trials of tuning ended."""
    trials = [trial for incident in guard.incidents for trial in incident.trials]
    return [trial.outcome for trial in trials if "tune" in trial.treatment]


def momentum(parameters: Any, much: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, momentum=much)


CASES: dict[str, tuple[Callable[[], nn.Module], Made, Callable[[int], Any]]] = {
    "an eps of 0": (Factors, HALF, ratings),
    "L-BFGS without a line search": (mlp, lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=4), regression),
    "momentum": (mlp, lambda p: momentum(p, 0.999), regression),
}


@pytest.mark.parametrize("case", ["an eps of 0", "momentum"])
def test_a_run_that_an_odd_number_has_lost_is_rescued(case: str) -> None:
    make, optimizer_of, batches = CASES[case]
    lost, rescued = make(), make()
    alone = train(lost, optimizer_of(lost.parameters()), batches(400), None)
    optimizer = optimizer_of(rescued.parameters())
    guard = Guard(rescued)
    guard.attach(optimizer)
    told = train(rescued, optimizer, batches(400), guard)
    untrained, late = told[0], sum(told[-20:]) / 20
    assert not sum(alone[-20:]) / 20 < 0.5 * untrained, "unguarded it is lost"
    assert late < 0.5 * untrained and "kept" in tuned(guard)
    assert "optimizer settings" in {trial.cause for incident in guard.incidents for trial in incident.trials}


@pytest.mark.parametrize("case", ["L-BFGS without a line search", "momentum"])
def test_a_run_that_does_well_keeps_its_numbers(case: str) -> None:
    make, _, batches = CASES[case]
    gentle: dict[str, Made] = {
        "L-BFGS without a line search": lambda p: torch.optim.LBFGS(p, lr=0.05, max_iter=2),
        "momentum": lambda p: torch.optim.SGD(p, lr=1e-4, momentum=0.99),
    }
    ends = []
    for guarded in (False, True):
        module = make()
        optimizer = gentle[case](module.parameters())
        guard = Guard(module) if guarded else None
        train(module, optimizer, batches(150), guard)
        ends.append(module.state_dict())
        assert guard is None or not guard.incidents
    assert same(dict(ends[0]), dict(ends[1]))


def test_numbers_that_did_not_help_are_put_back_unless_somebody_wrote_others() -> None:
    module = mlp()
    optimizer = momentum(module.parameters(), 0.995)
    remedy, context = TuneOptimizer(), context_for(module, optimizer)
    outcome = remedy.apply(context)
    assert (
        outcome.applied and outcome.detail == "momentum 0.995 -> 0.9" and optimizer.param_groups[0]["momentum"] == 0.9
    )
    remedy.take_back(context)
    assert optimizer.param_groups[0]["momentum"] == 0.995
    remedy.apply(context)
    optimizer.param_groups[0]["momentum"] = 0.5
    remedy.take_back(context)
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_what_a_later_trial_takes_back_is_its_own() -> None:
    module = mlp()
    optimizer = torch.optim.Adam(module.parameters(), betas=(0.999, 0.9))
    remedy, context = TuneOptimizer(), context_for(module, optimizer)
    assert remedy.apply(context).applied and not remedy.apply(context).applied, "nothing is odd any more"
    optimizer.param_groups[0]["betas"] = (0.99, 0.999)
    assert remedy.apply(context).detail == "betas (0.99, 0.999) -> (0.9, 0.999)"
    remedy.take_back(context)
    assert optimizer.param_groups[0]["betas"] == (0.99, 0.999)


def test_a_run_that_goes_on_in_mid_trial_can_still_put_them_back() -> None:
    module = mlp()
    optimizer = torch.optim.Adam(module.parameters(), betas=(0.999, 0.9))
    remedy, resumed, context = TuneOptimizer(), TuneOptimizer(), context_for(module, optimizer)
    remedy.apply(context)
    resumed.load_state_dict(through_a_file(remedy.state_dict()))
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999), "as long as it is on trial"
    resumed.take_back(context)
    assert optimizer.param_groups[0]["betas"] == (0.999, 0.9)


def test_a_failed_trial_takes_its_own_remedies_back_before_the_next_is_made() -> None:
    """Here the momentum is odd, and the trouble is a rate that no momentum makes good."""
    module = mlp()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e4, momentum=0.995)
    guard = Guard(module)
    guard.attach(optimizer)
    seen = []
    for x, y in regression(200):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(x), y)
        loss.backward()
        report = guard.before_step(optimizer, loss=loss, batch=(x, y))
        applied = [o.remedy for o in report.outcomes if o.applied and o.remedy not in ("skip", "clip")]
        seen += [(applied, optimizer.param_groups[0]["momentum"])] if applied else []
        optimizer.step()
        guard.after_step()
    first = next(index for index, (applied, _) in enumerate(seen) if "tune" in applied)
    assert seen[first][1] == 0.9
    assert "taken back" in tuned(guard)
    following = next(number for applied, number in seen[first + 1 :] if "tune" not in applied)
    assert following == 0.995
