"""What a checkpoint holds of one optimizer. Its keys are those of older versions, whatever the parts are called now."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightning_gradguard.history.interval import ExponentialInterval
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import incident_from_json, plain_statistics, statistics_from, to_json
from lightning_gradguard.snapshots.shards import parts, whole
from lightning_gradguard.snapshots.snapshot import Snapshot
from lightning_gradguard.statistics.collectives import Collectives


def state_of(track: OptimizerTrack, together: Collectives | None = None) -> dict[str, Any]:
    """Return everything learned, for a checkpoint.

    It holds one process's state, whose shards are of no use to the others. ``together``, where all processes call this
    at the same point, lets them be made whole.
    """

    def readable(snapshot: Snapshot) -> Snapshot | None:
        if not track.sharded:
            return snapshot
        share = track.snapshots.max_share
        return None if together is None else whole(snapshot, track.parameters, together, share=share)

    incident = track.incident is not None or track.treatment.under_way
    return {
        "memory": track.memory(),
        "remedies": track.remedies.state_dict(),
        "policy": track.policy.state_dict(),
        "untouched": track.untouched,
        "snapshots": track.snapshots.state_dict(incident=incident, whole=readable),
        **track.treatment.state_dict(whole=readable),
        "batches": track.batches.state_dict(),
        "kinds": track.two_kinds.state_dict(),
        "meter": track.accumulator.state_dict(),
        "incident": to_json(
            track.incident and dataclasses.replace(track.incident, trials=tuple(track.treatment.trials))
        ),
        "steps": track.steps,
        "watchful": track.watchful,
        "glances": [track.odd_loss_interval.last, track.odd_loss_interval.gap],
        "audits": [track.watch.interval.last, track.watch.interval.gap],
        "writes": -1 if track.watch.usual is None else track.watch.usual,
        "check_up": track.check_up,
        "last": plain_statistics(track.last),
        "losses": list(track.joint_loss.own),
        "shared": list(track.joint_loss.averaged),
        "noticed": track.notices.state_dict(),
    }


def load_state(track: OptimizerTrack, state: dict[str, Any]) -> None:
    """Take back what :func:`state_of` returned; remedies that are new since then start afresh."""
    track.load_memory(state["memory"])
    track.remedies.load_state_dict(state["remedies"])
    track.policy.load_state_dict(state["policy"])
    track.untouched = bool(state["untouched"])
    track.snapshots.load_state_dict(state["snapshots"])
    track.batches.load_state_dict(state["batches"])
    track.two_kinds.load_state_dict(state["kinds"])
    track.accumulator.load_state_dict(state["meter"])
    track.incident = incident_from_json(state["incident"]) if state["incident"] else None
    track.treatment.load_state_dict(state, () if track.incident is None else track.incident.trials)
    if (trial := track.treatment.trial) is not None:
        trial.lowers_rate = Act.BACKOFF in track.remedies.done_by(trial.treatment)
    if track.sharded:
        track.snapshots.cut(track.parameters)
        untreated = track.treatment.untreated
        track.treatment.untreated = None if untreated is None else parts(untreated, track.parameters)
    track.incident = track.incident and dataclasses.replace(track.incident, trials=())
    track.steps, track.watchful = int(state["steps"]), int(state["watchful"])
    track.odd_loss_interval = ExponentialInterval(*map(int, state["glances"]))
    track.watch.interval = ExponentialInterval(*map(int, state["audits"]))
    track.watch.usual = None if state["writes"] < 0 else int(state["writes"])
    track.check_up = bool(state["check_up"])
    track.last = statistics_from(state["last"])
    track.gate.drop()
    track.joint_loss.own = [float(v) for v in state["losses"]]
    track.joint_loss.averaged = [float(v) for v in state["shared"]]
    track.notices.load_state_dict(state["noticed"])


def go_on_from(track: OptimizerTrack, state: dict[str, Any]) -> None:
    """Take back what :func:`state_of` returned, and change the module as the remedies had changed it."""
    load_state(track, state)
    track.remedies.resume(track.module)
