"""What a checkpoint holds of one optimizer."""

from __future__ import annotations

import math

from lightning_gradguard.policy.act import Act
from lightning_gradguard.snapshots import SnapshotStore
from lightning_gradguard.track_state import load_state, state_of
from tests.builders import same, through_a_file
from tests.step.loop import Loop


def test_all_that_was_learned_comes_back_through_a_file() -> None:
    first, second = Loop(), Loop(0)
    first.step(math.nan)
    saved = through_a_file(state_of(first.track))
    load_state(second.track, saved)
    found = state_of(second.track)
    found["memory"]["number"] = saved["memory"]["number"]  # of the step at hand, which nobody has yet
    assert same(found, saved)
    assert second.track.incident is not None and second.track.baseline.count == first.track.baseline.count


def test_shards_of_one_process_are_not_saved_for_all() -> None:
    loop = Loop(snapshots=SnapshotStore(in_checkpoint=True))
    assert state_of(loop.track)["snapshots"]["kept"]
    loop.track.sharded = True
    assert state_of(loop.track)["snapshots"]["kept"] == []


def test_a_trial_knows_again_whether_it_has_lowered_the_rate() -> None:
    loop = Loop(0)
    loop.optimizer.param_groups[0]["lr"] = 3.0
    while loop.track.treatment.trial is None:
        loop.step()
    assert Act.BACKOFF in loop.track.remedies.done_by(loop.track.treatment.trial.treatment)
    other = Loop(0)
    load_state(other.track, through_a_file(state_of(loop.track)))
    assert other.track.treatment.trial is not None and other.track.treatment.trial.lowers_rate
