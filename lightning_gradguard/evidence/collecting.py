"""Collecting what goes into a bundle, into host memory, as far as its bounds allow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gradguard.evidence.bundle import Bundle, Pass
from lightning_gradguard.evidence.hand import Moment
from lightning_gradguard.evidence.plain import host_copy, plain, size_of
from lightning_gradguard.evidence.randomness import plain as plain_states
from lightning_gradguard.evidence.settings import Evidence
from lightning_gradguard.layers.names import clean

NAMES_OF_SAMPLES = ("index", "indices", "idx", "id", "ids", "sample_id", "sample_ids")
"""Keys under which a batch tells which samples of the data set it is made of."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the guard knows of a bad step.

    Args:
        step: Its number.
        form: The form of trouble.
        reason: One sentence of the detector.
        limit: The largest global norm that would have passed.
        norm: The one that was measured.
        loss: The loss of this process, or None.
        optimizer: Index of the optimizer.
        names: Parameters that had a gradient.
        norms: The norm of each.
        suspects: Whom the evidence speaks against, in plain form.
        weights_step: The step whose weights the module has now, where it is not this one.
    """

    step: int
    form: str
    reason: str
    limit: float
    norm: float
    loss: float | None = None
    optimizer: int = 0
    names: Sequence[str] = ()
    norms: Sequence[float] = ()
    suspects: Sequence[dict[str, Any]] = ()
    weights_step: int | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is, as its trainer knows it.

    Args:
        rank: This process.
        processes: How many train together.
        precision: The Trainer's word for it.
        epoch: The epoch.
        checkpoint: The newest checkpoint, or empty.
    """

    rank: int = 0
    processes: int = 1
    precision: str = ""
    epoch: int = 0
    checkpoint: str = ""


@dataclass(slots=True)
class Allowance:
    """Bytes that are left for a bundle, and what was left out for want of them."""

    left: int
    left_out: list[str] = field(default_factory=list)

    def grants(self, what: str, size: int) -> bool:
        """Return whether there is room for something, and count it; note it as left out otherwise."""
        if size <= self.left:
            self.left -= size
            return True
        self.left_out.append(f"{what}: {size:,} bytes, and {self.left:,} were left")
        return False


@torch.no_grad()
def collect(
    facts: Facts,
    place: Place,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    moments: Sequence[Moment],
    other: Moment | None,
    batch: bool,
    settings: Evidence,
) -> Bundle:
    """Return the bundle of a step, all of it copied, so that the run may go on.

    Args:
        facts: What the guard knows of the step.
        place: Where the run is.
        module: The root module, with the weights of before the step.
        optimizer: The optimizer.
        moments: The forward passes of the step.
        other: A forward pass of another step, or None.
        batch: Whether batches are kept.
        settings: What else is kept, and how much.
    """
    room, made = Allowance(settings.max_bytes), _begun(facts, place, module)
    # In the order in which they are granted room.
    made.passes = [_passed(one, room, keep=batch) for one in moments]
    live = {clean(name): value for name, value in (*module.named_parameters(), *module.named_buffers())}
    if settings.weights and room.grants("the weights", sum(t.numel() * t.element_size() for t in live.values())):
        made.weights = {name: host_copy(value) for name, value in live.items()}
    else:
        made.weights_from = place.checkpoint
    made.other = None if other is None or not batch else _passed(other, room, keep=True)
    if settings.optimizer_state:
        state = {clean(name): dict(optimizer.state.get(p, {})) for name, p in module.named_parameters()}
        if room.grants("the optimizer's state", size_of(state)):
            made.optimizer_state = plain(state, room.left_out, "optimizer_state")
    made.indices = [named for one in moments if (named := _named(one.batch)) is not None]
    made.left_out = room.left_out
    return made


def _begun(facts: Facts, place: Place, module: nn.Module) -> Bundle:
    """Return a bundle with all that takes little room."""
    kind = type(module)
    return Bundle(
        step=facts.step,
        rank=place.rank,
        processes=place.processes,
        optimizer=facts.optimizer,
        form=facts.form,
        reason=facts.reason,
        limit=float(facts.limit),
        norm=float(facts.norm),
        loss=float("nan") if facts.loss is None else float(facts.loss),
        names=list(facts.names),
        norms=[float(norm) for norm in facts.norms],
        weights_seen={name: seen(value) for name, value in module.named_parameters()},
        suspects=[dict(suspect) for suspect in facts.suspects],
        weights_step=facts.weights_step,
        frozen=[clean(name) for name, child in module.named_modules() if not child.training],
        module=f"{kind.__module__}.{kind.__qualname__}",
        hyperparameters=_hyperparameters(module),
        precision=place.precision,
        epoch=place.epoch,
        created=time.time(),
    )


def _passed(moment: Moment, room: Allowance, *, keep: bool) -> Pass:
    """Return a forward pass in plain form."""
    what = f"batch {moment.batch_index}" if moment.batch_index is not None else "the batch"
    kept = keep and moment.batch is not None and room.grants(what, size_of(moment.batch))
    try:
        states = plain_states(moment.random)
    except TypeError as error:
        states = {}
        room.left_out.append(f"the random states: {error}")
    return Pass(moment.batch_index, states, plain(moment.batch, room.left_out, what) if kept else None)


def seen(parameter: Tensor) -> list[float]:
    """Return a parameter's root mean square, its largest absolute value, and how many elements are NaN or inf."""
    own = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    if own.numel() == 0 or not own.is_floating_point():
        return [0.0, 0.0, 0.0]
    finite = torch.isfinite(own)
    good = own.detach().double().masked_fill(~finite, 0.0)
    return [float(good.square().mean().sqrt()), float(good.abs().max()), float((~finite).sum())]


def _hyperparameters(module: nn.Module) -> dict[str, Any]:
    """Return what a Lightning module saved of its arguments, as far as it is plain."""
    given = getattr(module, "hparams", None)
    if not isinstance(given, Mapping):
        return {}
    lost: list[str] = []
    kept = {str(key): plain(value, lost, str(key)) for key, value in given.items()}
    return kept if not lost else {key: value for key, value in kept.items() if value is not None}


def _named(batch: Any) -> Any:
    """Return what a batch calls its samples, or None."""
    if not isinstance(batch, Mapping):
        return None
    found = next((batch[key] for key in NAMES_OF_SAMPLES if key in batch), None)
    return (
        found.tolist() if isinstance(found, Tensor) else plain(found, []) if isinstance(found, (list, tuple)) else None
    )
