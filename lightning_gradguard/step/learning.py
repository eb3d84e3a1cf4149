"""What is learned from a step: what is usual, and only if the step was let through."""

from __future__ import annotations

from lightning_gradguard.attribution.batch import BatchWitness
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import GradientStatistics
from lightning_gradguard.statistics.update_ratio import build_up


def accept(track: OptimizerTrack, statistics: GradientStatistics, limit: float) -> None:
    """Learn from a step that was let through, whose norm was clipped to ``limit`` if above it."""
    rate, ratio = statistics.rate, statistics.update_ratio
    alone = ratio is not None and track.baseline.exceptional(statistics.norm, statistics.loss, rate)
    filled = None if ratio is None or alone or statistics.norm > limit else ratio * build_up(track.optimizer)
    if ratio is not None and rate is not None:
        track.baseline.updates.measure(ratio, statistics.norm, rate, grows=not statistics.normalised)
    track.baseline.accept(min(statistics.norm, limit), statistics.loss, update_ratio=filled, rate=rate)
    if rate is not None and rate > track.baseline.updates.rate:
        # Asked again, since a remedy may have lowered it for this very update.
        track.baseline.updates.allow(track.rate() or 0.0)
    track.detectors.accept(statistics, track.baseline)


def reject(track: OptimizerTrack, statistics: GradientStatistics) -> None:
    """Tell all who learn that a step was skipped; its loss must not count in the mean over processes."""
    track.joint_loss.drop()
    track.watch.skip()
    track.detectors.reject(statistics)


def learn_anew(track: OptimizerTrack) -> None:
    """Forget what was learned of another regime of data, loss or task; the next steps tell what is usual now."""
    track.baseline, track.batches = track.baseline.anew(), BatchWitness()
    track.detectors.forget()
    track.snapshots.hurry(track.steps)
    track.untouched = False
