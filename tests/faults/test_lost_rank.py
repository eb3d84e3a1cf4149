"""One of two DDP processes is killed: the other ends with an error in bounded time, whatever both were doing."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from lightning_gradguard import GradGuard
from tests.builders import Net, loader, mlp, regression, spoil, trainer
from tests.faults.victims import ADAMW, announced, quiet

ROOT = Path(__file__).parents[2]
TIMEOUT = 10
"""Seconds that the process group waits for a rank; a dead one is noticed at once, as its connections close."""
MOMENTS = {
    "between two steps": "on_train_batch_start",
    "before the gradients are judged": "on_before_optimizer_step",
    "after the update": "on_train_batch_end",
    "inside the guard, before a snapshot": "take",
    "inside the guard, before suspects are shared": "gather",
    "inside the guard, before losses are averaged": "mean",
}


class Dies(Callback):
    """Kill this process, once it has come so far."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._die)

    def _die(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def die(_: Any) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process outlived SIGKILL")


def main(rank: int, moment: str, root: Path) -> None:
    """Train on one of the two processes; the second one dies."""
    quiet()
    guard = GradGuard(log_every=5)
    callbacks: list[Callback] = [guard]
    if rank == 1:
        hook = MOMENTS[moment]
        if hook.startswith("on_"):
            callbacks.insert(0, Dies(hook, 12))
        elif hook == "take":
            from lightning_gradguard import SnapshotStore

            announced(SnapshotStore, "take", die, "")
        else:
            callbacks.append(Replaces(guard, hook))
    batches = spoil(regression(80)[rank::2], 20)
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=TIMEOUT))
    fit = trainer(root, callbacks=callbacks, strategy=strategy, devices=2, use_distributed_sampler=False)
    fit.fit(Net(mlp(), ADAMW), loader(batches))
    print("it ended as if nothing had happened")


class Replaces(Callback):
    """Die in the place of one of the guard's collectives."""

    def __init__(self, guard: GradGuard, name: str) -> None:
        self.guard, self.name = guard, name

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        collectives = self.guard.guard._run.collectives
        self.guard.guard.share(dataclasses.replace(collectives, **{self.name: die}))


@pytest.mark.fault("one of two DDP ranks killed")
@pytest.mark.parametrize("moment", [pytest.param(m, marks=[pytest.mark.slow] * ("suspects" not in m)) for m in MOMENTS])
def test_the_other_rank_ends_with_an_error(moment: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    shared |= {"GLOO_SOCKET_IFNAME": "lo"}
    started = []
    for rank in range(2):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "tests.faults.test_lost_rank", str(rank), moment, str(tmp_path)]
        with open(tmp_path / f"{rank}.log", "w") as log:
            started.append(
                subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        assert started[1].wait(90) == -signal.SIGKILL, (tmp_path / "1.log").read_text()[-2000:]
        status = started[0].wait(2 * TIMEOUT + 10)
        said = (tmp_path / "0.log").read_text()
        assert status not in (0, -signal.SIGKILL), said[-2000:]
        assert "Error" in said and "ended as if nothing" not in said
    finally:
        for process in started:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
