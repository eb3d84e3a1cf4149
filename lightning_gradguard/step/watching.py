"""What a guard that acts would try at a start, told by one that only watches.

A guard that acts goes back to the first step and measures the layers there before it treats. One that watches goes
nowhere and keeps no copies: its layers are examined at the first step of all, and what was found is remembered.
"""

from __future__ import annotations

from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.policy import Case
from lightning_gradguard.records import Decision, Verdict


def told_at_start(track: OptimizerTrack, verdict: Verdict, case: Case, decision: Decision) -> Decision:
    """Return, for a decision to go back and measure, the treatment that the first step of this run calls for."""
    if not decision.look or track.at_start is None:
        return decision
    track.treatment.signal.look_for(None)
    suspects, signal = track.at_start
    return track.policy.measured(verdict, suspects, case, signal)
