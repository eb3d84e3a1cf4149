"""The Trainer's clipping, suspended for a step whose gradients have been taken away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_gradguard import twins

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

HOOK = "configure_gradient_clipping"


class SuspendedClipping:
    """Keep the clipping hook from being called at a skipped step: by value, torch raises where no gradient is left."""

    def __init__(self) -> None:
        self._suspended: tuple[LightningModule, Any] | None = None
        # Whether the module clips in a method of its own; asked once, since steps are many.
        self._own = False

    def look(self, trainer: Trainer, module: LightningModule) -> None:
        """Find out whether a module clips in a method of its own."""
        self._own = twins.part(trainer, "utilities.model_helpers.is_overridden")(HOOK, module)

    def follows(self, trainer: Trainer) -> bool:
        """Return whether gradients are clipped after the guard has seen them."""
        return bool(trainer.gradient_clip_val) or self._own

    def suspend(self, module: LightningModule) -> None:
        """Stand in for the hook, which comes next and may be the module's own."""
        own = vars(module)
        self._suspended = module, own.get(HOOK)
        own[HOOK] = _clip_nothing

    def resume(self) -> None:
        """Give the hook back, if it was suspended."""
        if self._suspended is None:
            return
        (module, before), self._suspended = self._suspended, None
        del vars(module)[HOOK]
        if before is not None:
            vars(module)[HOOK] = before


def _clip_nothing(*_: Any, **__: Any) -> None:
    """Stand in for the clipping hook on a skipped step."""
