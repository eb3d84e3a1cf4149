"""The callback on Hugging Face's own Trainer, and the guard in an accelerate loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from tests.builders import mlp, regression, same, spoil

transformers: Any = pytest.importorskip("transformers")
accelerate: Any = pytest.importorskip("accelerate")


class Model(nn.Module):
    """A regression, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(norm=True)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        y = self.network(x)
        return {"loss": nn.functional.mse_loss(y, labels), "logits": y}


def train(root: Path, batches: Any, *callbacks: Any, **options: Any) -> tuple[Any, Any]:
    rows = [{"x": x, "labels": y} for batch in batches for x, y in zip(*batch, strict=True)]
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "use_cpu": True}
    arguments = transformers.TrainingArguments(
        str(root), num_train_epochs=1, per_device_train_batch_size=8, learning_rate=0.01, seed=1, **quiet, **options
    )
    torch.manual_seed(1)
    run = transformers.Trainer(Model(), arguments, train_dataset=rows, callbacks=list(callbacks))
    run.get_train_dataloader = lambda: run.accelerator.prepare(  # in order
        torch.utils.data.DataLoader(rows, batch_size=8)
    )
    run.train()
    return run, {**run.model.state_dict(), "state": list(run.optimizer.state.values())}


def callback(**options: Any) -> Any:
    from lightning_gradguard.integrations.transformers import GradGuardCallback

    return GradGuardCallback(**options)


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_healthy_run_ends_bit_identical(options: dict[str, Any], tmp_path: Path) -> None:
    guard = callback()
    ends = [train(tmp_path, regression(40), *guards, **options)[1] for guards in ((), (guard,))]
    assert same(*ends) and not guard.incidents
    assert guard.guard.state_dict()["lanes"]["0"]["steps"] == 40 // options.get("gradient_accumulation_steps", 1)


def test_explosions_are_seen_before_they_are_clipped(tmp_path: Path) -> None:
    batches = [(x, y * (1e4 if i == 60 else 1.0)) for i, (x, y) in enumerate(regression(100))]
    guard = callback()
    run, _ = train(tmp_path, batches, guard, max_grad_norm=1.0)
    assert [(i.step, i.form) for i in guard.incidents] == [(60, "sudden")], guard.guard.report()
    assert guard.incidents[0].actions[0].verdict.value > 1e3
    assert (tmp_path / "gradguard.jsonl").exists() and run.state.global_step == 100


def test_a_nan_leaves_no_trace_but_in_the_schedule(tmp_path: Path) -> None:
    batches, constant = regression(40), {"lr_scheduler_type": "constant"}
    _, plain = train(tmp_path, batches[:20] + batches[21:], **constant)
    guard = callback(journal=False)
    _, sick = train(tmp_path, spoil(batches, 20), guard, **constant)
    assert same(plain, sick) and [i.culprit for i in guard.incidents] == [None] and not list(tmp_path.iterdir())


def test_an_accelerate_loop(tmp_path: Path) -> None:
    from lightning_gradguard.integrations.accelerate import guarding

    def run(batches: Any, guard: Guard | None) -> Any:
        accelerator = accelerate.Accelerator(cpu=True)
        model, optimizer = mlp(), None
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))

        def loop() -> None:
            for x, y in batches:
                optimizer.zero_grad()
                accelerator.backward(nn.functional.mse_loss(model(x), y))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()

        if guard is None:
            loop()
        else:
            guard.bind(model)
            with guarding(guard, optimizer):
                loop()
        return model.state_dict()

    batches, guard = regression(40), Guard()
    plain = run(batches[:20] + batches[21:], None)
    assert same(plain, run(batches[:20] + batches[21:], Guard()))
    assert same(plain, run(spoil(batches, 20), guard)) and len(guard.incidents) == 1
    assert all(math.isfinite(float(value.sum())) for value in plain.values())
