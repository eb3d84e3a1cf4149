"""The verdicts that a treatment itself comes to: a batch was used up, or the losses of its trial speak against it."""

from __future__ import annotations

import math

from lightning_gradguard.attribution.signal import ALIKE
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.level import level_of
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.policy import Trial
from lightning_gradguard.policy.act import Act
from lightning_gradguard.policy.ending import Ending
from lightning_gradguard.records import GradientStatistics, Verdict

_MEASURED, _ON_TRIAL = Act.INITIALIZE.value, "trial"
"""What records call the detector of these."""


def used_up(found: GradientStatistics, told: str) -> Verdict:
    """Return the verdict on a step whose batch a remedy has used to measure by; ``told`` is what it has done."""
    return Verdict("cold-start", _MEASURED, found.norm, math.inf, told)


def is_used_up(verdict: Verdict) -> bool:
    """Return whether it is :func:`used_up`."""
    return verdict.detector == _MEASURED


def of_trial(trial: Trial | None, found: GradientStatistics, known: Baseline) -> Verdict | None:
    """Return the alarm that a trial under way raises at a step, or None; it takes in the loss."""
    if trial is None or not found.finite:
        return None
    if trial.lowers_rate and trial.blind and known.norms.put_out:
        return put_out_again(found.norm)
    if trial.lowers_rate and trial.lost(found.loss):
        return lost_again(trial, found.loss or 0.0)
    trial.observe(found.loss)
    if trial.lowers_rate and trial.often_large(found.update_ratio or 0.0):
        return too_fast(trial, found.update_ratio or 0.0)
    if trial.verdict(large=known.updates.ratio > LARGE) is Ending.TOO_FAST:
        return too_fast(trial, known.updates.ratio)
    return no_better(trial) if trial.verdict() is Ending.TAKEN_BACK else None


def lost_again(trial: Trial, loss: float) -> Verdict:
    """Return the verdict on a lower rate at which the run is being lost again."""
    told = f"loss {loss:.3g}, the third in a row far above those before: lost again"
    return Verdict("divergence", _ON_TRIAL, loss, trial.level, told)


def put_out_again(norm: float) -> Verdict:
    """Return the verdict on a lower rate at which the gradients disappear again."""
    return Verdict("divergence", _ON_TRIAL, norm, math.nan, f"norm {norm:.3g}: the gradients have disappeared again")


def too_fast(trial: Trial, update_ratio: float) -> Verdict:
    """Return the verdict on a rate whose updates still replace weights."""
    told = f"loss {trial.level:.3g} is no better, and updates are {update_ratio:.2g} x the weights"
    return Verdict("divergence", _ON_TRIAL, trial.level, level_of(trial.before), told)


def no_better(trial: Trial) -> Verdict:
    """Return the verdict on a treatment that has made nothing better."""
    told = f"{' and '.join(trial.treatment)} made nothing better: loss {trial.level:.3g}"
    return Verdict("divergence", _ON_TRIAL, trial.level, level_of(trial.trouble), told, examine=True)


def still_dead(trial: Trial, variation: float) -> Verdict:
    """Return the verdict on layers that were mended at a start, where the next batch's signal dies on its way."""
    mended = " and ".join(trial.treatment)
    told = f"after {mended} the signal dies on its way: outputs vary by {variation:.2g} of their size"
    return Verdict("divergence", _ON_TRIAL, variation, ALIKE, told, examine=True)


def is_no_better(verdict: Verdict) -> bool:
    """Return whether it is :func:`no_better`, or :func:`still_dead`."""
    return verdict.detector == _ON_TRIAL and verdict.examine
