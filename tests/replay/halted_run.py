"""A training script as a user has it, with a NaN in a sample of the last rank.

Run as ``python -m tests.replay.halted_run DIRECTORY PROCESSES``.
"""

from __future__ import annotations

import logging
import math
import os
import sys

import torch
from lightning.pytorch import Trainer

from lightning_gradguard import GradGuard
from tests.builders import loader
from tests.replay.faults import Classifier, batches

BAD_STEP, BAD_SAMPLE = 20, 5

if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    root, processes = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    made = batches()
    if int(os.environ.get("LOCAL_RANK", "0")) == processes - 1:
        made[BAD_STEP][0][BAD_SAMPLE, 4] = math.nan
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=1,
        default_root_dir=root,
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[GradGuard(mode="halt")],
    )
    trainer.fit(Classifier(), loader(made))
    print("it went on")
