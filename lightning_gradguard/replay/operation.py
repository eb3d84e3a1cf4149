"""What is known of one operation of a step: where it is called from, what went in, and what came out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor in numbers.

    Args:
        name: The parameter's name, or empty.
        shape: Its shape.
        dtype: Its dtype.
        low: Smallest finite element.
        high: Largest finite element.
        nan: Count of NaN.
        inf: Count of inf.
        row: First index of the first element that is not finite, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    nan: int
    inf: int
    row: int | None = None

    @property
    def peak(self) -> float:
        """Largest finite absolute element."""
        return max(abs(self.low), abs(self.high))

    def __str__(self) -> str:
        """Return it in a line."""
        bad = "".join(f", {count} {what}" for count, what in ((self.nan, "NaN"), (self.inf, "inf")) if count)
        none = 0 < self.nan + self.inf == math.prod(self.shape)
        numbers = "nothing finite" if none else f"{self.low:.4g} .. {self.high:.4g}"
        return f"{self.name or 'tensor'} {list(self.shape)} {self.dtype}: {numbers}{bad}"


@dataclass(frozen=True, slots=True)
class Site:
    """Where an operation is called from.

    Args:
        module: Qualified name of the module whose forward it is in; empty for the root.
        file: The user's file, or empty.
        line: The line there.
        source: Its text.
    """

    module: str = ""
    file: str = ""
    line: int = 0
    source: str = ""

    def __str__(self) -> str:
        """Return it in a line."""
        return f"{self.file}:{self.line}" if self.file else "nowhere in the user's code"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a step.

    Args:
        name: As torch calls it: ``aten.log``.
        phase: ``"forward"`` or ``"backward"``.
        site: Where it is called from; in the backward pass, where the operation that it belongs to was.
        inputs: The float tensors that went in.
        output: The largest float tensor that came out.
        made: ``"NaN"`` or ``"inf"`` where it made that of what was finite; empty otherwise.
    """

    name: str
    phase: str
    site: Site
    inputs: tuple[Seen, ...]
    output: Seen
    made: str = ""

    @property
    def gain(self) -> float:
        """How many times larger its output is than what went in besides parameters."""
        fed = max((one.peak for one in self.inputs if not one.name), default=0.0)
        return self.output.peak / fed if fed > 0.0 else 1.0

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells it from others in another walk."""
        return self.name, self.phase, self.made, str(self.site)


@torch.no_grad()
def seen(tensor: Tensor, name: str = "") -> Seen:
    """Return a tensor in numbers."""
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    own = tensor.detach()
    finite = torch.isfinite(own)
    whole = bool(finite.all())
    good = own if whole else own.double()[finite]
    low, high = (float(good.min()), float(good.max())) if good.numel() else (0.0, 0.0)
    if whole:
        return Seen(name, shape, dtype, low, high, 0, 0)
    row = int((~finite).nonzero()[0, 0]) if own.ndim else None
    return Seen(name, shape, dtype, low, high, int(own.isnan().sum()), int(own.isinf().sum()), row)
