"""The contract of a remedy, and the context on which it acts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_gradguard import checks
from lightning_gradguard.records import Decision, GradientStatistics, Outcome, Suspect, Verdict
from lightning_gradguard.snapshots.bystanders import Fallen
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from lightning_gradguard.snapshots.store import SnapshotStore


@dataclass(slots=True)
class RemedyContext:
    """What a remedy may look at and touch, for one optimizer and one step.

    Args:
        module: The root module; layer names are looked up in it.
        optimizer: The optimizer that is about to step.
        parameters: The optimizer's parameters, by name.
        snapshots: States known to be good.
        running: Running statistics as they were before this batch.
        statistics: The gradients of this step.
        verdict: What is wrong; None on healthy steps.
        decision: What was decided; None on healthy steps.
        acts: What was decided to be done, in the ladder's words.
        blame: Suspects, worst first.
        limit: Largest global norm that may pass.
        target: Global norm to clip down to, ``<= limit``.
        buffers: The module's buffers that belong to this optimizer's layers, by name.
        scaler: The GradScaler that owns this step, or None.
        start: Whether the run is fresh from its initialisation and has learned nothing: only then is anything drawn
            anew or rescaled.
        treated: Whether the trouble at hand is being treated already, so that what is kept from before it stays.
        update_ratio: Largest update-to-weight ratio that was measured at the present rate; 0 if unknown.
        progress: Tells whether the loss is at the best level that was reached, whether something was learned, and
            whether the loss is worse than it was; for those who ask.
        reach: Tells the largest norm whose update at a rate replaces no weights, where one was measured and updates
            grow with the norm; else 0 or inf.
        remaining: Tells the share of the run that is left, from 0 to 1; None where its length is unknown.
        fallen: What no optimizer trains, is not finite and was; it is put back with a step that is skipped.
        aside: What is said where nothing else is at fault than that; else empty.
        grad_scale: What the gradients at hand are still multiplied by; 1 unless a fused optimizer unscales them itself.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    parameters: dict[str, nn.Parameter]
    snapshots: SnapshotStore
    running: RunningStatistics
    statistics: GradientStatistics
    verdict: Verdict | None = None
    decision: Decision | None = None
    acts: Collection[str] = ()
    blame: Sequence[Suspect] = ()
    limit: float = float("inf")
    target: float = float("inf")
    buffers: dict[str, Tensor] = field(default_factory=dict)
    scaler: torch.amp.GradScaler | None = None
    start: bool = False
    treated: bool = False
    update_ratio: float = 0.0
    progress: Callable[[], tuple[bool, bool, bool]] = lambda: (False, False, False)
    reach: Callable[[float], float] = lambda rate: 0.0
    remaining: Callable[[], float] | None = None
    fallen: Sequence[Fallen] = ()
    aside: str = ""
    grad_scale: float = 1.0


class Remedy(ABC):
    """Do one thing about a gradient explosion.

    The ladder calls for acts, and a remedy says by :attr:`acts` which of them it does: another way to go back takes the
    place of :class:`Rollback` in a list of remedies. One that does none of them accompanies back-off, rollback and
    repair, or stands in for them where they are switched off.
    """

    name: ClassVar[str]
    """What decisions and records call it."""
    acts: ClassVar[frozenset[str]] = frozenset()
    """What it does, as members of :class:`~lightning_gradguard.policy.act.Act`; else the one that has its name."""
    uses_snapshots: ClassVar[bool] = False
    """Whether it reads ``context.snapshots``; none are taken where no remedy does."""
    deferrable: ClassVar[bool] = False
    """Whether :meth:`before_update` can do without the statistics of the step at hand: on a GPU those of a calm run are
    known one step later, so that nobody waits for the device. False costs one wait a step."""

    def __repr__(self) -> str:
        """Return it as it would be constructed."""
        return checks.described(self)

    @property
    def on_device(self) -> bool:
        """Whether a device does the same by itself: clips by norm, or skips."""
        return False

    @property
    def rate_factor(self) -> float:
        """Factor on the learning rate now."""
        return 1.0

    @property
    def cooled(self) -> float:
        """Share of a lower rate that is in use in its cool-down near the end of the run; 1 before."""
        return 1.0

    @property
    def rescaled(self) -> frozenset[str]:
        """Names of parameters whose updates are not those that gradient and rate foretell."""
        return frozenset()

    @property
    def at_work(self) -> bool:
        """Whether the remedy uses up the batch at hand, so that its step is skipped and :meth:`finish` called."""
        return False

    def check(self, module: nn.Module) -> None:
        """Raise ValueError if the configuration does not fit the module; called before training starts."""

    @abstractmethod
    def apply(self, context: RemedyContext) -> Outcome:
        """Act once, before the optimizer's update, and say what was done."""

    def before_update(self, context: RemedyContext) -> None:
        """Act before every update (a remedy that lasts, such as a learning-rate back-off)."""

    def before_forward(self, batch: Any) -> bool:
        """Change a batch in place before the forward pass, if at all; :meth:`after_update` undoes it."""
        return False

    def before_backward(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Return whether gradients were cleared; called before a backward pass that finds some stepped by already."""
        return False

    def after_update(self) -> None:
        """Undo what :meth:`before_update` changed; called after every update and after an exception."""

    def rate(self, scheduled: float) -> float:
        """Return the rate that the next update is made with, of what the schedule says."""
        return scheduled

    def known_rates(self) -> tuple[float, float]:
        """Return the largest learning rate known to be good and the smallest known to be bad; NaN for unknown."""
        return float("nan"), float("nan")

    def finish(self, mean: Callable[[list[float]], list[float]] | None = None) -> str:
        """Be done with the batch that was used up, and return what was done; ``mean`` averages over the processes."""
        return ""

    def take_back(self, context: RemedyContext) -> None:
        """Undo what lasts of :meth:`apply`, since its trial has not helped; called before anything else is tried."""

    def give_up(self) -> None:
        """Be as before the trouble, since no treatment has helped, in what several treatments have in common."""

    def close(self) -> None:
        """Take all hooks off."""

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned: tensors, numbers, strings, lists and dicts of these only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""

    def resume(self, module: nn.Module) -> None:
        """Change the module's structure as the state just loaded says; called after :meth:`load_state_dict`."""
