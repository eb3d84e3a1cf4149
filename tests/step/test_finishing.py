"""A run that ends in the midst of an explosion ends with its newest copy, and no other does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard import GradGuard
from tests.builders import Net, loader, mlp, regression, same, spoil, trainer
from tests.step.loop import Loop

STEPS = 120


class Whole(Net):
    """A regression that learns."""

    def __init__(self) -> None:
        super().__init__(mlp(), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9))


class Broken(Whole):
    """Its weights are spoilt by the last update but one, which the last batch sees."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEPS - 1:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.mul_(300.0)


def fit(module: Net, root: Path, batches: list[tuple[Tensor, Tensor]], **options: Any) -> GradGuard:
    guard = GradGuard(**options)
    trainer(root, callbacks=[guard], max_steps=-1, max_epochs=1).fit(module, loader(batches))
    return guard


def error(module: Net) -> float:
    x, y = (torch.cat(part) for part in zip(*regression(20, seed=5), strict=True))
    with torch.no_grad():
        return float(nn.functional.mse_loss(module.network(x), y))


def test_weights_that_the_last_update_has_spoilt_are_not_the_last(tmp_path: Path) -> None:
    module = Broken()
    guard = fit(module, tmp_path, regression(STEPS))
    whole = Whole()
    fit(whole, tmp_path, regression(STEPS))
    assert error(module) < 2.0 * error(whole)
    assert guard.incidents[-1].remedies[-1] == "rollback"
    assert guard.incidents[-1].actions[-1].verdict.detector == "end"


def test_who_only_watches_leaves_them(tmp_path: Path) -> None:
    module = Broken()
    fit(module, tmp_path, regression(STEPS), mode="watch")
    assert error(module) > 100.0


def test_a_bad_last_batch_is_no_evidence(tmp_path: Path) -> None:
    batches = regression(STEPS)
    before = Whole()
    fit(before, tmp_path, batches[:-1])
    after = Whole()
    fit(after, tmp_path, spoil(batches, STEPS - 1, value=1e6))
    assert same(dict(before.state_dict()), dict(after.state_dict()))


def test_a_healthy_run_is_left_as_it_is() -> None:
    loop = Loop(steps=100)
    before = {name: value.clone() for name, value in loop.network.state_dict().items()}
    loop.guard.finish()
    assert same(before, dict(loop.network.state_dict()))
