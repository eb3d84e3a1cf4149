"""A bundle: all that is needed to compute one bad step again, in one file that is loaded without executing anything."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gradguard.evidence.plain import rebuilt, size_of
from lightning_gradguard.evidence.randomness import RandomStates, from_plain

FORMAT = "gradguard bundle"
VERSION = 1
SUFFIX = ".gradguard.pt"


class BundleError(ValueError):
    """A file is no bundle, or one that cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of the step: a micro-batch and the random states before it.

    Args:
        batch_index: Its number in the epoch, or None.
        random: The random states in plain form; empty where they were not known.
        batch: The batch in plain form; None where it was not kept.
    """

    batch_index: int | None
    random: dict[str, Any] = field(repr=False)
    batch: Any = field(default=None, repr=False)

    @property
    def states(self) -> RandomStates | None:
        """The random states, or None."""
        return from_plain(self.random) if self.random else None

    @property
    def loaded(self) -> Any:
        """The batch as the module got it, or None."""
        return rebuilt(self.batch)


@dataclass(slots=True)
class Bundle:
    """One bad step.

    Args:
        step: Its number.
        rank: The process that saw it.
        processes: How many trained together.
        optimizer: Index of the optimizer.
        form: The form of trouble.
        reason: One sentence of the detector.
        limit: The largest global gradient norm that would have passed.
        norm: The one that was measured, over all processes.
        loss: The loss of this process; NaN where it was not known.
        names: Parameters that had a gradient.
        norms: The norm of each.
        weights_seen: For each parameter the root mean square, the largest absolute value and the count of NaN and inf.
        suspects: Whom the evidence speaks against, in plain form.
        passes: The forward passes of the step, oldest first.
        other: A forward pass of another step, which was fine, or None.
        weights: Parameters and buffers before the step; empty where they are elsewhere, or were left out.
        weights_from: A checkpoint that holds weights, where they are not in here.
        weights_step: The step whose weights these are, if not of this one; None otherwise.
        optimizer_state: That of the optimizer by parameter, where it was asked for.
        frozen: Modules that were in evaluation mode.
        module: Qualified name of the module's class.
        hyperparameters: What the module was made with, as far as it is plain.
        precision: The Trainer's word for it.
        epoch: The epoch.
        indices: What a batch that names its samples calls them.
        versions: Of Python, torch and others.
        commit: That of the repository of the module's source, or empty.
        left_out: What is not in here, a sentence each.
        created: Seconds since 1970.
        path: Where it was read from or written to.
    """

    step: int
    rank: int = 0
    processes: int = 1
    optimizer: int = 0
    form: str = ""
    reason: str = ""
    limit: float = float("inf")
    norm: float = float("nan")
    loss: float = float("nan")
    names: list[str] = field(default_factory=list)
    norms: list[float] = field(default_factory=list, repr=False)
    weights_seen: dict[str, list[float]] = field(default_factory=dict, repr=False)
    suspects: list[dict[str, Any]] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    other: Pass | None = None
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)
    weights_from: str = ""
    weights_step: int | None = None
    optimizer_state: dict[str, Any] = field(default_factory=dict, repr=False)
    frozen: list[str] = field(default_factory=list)
    module: str = ""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    precision: str = ""
    epoch: int = 0
    indices: list[Any] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    left_out: list[str] = field(default_factory=list)
    created: float = 0.0
    path: Path | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as ``torch.save`` is given it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "path"}
        fields["passes"] = [_plain(one) for one in self.passes]
        fields["other"] = None if self.other is None else _plain(self.other)
        return {"format": FORMAT, "version": VERSION, **fields}

    @property
    def seen_here(self) -> bool:
        """Whether the trouble is known to be this process's: its loss was not finite, or it is named."""
        return not math.isfinite(self.loss) or any(one.get("rank") == self.rank for one in self.suspects)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return size_of(self.plain())


def _plain(one: Pass) -> dict[str, Any]:
    return {"batch_index": one.batch_index, "random": one.random, "batch": one.batch}


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Return the bundle in a file; nothing in it is executed.

    Raises:
        BundleError: It is no bundle, or one of a newer version.
        OSError: The file cannot be opened or read.
    """
    path = Path(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Not in torch's words, which advise to execute what is in it.
        raise BundleError(f"{path} is no bundle that can be read ({type(error).__name__})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f"{path} is no bundle of GradGuard's")
    if data.get("version") != VERSION:
        raise BundleError(f"{path} is a bundle of version {data.get('version')}, and this package reads {VERSION}")
    known = {f.name for f in dataclasses.fields(Bundle)}
    try:
        fields = {key: value for key, value in data.items() if key in known}
        fields["passes"] = [Pass(**one) for one in fields["passes"]]
        fields["other"] = None if fields["other"] is None else Pass(**fields["other"])
        return Bundle(**fields, path=path)
    except (KeyError, TypeError) as error:
        raise BundleError(f"{path} is a bundle that lacks something: {error}") from error


def bundle_name(step: int, rank: int, optimizer: int = 0) -> str:
    """Return the name of a bundle's file.

    >>> bundle_name(42, 1)
    'step-00000042-rank-1.gradguard.pt'
    """
    of = f"-optimizer-{optimizer}" if optimizer else ""
    return f"step-{step:08d}-rank-{rank}{of}{SUFFIX}"
