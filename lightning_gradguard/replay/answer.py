"""The answer of a replay: which of three it is, the operation, its line and the samples."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Literal

from lightning_gradguard.replay.attempt import Attempt
from lightning_gradguard.replay.operation import Operation
from lightning_gradguard.replay.weights import Stray

Kind = Literal["data", "weights", "does not reproduce"]
_MEANS = {
    "data": "this batch fails, and another passes with the same weights",
    "weights": "it is these weights that fail, and no batch",
    "does not reproduce": "computed again it is fine: a fault of the machine, a race, or something outside the step",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a replay has found.

    Args:
        kind: Which of three it is.
        step: The step.
        rank: The process that saw it.
        measured: What was measured then: loss and norm.
        again: What came of computing it again.
        other: What came of another batch, or None where there was none.
        batch_index: The number of the batch (of an accumulation, of the micro-batch) that fails.
        operation: Where the step goes wrong, or None where no operation stands out.
        before: The operations right before it.
        samples: Positions in the batch of the samples that make it fail; empty where no single ones do.
        names: What the batch calls these samples.
        stray: A weight that stands out, or None.
        notes: What else there is to know, a sentence each.
    """

    kind: Kind
    step: int
    rank: int
    measured: Attempt
    again: Attempt
    other: Attempt | None = None
    batch_index: int | None = None
    operation: Operation | None = None
    before: tuple[Operation, ...] = ()
    samples: tuple[int, ...] = ()
    names: tuple[object, ...] = ()
    stray: Stray | None = None
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """Return it as it is printed."""
        return "\n".join(f"{name + ':' if name else '':<11}{text}" for name, text in self.lines())

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{html.escape(n)}</th><td>{html.escape(t)}</td></tr>" for n, t in self.lines())
        return f"<table>{''.join(rows)}</table>"

    def lines(self) -> list[tuple[str, str]]:
        """Return what is to be said, each with a name."""
        where = f" (batch {self.batch_index})" if self.batch_index is not None else ""
        said = [
            ("answer", f"{self.kind.upper()}: {_MEANS[self.kind]}"),
            ("step", f"{self.step} on rank {self.rank}{where}"),
            ("then", str(self.measured)),
            ("again", str(self.again)),
        ]
        if self.other is not None:
            said.append(("other", str(self.other)))
        said += self._operation()
        if self.samples:
            named = f", which the batch calls {', '.join(map(str, self.names))}" if self.names else ""
            said.append(("sample", f"{', '.join(map(str, self.samples))} of the batch, counted from 0{named}"))
        if self.stray is not None:
            said.append(("weight", str(self.stray)))
        return said + [("note", text) for text in self.notes]

    def _operation(self) -> list[tuple[str, str]]:
        one = self.operation
        if one is None:
            return []
        what = f"made {one.made} of what was finite" if one.made else f"its output is {one.gain:.3g} x what went in"
        module = one.site.module or "the root module"
        said = [("operation", f"{one.name}, {one.phase}, in {module}: {what}"), ("line", str(one.site))]
        if one.site.source:
            said.append(("", one.site.source))
        said += [("in" if i == 0 else "", str(tensor)) for i, tensor in enumerate(one.inputs)]
        said.append(("out", str(one.output)))
        return said + [("before" if i == 0 else "", f"{b.name} -> {b.output}") for i, b in enumerate(self.before)]
