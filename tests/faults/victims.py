"""What the processes of :mod:`tests.faults.processes` run: short trainings that tell how they ended."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from lightning_gradguard import GradGuard, SnapshotStore
from lightning_gradguard.defaults import default_detectors
from lightning_gradguard.detectors import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import GradientStatistics, Verdict
from tests.builders import SAFELY, Net, frozen_copy, mlp, regression, trainer

EPOCH, EPOCHS = 8, 12
ADAMW = partial(torch.optim.AdamW, lr=0.01)
STEPLR = partial(torch.optim.lr_scheduler.StepLR, step_size=15, gamma=0.8)
SICK = {22: math.nan, 44: 1.0}
"""What the loss is multiplied by, and when: a skipped step, and one at which the run is lost, and goes back slower."""
Mark = Callable[[str], None]


class Sick(Net):
    """A run whose loss is multiplied at some steps."""

    def __init__(self) -> None:
        super().__init__(mlp(norm=True), ADAMW, STEPLR)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * SICK.get(self.trainer.global_step, 1.0)


class Lost(Detector):
    """Call the run lost at one step."""

    name = "lost"

    def judge(self, statistics: GradientStatistics, baseline: Baseline) -> Verdict | None:
        return Verdict("divergence", self.name, 1.0, 1.0, "for a test") if statistics.step == 44 else None


class Resumable:
    """A loader that goes on in mid-epoch; Lightning saves its state."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.position = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Lightning never asks beyond the last batch, so what is at the end begins anew.
        self.position %= len(self.batches)
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Tells(Callback):
    """Mark each step, and those that are about to be sick."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self.mark(f"step {trainer.global_step}")
        if trainer.global_step in SICK:
            self.mark("incident")


class At(Callback):
    """Do something at the end of one step, once the record of it has been written."""

    def __init__(self, step: int, act: Callable[[Trainer], object]) -> None:
        self.step, self.act = step, act

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.act(trainer)


def quiet() -> None:
    """Silence what Lightning has to say; nobody reads it."""
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_gradguard"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="lightning.*")


def learned(guard: GradGuard) -> dict[str, object]:
    """Return a guard's state without the name of its run, which each has for its own."""
    return {key: value for key, value in guard.state_dict().items() if key != "run"}


def watcher() -> GradGuard:
    """Return a guard that goes back soon, and writes often."""
    return GradGuard(detectors=[*default_detectors(), Lost()], snapshots=SnapshotStore(every=10), log_every=5)


def announced(owner: type, method: str, mark: Mark, name: str) -> None:
    """Let a method tell that it begins; this process has nothing else to do."""
    original = getattr(owner, method)

    def telling(*args: Any, **kwargs: Any) -> Any:
        mark(name)
        return original(*args, **kwargs)

    setattr(owner, method, telling)


def newest(root: Path) -> Path | None:
    """Return the checkpoint of the latest epoch."""
    found = sorted((root / "checkpoints").glob("epoch=*.ckpt"), key=lambda p: int(re.findall(r"\d+", p.name)[0]))
    return found[-1] if found else None


def train(root: Path, marks: Any = None) -> None:
    """Train from the newest checkpoint to the end, with a checkpoint every epoch; leave what came out in ``end.pt``."""
    quiet()
    mark: Mark = (lambda what: None) if marks is None else marks.send
    announced(SnapshotStore, "take", mark, "snapshot")
    announced(Trainer, "save_checkpoint", mark, "checkpoint")
    guard = watcher()
    keep = ModelCheckpoint(root / "checkpoints", "{epoch}", save_top_k=-1, every_n_epochs=1)
    fit = trainer(
        root,
        callbacks=[Tells(mark), guard, keep],
        max_epochs=EPOCHS,
        enable_checkpointing=True,
        logger=TensorBoardLogger(root, name="", version=""),
    )
    fit.fit(Sick(), Resumable(regression(EPOCH)), ckpt_path=newest(root), **SAFELY)
    torch.save({"end": frozen_copy(fit), "guard": learned(guard), "steps": fit.global_step}, root / "end.pt")


def interrupted(root: Path, marks: Any) -> None:
    """Train until a signal ends it; leave what it left in ``interrupted.pt``."""
    quiet()
    # A shell without a terminal starts what runs in the background deaf to Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    guard, module = watcher(), Sick()
    logger = TensorBoardLogger(root, name="", version="")
    keep = OnExceptionCheckpoint(root / "checkpoints", "epoch=99")
    callbacks = [Tells(marks.send), guard, keep]
    fit = trainer(root, callbacks=callbacks, max_epochs=EPOCHS, enable_checkpointing=True, logger=logger)
    error: BaseException | None = None
    try:
        fit.fit(module, Resumable(regression(EPOCH)))
    except BaseException as raised:
        error = raised
    optimizer, schedule = fit.optimizers[0], fit.lr_scheduler_configs[0].scheduler
    left = {
        "error": type(error).__name__,
        "steps": fit.global_step,
        "factor": guard.state_dict()["lanes"]["0"]["remedies"]["backoff"]["factor"],
        "rates": [float(group["lr"]) for group in optimizer.param_groups],
        # The signal may come within the scheduler's own step, which counts first and sets the rate then.
        "schedule": [0.01 * 0.8 ** (epoch // 15) for epoch in (schedule.last_epoch, schedule.last_epoch - 1)],
        "hooks": sum(hooks_of(m) for m in module.modules()) + len(optimizer._optimizer_step_post_hooks),
        "armed": guard.guard._run.investigation._probe.armed,
        "open": [str(f) for f in open_files() if f.name == "gradguard.jsonl"],
    }
    torch.save(left, root / "interrupted.pt")


def hooks_of(module: nn.Module) -> int:
    """Count the hooks on a module."""
    return len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)


def open_files() -> list[Path]:
    """Return the files that this process has open; none where the system does not tell."""
    root = Path("/proc/self/fd")
    found = []
    for link in root.iterdir() if root.exists() else ():
        with contextlib.suppress(OSError):  # the listing's own is closed by now
            found.append(link.readlink())
    return found
