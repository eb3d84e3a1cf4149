"""The optimizer's own state as it was found."""

from __future__ import annotations

from lightning_gradguard.detectors import OptimizerStateCorruption
from tests.builders import calm, statistics, taught


def test_a_spoilt_state_is_told_as_it_was_found() -> None:
    assert OptimizerStateCorruption().judge(statistics(1.0), taught(calm(60))) is None
    verdict = OptimizerStateCorruption().judge(statistics(1.0, spoilt="exp_avg of w is not finite"), taught(calm(60)))
    assert verdict is not None and verdict.form == "state" and "exp_avg of w" in verdict.reason
