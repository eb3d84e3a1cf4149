"""Feed a detector one accepted step after the other."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradguard.detectors import Detector
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import Verdict
from tests.builders import statistics


def run(
    detector: Detector,
    norms: Sequence[float],
    losses: Sequence[float] | None = None,
    *,
    rates: Sequence[float] | None = None,
    ratio: float = 0.0,
    convicted: bool = False,
    baseline: Baseline | None = None,
) -> list[tuple[int, Verdict]]:
    """Feed accepted steps until the end; return what was said, and when.

    Args:
        detector: The detector.
        norms: Gradient norms.
        losses: Losses of the same steps, if they are known.
        rates: Learning rates of the same steps, if they are known.
        ratio: Size of the first update, relative to the weights.
        convicted: Whether a rate was convicted before.
        baseline: What is known before; by default nothing.
    """
    baseline, said = baseline or Baseline(), []
    baseline.updates.ratio = ratio
    baseline.updates.convicted |= convicted
    for step, norm in enumerate(norms):
        loss = losses[step] if losses is not None else None
        seen = statistics(norm, step=step, loss=loss, rate=rates[step] if rates is not None else None)
        verdict = detector.judge(seen, baseline)
        if verdict is not None:
            said.append((step, verdict))
        baseline.accept(norm, loss)
        detector.accept(seen, baseline)
    return said
