"""Evidence of an incident's first alarm: who has seen it, and a bundle where evidence is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

from lightning_gradguard.evidence.collecting import Facts
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import BATCH, MACHINE, GradientStatistics, Suspect, Verdict, to_json
from lightning_gradguard.statistics.joint_loss import value_of
from lightning_gradguard.step.run import Run

FEW_RANKS = 8
"""Processes that write a bundle each where none of them stands out."""

Kept = tuple[str, tuple[Suspect, ...]]


def keep(
    run: Run,
    track: OptimizerTrack,
    statistics: GradientStatistics,
    verdict: Verdict,
    suspects: tuple[Suspect, ...],
    *,
    deferred: bool = False,
    made: bool = False,
    ends: bool = False,
) -> Kept:
    """Begin to write the bundle of an alarm that opens an incident or ends the run; return its file, and the suspects.

    Args:
        run: The run.
        track: The optimizer.
        statistics: The step.
        verdict: The alarm.
        suspects: Whom the evidence speaks against.
        deferred: Whether it is the step before the one under way.
        made: Whether its update has been made all the same.
        ends: Whether the run ends here, which is worth a bundle whatever came before.
    """
    keeper = run.evidence
    if keeper is None or (track.incident is not None and not ends):
        return "", suspects
    loss = value_of(keeper.hand.loss)
    with _as_before(run, now=deferred or made):
        machines = () if deferred else _suspect_machines(run, track, statistics, loss)
    suspects = (*machines, *suspects)
    ranks = {s.rank for s in suspects if s.rank is not None}
    if run.collectives.size > 1 and not ranks:
        # Every process comes here at the same step, since all have judged alike.
        ranks = _odd(run.collectives.gather(math.nan if loss is None else loss), statistics)
        suspects = tuple(_on(suspect, ranks) for suspect in suspects) or _accused(ranks)
    writes = run.collectives.size == 1 or keeper.place().rank in (ranks or range(FEW_RANKS))
    facts = _facts(track, statistics, verdict, suspects, loss=loss, made=made)
    with _as_before(run, now=deferred or made):
        path = keeper.keep(facts, run.module, track.optimizer, deferred=deferred, last=ends) if writes else None
    # The journal is the first process's, and the bundle may be another's.
    paths = run.collectives.gather("" if path is None else str(path))
    return next((one for one in paths if one), ""), suspects


def _suspect_machines(
    run: Run, track: OptimizerTrack, statistics: GradientStatistics, loss: float | None
) -> tuple[Suspect, ...]:
    """Compute the step again, where that is asked for, and name the ranks whose numbers were not what they are now."""
    if run.evidence is None or not run.evidence.recomputes:
        return ()
    alone = run.collectives.size == 1 and not track.sharded and not statistics.scaled and len(run.tracks) == 1
    own = run.evidence.compute_again(run.module, loss=loss, norm=statistics.norm if alone else None)
    machines = []
    for rank, told in enumerate(run.collectives.gather(own)):
        if told:
            machines.append(Suspect(MACHINE, math.inf, "; ".join(told), rank=rank))
            sentence = f"rank {rank} computed the step wrongly: {'; '.join(told)}. Suspect its machine"
            run.recorder.tell("notice", statistics.step, f"machine: {sentence}")
            run.recorder.warn(f"machine {rank}", sentence)
    return tuple(machines)


def _as_before(run: Run, *, now: bool) -> contextlib.AbstractContextManager[None]:
    """Show the module with the running statistics of before the step, unless it shows them now."""
    if now or run.running is None or not (run.acts or run.halts):  # Who only watches remembers none.
        return contextlib.nullcontext()
    return run.running.as_remembered()


def _facts(
    track: OptimizerTrack,
    statistics: GradientStatistics,
    verdict: Verdict,
    suspects: tuple[Suspect, ...],
    *,
    loss: float | None,
    made: bool,
) -> Facts:
    return Facts(
        step=statistics.step,
        form=verdict.form,
        reason=verdict.reason,
        limit=track.limit(),
        norm=statistics.norm,
        loss=loss,
        optimizer=track.index,
        names=statistics.names,
        norms=statistics.norms.tolist(),
        suspects=[to_json(suspect) for suspect in suspects],
        weights_step=statistics.step + 1 if made else None,
    )


def _odd(losses: list[Any], statistics: GradientStatistics) -> set[int]:
    """Return the processes whose loss is not finite while others' are, where gradients are not either."""
    bad = {rank for rank, loss in enumerate(losses) if not math.isfinite(loss)}
    return bad if not statistics.finite and 0 < len(bad) < len(losses) else set()


def _on(suspect: Suspect, ranks: set[int]) -> Suspect:
    batch = suspect.is_batch and len(ranks) == 1
    return dataclasses.replace(suspect, rank=min(ranks)) if batch else suspect


def _accused(ranks: set[int]) -> tuple[Suspect, ...]:
    """Return the batch of the one process whose loss is not finite, as a suspect where there is no other."""
    if len(ranks) != 1:
        return ()
    [rank] = ranks
    return (Suspect(BATCH, math.inf, f"the loss of rank {rank} is not finite, and those of the others are", rank=rank),)


def written(run: Run, track: OptimizerTrack) -> list[str]:
    """Return how to replay the bundles of the incident that ends the run, once they are written.

    All processes wait for those that write, since the first to raise ends the others. A bundle that could not be
    written is named no longer.
    """
    if run.evidence is None:
        return []
    run.evidence.wait()
    missing = {path for own in run.collectives.gather(run.evidence.missing()) for path in own}
    if track.incident is not None and track.incident.bundle in missing:
        track.incident = dataclasses.replace(track.incident, bundle="")
        run.recorder.replace(track.incident)
    path = "" if track.incident is None else track.incident.bundle
    return [f"lightning-gradguard replay {path} --module <package.Module>"] if path else []
