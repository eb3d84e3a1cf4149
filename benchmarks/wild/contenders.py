"""What the wild runs are trained under: nothing, two simple guards, GradGuard; other variants of a run unguarded."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.wild.case import Case, Variant

GUARD = "gradguard"
SICK = ("none", "clip", "skip_clip", GUARD, "twin", "corrected")
HEALTHY = ("none", GUARD, "slower", "faster")
NAMES = tuple(dict.fromkeys((*SICK, *HEALTHY)))
SIMPLE = ("none", "clip", "skip_clip")
"""What a user has without GradGuard."""


class Clip(Callback):
    """Clip the global gradient norm, in manual optimization too.

    Args:
        norm: The largest norm that is let through.
        skip: Whether a step with a non-finite gradient is left out.
    """

    def __init__(self, norm: float = 1.0, skip: bool = False) -> None:
        self.norm, self.skip = norm, skip

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clip what this optimizer is about to step by; without gradients an optimizer changes nothing."""
        parameters: list[Tensor] = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.norm)
        if self.skip and not norm.isfinite():
            for p in parameters:
                p.grad = None


def applies(name: str, case: Case) -> bool:
    """Whether a case is run under a contender of this name."""
    return name in (SICK if case.kind == "sick" else HEALTHY)


def variant(name: str) -> Variant:
    """Say which variant of a run a contender is given."""
    variants: dict[str, Variant] = {"twin": "twin", "corrected": "corrected", "slower": "slower", "faster": "faster"}
    return variants.get(name, "written")


def callbacks(name: str) -> list[Callback]:
    """Make a contender's callbacks."""
    if name == "clip":
        return [Clip()]
    if name == "skip_clip":
        return [Clip(skip=True)]
    if name == GUARD:
        from lightning_gradguard import GradGuard

        return [GradGuard(journal=False)]
    return []
