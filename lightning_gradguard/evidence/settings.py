"""What is kept of a bad step, and how much of it: configuration only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_gradguard import checks


class Evidence:
    """Keep what a bad step was computed from, in a bundle that ``lightning-gradguard replay`` takes.

    A bundle is written at the first alarm of an incident, in the background. It holds statistics, random states,
    indices and weights. The batch, which may be people's data, is in it only where that is asked for, or under
    ``mode="halt"``. Files can be read by their owner only, and go nowhere by themselves.

    Args:
        directory: Where bundles go; by default ``gradguard_evidence`` in the directory of the run.
        bundles: Most bundles that one process writes in a run.
        max_bytes: Most bytes of a bundle's file; what does not fit is left out, the optimizer's state first, then the
            other batch, the weights, the batch, and the random states. Where even that is too much none is written.
        batch: Whether the batch is kept; None for only under ``mode="halt"``.
        weights: Whether weights and buffers from before the step are kept; otherwise the newest checkpoint is named.
        optimizer_state: Whether the optimizer's state is kept too.
        recompute: Whether the first bad step of an incident is computed three times again on the spot, so that a
            machine that computed it wrongly is named: True for the ``training_step`` of a LightningModule, or a
            function that returns the loss of a module and a batch.

    Raises:
        ValueError: An argument is out of range; the message names it, the constraint and the value.

    Example:
        >>> from lightning_gradguard import GradGuard
        >>> from lightning_gradguard.evidence import Evidence
        >>> guard = GradGuard(mode="halt", evidence=Evidence(max_bytes=2**30))
    """

    def __init__(
        self,
        *,
        directory: str | os.PathLike[str] | None = None,
        bundles: int = 3,
        max_bytes: int = 2**31,
        batch: bool | None = None,
        weights: bool = True,
        optimizer_state: bool = False,
        recompute: bool | Callable[[nn.Module, Any], Tensor] = False,
    ) -> None:
        if not isinstance(directory, (str, os.PathLike, type(None))):
            raise ValueError(f"directory must be a path, got {directory!r}")
        self.directory = None if directory is None else Path(directory)
        self.bundles = checks.whole("bundles", bundles)
        self.max_bytes = checks.whole("max_bytes", max_bytes, least=1)
        self.batch = None if batch is None else checks.flag("batch", batch)
        self.weights = checks.flag("weights", weights)
        self.optimizer_state = checks.flag("optimizer_state", optimizer_state)
        self.recompute = recompute if callable(recompute) else checks.flag("recompute", recompute)

    def __repr__(self) -> str:
        """Return it as it would be constructed."""
        return checks.described(self)
