"""Scalars for loggers other than TensorBoard's (CSV, W&B, MLflow, ...)."""

from __future__ import annotations

from collections.abc import Callable

from lightning_gradguard import checks
from lightning_gradguard.diagnostics.scalars import scalars
from lightning_gradguard.diagnostics.sink import Sink
from lightning_gradguard.records import Window


class MetricsSink(Sink):
    """Hand the numbered scalars to any function that logs metrics.

    Args:
        log_metrics: Called as ``log_metrics(metrics, step)``; a Lightning ``Logger.log_metrics`` fits.
        optimizers: Count of optimizers; with more than one the tags say which.
    """

    def __init__(self, log_metrics: Callable[[dict[str, float], int | None], None], *, optimizers: int = 1) -> None:
        self._log_metrics = log_metrics
        self._optimizers = checks.whole("optimizers", optimizers, least=1)

    def window(self, window: Window) -> None:
        """Log one point of each scalar."""
        self._log_metrics(scalars(window, window.optimizer if self._optimizers > 1 else None), window.step)
