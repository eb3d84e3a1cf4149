"""All micro-batches of a step are known, where there is room for them, and none of another step."""

from __future__ import annotations

import pytest

from lightning_gradguard.step.inputs import MOST, Passes, StepInputs


@pytest.mark.parametrize("keep", [True, False])
def test_those_of_one_step_are_kept_where_there_is_room(keep: bool) -> None:
    passes = Passes()
    for step in range(2):
        for k in range(3):
            passes.take(f"batch {step}.{k}", k, keep=keep)
        assert passes.earlier == (((f"batch {step}.0", 0), (f"batch {step}.1", 1)) if keep else ())
        passes.over = True
    passes.take("another", 9, keep=keep)
    assert passes.earlier == ()
    passes.drop()
    passes.take("after it", 0, keep=True)
    assert passes.earlier == ()


def test_of_a_long_accumulation_the_last_ones_are_kept() -> None:
    passes = Passes()
    for k in range(100):
        passes.take(k, k, keep=True)
    assert [index for _, index in passes.earlier] == list(range(100 - MOST, 99))


def test_the_last_one_is_the_first_suspect() -> None:
    inputs = StepInputs(batch="c", batch_index=2, earlier=(("a", 0), ("b", 1)))
    assert list(inputs.batches) == [("c", 2), ("b", 1), ("a", 0)]
    assert list(StepInputs().batches) == [(None, None)]
