"""Whether a run is the better for a treatment that was kept. It decides nothing: it is what may be said of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_gradguard.history.level import beginning, level_of
from lightning_gradguard.history.losses import LOST, UNMOVED
from lightning_gradguard.history.ranks import chance_of_lower
from lightning_gradguard.policy.ending import Ending
from lightning_gradguard.policy.trial import CHANCE, LEARNED, Trial
from lightning_gradguard.records import TrialRecord


def helped(trial: Trial, before: Sequence[float], untrained: float, earlier: Iterable[TrialRecord] = ()) -> bool:
    """Return whether a treatment that is kept has left the run with something, and not only out of the trouble.

    A run that had learned must be back where it was before the trouble, by chance, or have half of what it had learned.
    One that had learned nothing must have learned something since, and more than with what was taken back.

    Args:
        trial: The trial, at its end.
        before: Losses of the run as the user wrote it, from before the trouble; of one that had learned nothing those
            that may be of untrained weights. Where there are none, the trouble alone can be compared with.
        untrained: The loss before training.
        earlier: How the trials before it in the same incident have ended.
    """
    if not before:
        return True
    if trial.learned:
        usual = level_of(before)
        has_half = trial.level <= usual + LOST * (untrained - usual)
        return has_half or not chance_of_lower(before, trial.window) < CHANCE
    outdone = any(one.outcome == Ending.TAKEN_BACK.value and one.after < trial.level for one in earlier)
    return not outdone and _lower(trial, before)


def _lower(trial: Trial, untrained: Sequence[float]) -> bool:
    """Return whether the losses at the end of a trial lie below those of untrained weights, beyond chance.

    What a network comes to say without looking at its input, as one does whose units have died, is no help.
    """
    level, window = beginning(list(untrained)), trial.window
    if not trial.level < level - (1.0 - UNMOVED) * abs(level):
        return False
    # Of one or two losses ranks can prove nothing.
    below = max(window) < min(untrained) or chance_of_lower(window, untrained) < CHANCE
    return below or 0.0 <= trial.level < LEARNED * level
