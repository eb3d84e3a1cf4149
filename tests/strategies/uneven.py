"""Two ranks of which one has half as many batches: Lightning enters no Join, and the longer one waits in vain."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from lightning_gradguard import GradGuard
from tests.builders import Net, loader, mlp, trainer
from tests.strategies.ddp_scenarios import SGD, data


def uneven(rank: int, root: Path) -> dict[str, Any]:
    guards = [GradGuard()] if os.environ["GUARDED"] == "1" else []
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=5))
    fit = trainer(root, strategy=strategy, callbacks=guards, devices=2, use_distributed_sampler=False)
    fit.fit(Net(mlp(), SGD), loader(data(rank)[: 40 - 20 * rank]))
    return {}


SCENARIOS = {"uneven": uneven}
