"""Rollback to a recent snapshot known to be good."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lightning_gradguard import checks
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext
from lightning_gradguard.snapshots.snapshot import forget, restore


class Rollback(Remedy):
    """Go back to the newest good snapshot: parameters, buffers and optimizer state.

    Batches are not rewound: the run goes on with fresh ones, which is what PaLM did against spikes (Chowdhery et al.,
    2022, section 5.1). If trouble is back within ``patience`` steps, that snapshot was sick already and is dropped for
    the older one. An optimizer's state that was loaded less than ``patience`` steps ago, and has made no update that
    was accepted, is begun anew.

    Args:
        patience: Steps after which a rollback counts as having helped.
    """

    name: ClassVar[str] = "rollback"
    acts: ClassVar[frozenset[str]] = frozenset({Act.ROLLBACK})
    deferrable: ClassVar[bool] = True
    uses_snapshots: ClassVar[bool] = True

    def __init__(self, *, patience: int = 10) -> None:
        self.patience = checks.whole("patience", patience)
        self._last_step: int | None = None
        self._again: RemedyContext | None = None

    def apply(self, context: RemedyContext) -> Outcome:
        """Restore the snapshot in place."""
        step = context.statistics.step
        latest, recent = (
            context.snapshots.latest,
            self._last_step is not None and step - self._last_step <= self.patience,
        )
        if recent and latest is not None and latest.updates:
            context.snapshots.discard_latest()
        self._last_step = step
        snapshot = context.snapshots.latest
        if snapshot is None:
            return Outcome(self.name, applied=False, detail="there is no snapshot to go back to")
        restore(snapshot, context.parameters, context.buffers, context.optimizer)
        detail = f"went back to step {snapshot.number}"
        if snapshot.optimizer_state and not snapshot.updates and step - snapshot.number <= self.patience:
            # It was loaded, has made no good update yet, and may be what is wrong.
            for parameter in context.parameters.values():
                forget(context.optimizer, parameter)
            detail += ", with an optimizer state begun anew"
        self._again = context if isinstance(context.optimizer, torch.optim.LBFGS) else None
        return Outcome(self.name, True, detail, back_to=snapshot.number)

    def after_update(self) -> None:
        """Restore once more what LBFGS, in whose step this happens, has written back from its local variables."""
        context, self._again = self._again, None
        if context is not None and context.snapshots.latest is not None:
            restore(context.snapshots.latest, context.parameters, context.buffers, context.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last rollback, -1 for none."""
        return {"last_step": -1 if self._last_step is None else self._last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        last = int(state["last_step"])
        self._last_step = None if last < 0 else last
