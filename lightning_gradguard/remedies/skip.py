"""Skip the step: parameters, optimizer state and running statistics stay bit-identical."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_gradguard.attribution.optimizer_numbers import NUMBERS
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext
from lightning_gradguard.snapshots.bystanders import put_back
from lightning_gradguard.statistics.measure import still_scaled


class Skip(Remedy):
    """Skip one step: the optimizer finds no gradient and touches nothing.

    Gradients are set to None, since with zeros (or a rate of zero) momentum, weight decay and Adam's moments would
    still move. After the update they are there again, the same tensors with zeros in them: what was captured with them
    (a CUDA graph of a whole step) goes on to find them. Running statistics of normalisation layers are put back to what
    they were before the batch, and so is what an optimizer counts in its ``param_groups``. What no optimizer trains (a
    frozen teacher, an average of the weights, a buffer) is put back where it has become NaN or inf.
    """

    name: ClassVar[str] = "skip"
    acts: ClassVar[frozenset[str]] = frozenset({Act.SKIP})
    deferrable: ClassVar[bool] = True

    def __init__(self) -> None:
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._gradients: list[tuple[Tensor, Tensor]] = []

    @property
    def on_device(self) -> bool:
        """Whether a device does the same by itself."""
        return True

    def apply(self, context: RemedyContext) -> Outcome:
        """Take the gradients away and put the running statistics back."""
        if context.scaler is not None and still_scaled(context.optimizer, context.scaler):
            # A fused optimizer's gradients are unscaled inside its kernel; without this the scaler finds none
            # and raises "No inf checks were recorded", at a scale of 1 as at any other.
            context.scaler.unscale_(context.optimizer)
        self._gradients.clear()  # An optimizer with a closure may come here more than once in a step.
        for parameter in context.parameters.values():
            if parameter.grad is not None and parameter.grad.layout is torch.strided:
                self._gradients.append((parameter, parameter.grad))
            parameter.grad = None
        context.running.restore()
        self._groups = [(group, _counts(group)) for group in context.optimizer.param_groups]
        back = put_back(context.fallen)
        told = f"; put back {', '.join(back)}" if back else ""
        return Outcome(self.name, True, f"skipped the step: nothing was updated{told}", (), 0.0)

    def after_update(self) -> None:
        """Put back the gradients' tensors, emptied, and the counts that an optimizer keeps by group."""
        if not self._groups:
            return  # As after nearly every step, where entering no_grad would cost more than all else here.
        # Where a backward pass has come since, what has no gradient by now is meant to have none.
        back = self._gradients if all(parameter.grad is None for parameter, _ in self._gradients) else ()
        with torch.no_grad():
            for parameter, gradient in back:
                parameter.grad = gradient.zero_()
            for group, counts in self._groups:
                for key, value in counts.items():
                    live = group.get(key)
                    # A rate in a tensor must stay that very tensor.
                    if isinstance(live, Tensor) and isinstance(value, Tensor):
                        live.copy_(value)
                    else:
                        group[key] = value
        self._groups.clear()
        self._gradients.clear()


def _counts(group: dict[str, Any]) -> dict[str, Any]:
    # What is mended in this very step is no count of the optimizer's.
    entries = {key: value for key, value in group.items() if key != "params" and key not in NUMBERS}
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in entries.items()}
