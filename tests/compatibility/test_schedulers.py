"""Schedulers: the learning-rate back-off is seen by the update, by no scheduler, and undone by none."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import lr_scheduler as schedulers

from lightning_gradguard import GradGuard
from lightning_gradguard.detectors import Detector
from lightning_gradguard.records import Verdict
from lightning_gradguard.remedies import LearningRateBackoff
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, trainer
from tests.compatibility.matrix import cells
from tests.compatibility.runs import finite

EPOCHS, STEPS = 3, 15
CHAIN: Any = schedulers.ChainedScheduler
MAKE: dict[str, Any] = {
    "StepLR": partial(schedulers.StepLR, step_size=7, gamma=0.5),
    "MultiStepLR": partial(schedulers.MultiStepLR, milestones=[5, 20], gamma=0.5),
    "ExponentialLR": partial(schedulers.ExponentialLR, gamma=0.98),
    "CosineAnnealingLR": partial(schedulers.CosineAnnealingLR, T_max=20),
    "CosineAnnealingWarmRestarts": partial(schedulers.CosineAnnealingWarmRestarts, T_0=10),
    "OneCycleLR": partial(schedulers.OneCycleLR, max_lr=0.02, total_steps=EPOCHS * STEPS + 1),
    "CyclicLR": partial(schedulers.CyclicLR, base_lr=0.001, max_lr=0.02, step_size_up=8),
    "LambdaLR": partial(schedulers.LambdaLR, lr_lambda=lambda step: 0.97**step),
    "MultiplicativeLR": partial(schedulers.MultiplicativeLR, lr_lambda=lambda step: 0.99),
    "ConstantLR": partial(schedulers.ConstantLR, factor=0.5, total_iters=9),
    "LinearLR": partial(schedulers.LinearLR, total_iters=20),
    "PolynomialLR": partial(schedulers.PolynomialLR, total_iters=100, power=2.0),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, total_iters=5), schedulers.ExponentialLR(o, 0.99)], milestones=[5]
    ),
    "ChainedScheduler": lambda o: CHAIN([schedulers.ConstantLR(o, 0.5, 9), schedulers.ExponentialLR(o, 0.99)]),
    "ReduceLROnPlateau": partial(schedulers.ReduceLROnPlateau, patience=0, factor=0.7),
}


def alarmed(steps: tuple[int, ...]) -> GradGuard:
    class Alarm(Detector):
        name = "alarm"

        def judge(self, statistics: Any, baseline: Any) -> Verdict | None:
            return Verdict("divergence", self.name, 1.0, 1.0, "for a test") if statistics.step in steps else None

    return GradGuard(detectors=[Alarm()], remedies=[LearningRateBackoff()], journal=False)


class Watches(Callback):
    """Log what a plateau scheduler monitors, the same in every run, and see the rates that updates really use."""

    def __init__(self) -> None:
        self.used: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        optimizer = trainer.optimizers[0]
        real = optimizer._optimizer_step_post_hooks
        optimizer.register_step_post_hook(lambda o, *_: self.used.append(float(o.param_groups[0]["lr"])))
        # Before the guard's own hook, which puts the rate back.
        real.move_to_end(next(reversed(real)), last=False)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        pl_module.log("watched", 1.0)


def by_interval() -> dict[str, tuple[str, str]]:
    return {f"{name}, each {interval}": (name, interval) for name in MAKE for interval in ("step", "epoch")}


def test_every_scheduler_of_torch_is_tried() -> None:
    there = {
        name
        for name, kind in vars(schedulers).items()
        if isinstance(kind, type) and issubclass(kind, (schedulers.LRScheduler, schedulers.ReduceLROnPlateau))
    }
    assert there - {"LRScheduler", "_LRScheduler"} == set(MAKE)


@pytest.mark.parametrize("case", cells("Schedulers", by_interval(), "healthy", "sick"))
def test_no_scheduler_undoes_the_factor_nor_sees_it(case: tuple[str, str], tmp_path: Path) -> None:
    name, interval = case

    def run(callbacks: list[Callback]) -> tuple[list[float], Any, list[float], Any]:
        watches = Watches()
        sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
        module = Net(mlp(), sgd, MAKE[name], interval=interval)
        fit = trainer(tmp_path, callbacks=[*callbacks, watches], max_epochs=EPOCHS)
        fit.fit(module, loader(regression(STEPS)))
        state = fit.lr_scheduler_configs[0].scheduler.state_dict()
        return (
            module.rates,
            {k: v for k, v in state.items() if isinstance(v, (int, float, list))},
            watches.used,
            frozen_copy(fit),
        )

    plain_rates, plain_state, plain_used, plain_end = run([])
    healthy_rates, _, healthy_used, healthy_end = run([GradGuard(journal=False)])
    assert same((plain_rates, plain_used, plain_end), (healthy_rates, healthy_used, healthy_end))
    rates, state, used, end = run([alarmed((4, 20))])
    assert same((plain_rates, str(plain_state)), (rates, str(state)))
    assert finite(end)
    ratios = [a / b for a, b in zip(used, plain_used, strict=True) if b > 1e-9]
    assert ratios[:4] == [1.0] * 4 and max(ratios[4:7]) < 0.99 and max(ratios) == 1.0


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "CosineAnnealingWarmRestarts", "CyclicLR"])
def test_a_schedule_that_comes_back_does_not_bring_back_a_rate_that_lost_the_run(name: str, tmp_path: Path) -> None:
    watches = Watches()
    module = Net(mlp(), partial(torch.optim.SGD, lr=0.01, momentum=0.9), MAKE[name])
    fit = trainer(tmp_path, callbacks=[alarmed((4, 20)), watches], max_epochs=EPOCHS)
    fit.fit(module, loader(regression(STEPS)))
    assert max(watches.used[4:]) <= 0.5 * module.rates[3] * (1.0 + 1e-9)
