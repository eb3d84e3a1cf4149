"""What a run of the wild set is, and how it is registered."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningModule

Variant = Literal["written", "twin", "corrected", "slower", "faster"]
"""``written`` is the run itself. Of a sick run, ``twin`` is the same without the fault, and ``corrected`` keeps the
fault's circumstances but has the named correction made by hand. Of a healthy run, ``slower`` and ``faster`` have a
third and thrice the learning rate."""


class Task(NamedTuple):
    """One run, ready to be fitted.

    Args:
        module: The module.
        batches: Its training data, for ``Trainer.fit``.
        evaluate: Score of the trained module, higher is better; NaN counts as having learned nothing.
        checkpoint: Path of a checkpoint to resume from, or None.
    """

    module: LightningModule
    batches: Any
    evaluate: Callable[[LightningModule], float]
    checkpoint: str | None = None


@dataclass(frozen=True)
class Case:
    """One kind of run.

    Args:
        name: Unique name.
        kind: ``"sick"`` or ``"healthy"``.
        what: The fault, or what looks dangerous about a healthy run.
        correction: What is done by hand in the ``corrected`` variant of a sick run.
        create: ``create(seed, variant) -> Task``.
        steps: Count of ``trainer.global_step`` at the end.
        chance: Score of a model that has learned nothing.
        regime: True if a healthy run has a lasting change of regime (declared before any guard has seen it).
        trainer: Extra arguments of the Trainer, made anew for every run.
    """

    name: str
    kind: Literal["sick", "healthy"]
    what: str
    correction: str
    create: Callable[[int, Variant], Task]
    steps: int
    chance: float
    regime: bool
    trainer: Callable[[], dict[str, Any]] = field(repr=False)

    @property
    def held_out(self) -> bool:
        """Whether the case is kept aside from tuning: a third of them, by the hash of the name."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % 3 == 0

    def build(self, seed: int, variant: Variant) -> Task:
        """Build the run; the same arguments give the same run, whatever ran before."""
        torch.manual_seed(seed)
        return self.create(seed, variant)

    @property
    def source(self) -> str:
        """Path of the file that defines the case."""
        return inspect.getsourcefile(self.create) or ""


REGISTRY: dict[str, Case] = {}


def case(
    *,
    kind: Literal["sick", "healthy"],
    what: str,
    correction: str = "",
    steps: int = 300,
    chance: float = 0.0,
    regime: bool = False,
    trainer: Callable[[], dict[str, Any]] = dict,
) -> Callable[[Callable[[int, Variant], Task]], Callable[[int, Variant], Task]]:
    """Register a ``create(seed, variant)`` function as the case of its name."""

    def register(create: Callable[[int, Variant], Task]) -> Callable[[int, Variant], Task]:
        name = create.__name__
        if name in REGISTRY:
            raise ValueError(f"two cases are named {name}")
        REGISTRY[name] = Case(name, kind, what, correction, create, steps, chance, regime, trainer)
        return create

    return register


def cases(pattern: str = "*", held_out: Literal["include", "exclude", "only"] = "include") -> list[Case]:
    """List the cases whose name or kind matches one of the comma-separated patterns."""
    import benchmarks.wild as package

    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith(("sick_", "healthy_")):
            importlib.import_module(f"benchmarks.wild.{found.name}")
    wanted = {"include": (True, False), "exclude": (False,), "only": (True,)}[held_out]
    patterns = [p if any(c in p for c in "*?[") else f"*{p}*" for p in pattern.split(",")]
    return [
        c
        for c in REGISTRY.values()
        if c.held_out in wanted and any(fnmatch.fnmatch(t, p) for p in patterns for t in (c.name, c.kind))
    ]
