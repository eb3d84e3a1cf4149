"""Data augmentation for a while after an incident: mixup, or what the user says is allowed on the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_gradguard import checks
from lightning_gradguard.attribution.batch import tensors_in
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext


class Augment(Remedy):
    """Augment the batches of the next ``steps`` updates after an incident.

    By default by mixup (Zhang et al., 2018): with a permutation of the samples and λ uniform in [½, 1], every floating tensor
    whose first dimension is the batch becomes ``λ x + (1 - λ) x[permutation]``: inputs and, where they are floating (regression,
    soft labels), targets. Class indices cannot be mixed; they stay those of the sample that has the greater part, as
    in SamplePairing (Inoue, 2018). Batches without a floating tensor (token indices) are left as they are.

    The batch's own tensors are pointed at memory that holds the mixture, after their transfer to the device and before
    ``training_step``, and back at their own before the update. Nothing is written into memory that may be a data set's, a cache's
    or a file's. Sparse, nested and inference tensors stay as they are. In a loop of your own call ``guard.augment(batch)``
    before the forward pass. Draws come from a private generator, which is saved in the checkpoint.

    Off by default, since only the user knows what may be done to the data; in a list of remedies it accompanies back-off,
    rollback and repair.

    Args:
        steps: Updates for which batches are augmented.
        transform: ``batch -> batch`` instead of mixup, for example a torchvision v2 transform. It must keep structure,
            shapes and dtypes. The global generators that it may draw from are seeded for it and put back afterwards.
        seed: Seed of the private generator.

    Example:
        >>> from lightning_gradguard import GradGuard
        >>> from lightning_gradguard.remedies import Augment, LearningRateBackoff, Rollback, Skip
        >>> guard = GradGuard(remedies=[Skip(), LearningRateBackoff(), Rollback(), Augment(steps=200)])
    """

    name: ClassVar[str] = "augment"
    deferrable: ClassVar[bool] = True

    def __init__(self, *, steps: int = 100, transform: Callable[[Any], Any] | None = None, seed: int = 0) -> None:
        self.steps = checks.whole("steps", steps, least=1)
        if transform is not None and not callable(transform):
            raise ValueError(f"transform must be None or a function of a batch, got {transform!r}")
        self.transform = transform
        self.seed = checks.whole("seed", seed)
        self._left = 0
        self._draws = 0
        self._before: list[tuple[Tensor, Tensor]] = []

    def apply(self, context: RemedyContext) -> Outcome:
        """Begin, or begin again."""
        self._left = self.steps
        how = "mixed up" if self.transform is None else "augmented"
        return Outcome(self.name, True, f"batches are {how} for {self.steps} updates")

    def before_update(self, context: RemedyContext) -> None:
        """Count the update."""
        self._left = max(self._left - 1, 0)

    @torch.no_grad()
    def before_forward(self, batch: Any) -> bool:
        """Augment the tensors of a batch, but not the memory that they were given with.

        Raises:
            ValueError: The user's transform has changed structure, shapes or dtypes.
        """
        self.after_update()
        if self._left == 0:
            return False
        tensors = [tensor for tensor in tensors_in(batch) if _can_point_elsewhere(tensor)]
        self._draws += 1
        # By identity: a tensor that is in the batch twice has one memory of its own.
        for tensor in {id(tensor): tensor for tensor in tensors}.values():
            self._before.append((tensor, tensor.detach()))
            tensor.data = tensor.clone()
        if self.transform is None:
            self._mix_up(tensors)
        else:
            self._transform(batch, tensors)
        return True

    def _mix_up(self, tensors: list[Tensor]) -> None:
        floating = [t for t in tensors if t.is_floating_point() and t.ndim]
        if not floating:
            return
        generator = torch.Generator().manual_seed(self._seed_of_this_draw())
        size = len(floating[0])
        order = torch.randperm(size, generator=generator)
        share = 0.5 + 0.5 * float(torch.rand((), generator=generator, dtype=torch.float32))
        for tensor in {id(tensor): tensor for tensor in floating}.values():
            if len(tensor) == size:
                tensor.lerp_(tensor[order.to(tensor.device)], 1.0 - share)

    def _transform(self, batch: Any, tensors: list[Tensor]) -> None:
        assert self.transform is not None
        # Only what this batch may draw from: each further GPU would be made ready for it, and waited for.
        places = {t.device for t in tensors if t.is_cuda}
        with torch.random.fork_rng(devices=sorted(places, key=str)):
            # Not torch.manual_seed, which would seed those that are not put back.
            torch.default_generator.manual_seed(self._seed_of_this_draw())
            for place in places:
                with torch.cuda.device(place):
                    torch.cuda.manual_seed(self._seed_of_this_draw())
            changed = [tensor for tensor in tensors_in(self.transform(batch)) if _can_point_elsewhere(tensor)]
        forms = [[(t.shape, t.dtype) for t in leaves] for leaves in (tensors, changed)]
        if forms[0] != forms[1]:
            raise ValueError(f"transform must keep the batch's shapes and dtypes {forms[0]}, got {forms[1]}")
        for tensor, new in zip(tensors, changed, strict=True):
            tensor.copy_(new)

    def _seed_of_this_draw(self) -> int:
        return self.seed * 1_000_003 + self._draws

    def after_update(self) -> None:
        """Put the batch back as it was."""
        if not self._before:
            return
        with torch.no_grad():
            for tensor, before in self._before:
                tensor.data = before
        self._before.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return for how many updates it goes on, and how often it has drawn."""
        return {"left": self._left, "draws": self._draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._left, self._draws = int(state["left"]), int(state["draws"])


def _can_point_elsewhere(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_inference()
