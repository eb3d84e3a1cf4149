"""How a run ends: because the guard stops it, or with an exception after which all is put back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lightning_gradguard.records import StepReport

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger("lightning_gradguard")


def stop(trainer: Trainer, report: StepReport, told: str) -> None:
    """Stop a run after this step, and say why; ``told`` is what happened in it."""
    trainer.should_stop = True
    reason = report.decision.reason if report.decision is not None else "the budget is spent"
    if trainer.is_global_zero:
        log.error("GradGuard stops the run at step %d: %s.\n%s", trainer.global_step, reason, told)


def put_back_after(exception: BaseException, ways: Iterable[Callable[[], object]]) -> None:
    """Put back what can be after an exception, which stays the one that is told of."""
    for put_back in ways:
        try:
            put_back()
        except Exception as error:
            # A device that is gone answers nothing more, and it is the first error that tells why.
            log.warning("GradGuard: after %r this failed too: %r", exception, error)
