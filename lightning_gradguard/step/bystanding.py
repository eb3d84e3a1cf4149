"""What no optimizer trains, when it is looked at: at a step that is not finite, and where a snapshot is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lightning_gradguard.layers.names import layer_of
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import Suspect
from lightning_gradguard.remedies import RemedyContext
from lightning_gradguard.snapshots.budget import Budget, Keeping, left, need
from lightning_gradguard.snapshots.bystanders import Fallen, aside, put_back
from lightning_gradguard.snapshots.copier import PINNED
from lightning_gradguard.snapshots.when import attempt
from lightning_gradguard.step.run import Run

CALLED = 3
"""Tensors that are called by their names; of more the number is told."""


def look_aside(
    run: Run, track: OptimizerTrack, context: RemedyContext, suspects: tuple[Suspect, ...]
) -> tuple[Suspect, ...]:
    """Look, at a step that is not finite, at what no optimizer trains; return the suspects with what is broken of it.

    What is found is put back with the step that is skipped. Where the batch is not accused, and nothing that is trained
    is broken, nothing else is done about it: no snapshot and no rate would help.
    """
    context.fallen = found(run)
    told = {name: kept for own in run.collectives.gather([_told(one) for one in context.fallen]) for name, kept in own}
    if not told:
        return suspects
    blamed = {layer_of(name): name for name in reversed(told)}
    mine = tuple(Suspect(layer, math.inf, f"{name} is not finite", broken=True) for layer, name in blamed.items())
    batch = tuple(suspect for suspect in suspects if suspect.is_batch)
    others = tuple(s for s in suspects if s.broken and s.layer not in blamed)
    lost = not all(told.values())
    if not batch and not others and (run.bystanders.believe(told, track.steps) or lost):
        context.aside = f"{_named(list(told))} not finite, " + (
            "which no treatment can help, since no copy is kept" if lost else "and put back as before"
        )
        return mine[::-1]
    return (*batch, *mine[::-1], *others) if batch or others else suspects


def found(run: Run) -> list[Fallen]:
    """Return what this process holds that no optimizer trains, and that is no longer finite."""
    watched, mine = aside(run.module, ()), _trained(run)
    held: dict[str, tuple[Tensor, Tensor]] = {}
    for track in run.tracks:
        kept = {} if (snapshot := track.snapshots.latest) is None else snapshot.buffers
        for name, value in track.trained.buffers().items():
            if watched.get(name) is value and name in kept and id(value) in mine:
                held[name] = value, kept[name]
    return run.bystanders.find({name: value for name, value in watched.items() if id(value) not in mine}, held)


def renew(run: Run, track: OptimizerTrack) -> None:
    """Renew the copy of what no optimizer trains, where a snapshot is about to be taken; put back what is broken.

    Every process must call it at the same point. It is kept in what snapshots leave of their bound.
    """
    if track.index or not run.acts:
        return
    loose = aside(run.module, _trained(run))
    if not loose and run.bystanders.empty:
        return  # As in most runs, which then are spared two collectives.
    wanted = run.bystanders.unplanned(loose)
    if run.collectives.mean([float(wanted is not None)]) > [0.0]:
        fits = wanted is None or wanted <= _room(run, track)
        alike = run.collectives.mean([float(fits)]) >= [1.0]
        run.bystanders.plan(wanted or 0, fits=alike)
    broken: list[Fallen] = []
    if failure := attempt(
        lambda: broken.extend(run.bystanders.renew(loose)), run.collectives, "a copy of what no optimizer trains"
    ):
        run.bystanders.plan(wanted or 0, fits=False)
        run.recorder.warn("bystanders", f"{failure}; it is named where it is NaN or inf, and not put back")
    mend(run, track, broken)


def mend(run: Run, track: OptimizerTrack, broken: Sequence[Fallen]) -> None:
    """Put back what is broken at a step that is left as it is, and tell of it."""
    put_back(broken)
    tell(run, track, broken)


def tell(run: Run, track: OptimizerTrack, broken: Sequence[Fallen]) -> None:
    """Tell of what was put back, and of what could not be."""
    for there, end in (True, "was put back"), (False, "cannot be put back: there is no room for a copy"):
        if names := [one.name for one in broken if (one.copy is not None) is there]:
            told = f"{_named(names)} not finite, and {end}"
            run.recorder.say(track.number, told, told)


def _told(one: Fallen) -> tuple[str, bool]:
    return one.name, one.copy is not None


def _named(names: list[str]) -> str:
    more = f" and {len(names) - CALLED} more" if len(names) > CALLED else ""
    return f"{', '.join(names[:CALLED])}{more} {'is' if len(names) == 1 else 'are'}"


def _trained(run: Run) -> set[int]:
    """Return the ids of what goes back with a snapshot, but for copies that nobody trains: a NaN in them must not."""
    held = [{**t.parameters, **t.trained.buffers()} for t in run.tracks]
    copies = {id(v) for t in run.tracks for v in t.trained.copies.values()}
    return {id(v) for values in held for v in values.values()} - copies


def _room(run: Run, track: OptimizerTrack) -> float:
    """Return the bytes that the snapshots of this process leave of what they may take; none where they are short."""
    store = track.snapshots
    if store.keeping is not Keeping.ALL or store.keep == 0:
        return -1.0
    budget = Budget(left(), run.collectives.neighbours, store.max_bytes, store.max_share)
    wanted = need(track.parameters.values(), track.trained.buffers().values(), track.optimizer, pinned=PINNED)
    return budget.most(Keeping.ALL) - wanted.bytes(Keeping.ALL, store.keep)
