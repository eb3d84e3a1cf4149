"""What norms, losses and updates say together, and what teaches nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.sample import NORM_WINDOW, THIN_HISTORY
from lightning_gradguard.history.updates import LARGE
from tests.builders import calm, same, taught, through_a_file

NORMS = st.floats(1e-30, 1e30)
ANYTHING = st.one_of(NORMS, st.sampled_from([0.0, math.nan, math.inf, 1e-45]))
LOSSES = st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf]))


def near(level: float, count: int) -> list[float]:
    """Losses of one level, a thousandth of it apart."""
    return calm(count, level=level, spread=1e-3, seed=count)


@given(st.lists(st.tuples(ANYTHING, LOSSES), max_size=200), st.integers(0, 200))
def test_state_round_trips_at_any_point(steps: list[tuple[float, float | None]], cut: int) -> None:
    whole, first = Baseline(), Baseline()
    for norm, loss in steps[:cut]:
        first.accept(norm, loss)
    second = Baseline()
    second.load_state_dict(through_a_file(first.state_dict()))
    for index, (norm, loss) in enumerate(steps):
        whole.accept(norm, loss)
        if index >= cut:
            second.accept(norm, loss)
    assert same(whole.state_dict(), second.state_dict())
    assert same(
        (whole.norms.center, whole.norms.spread, whole.norms.recent),
        (second.norms.center, second.norms.spread, second.norms.recent),
    )


@given(st.lists(NORMS, min_size=1, max_size=40), st.lists(st.sampled_from([math.nan, math.inf, 0.0]), max_size=20))
def test_what_is_not_finite_or_zero_teaches_nothing(norms: list[float], bad: list[float]) -> None:
    baseline = taught(norms)
    before = (
        baseline.norms.center,
        baseline.norms.spread,
        baseline.norms.recent,
        baseline.norms.high_water,
        baseline.norms.typical,
    )
    for norm in bad:
        baseline.accept(norm, norm or math.nan)
    assert (
        baseline.norms.center,
        baseline.norms.spread,
        baseline.norms.recent,
        baseline.norms.high_water,
        baseline.norms.typical,
    ) == before
    assert math.isnan(baseline.losses.level()[0])


def test_memory_is_bounded() -> None:
    baseline = taught(calm(5000), calm(5000))
    assert all(len(v) <= NORM_WINDOW for v in baseline.state_dict().values() if isinstance(v, list))


def test_large_updates_are_forgiven_where_the_run_has_learned_with_them() -> None:
    for last, left in ((0.3, 0.0), (2.3, 2 * LARGE)):
        baseline = Baseline()
        baseline.updates.ratio = 2 * LARGE
        for loss in near(2.3, 9) + near(last, 60):
            baseline.accept(1.0, loss)
        assert baseline.count > 2 * THIN_HISTORY and baseline.updates.ratio == left


@pytest.mark.parametrize(
    ("ratio", "norm", "loss", "expected"),
    [
        (2 * LARGE, 1e-7, 1e-9, True),
        (2 * LARGE, 0.0, -1e-9, True),
        (0.5 * LARGE, 1e-7, 1e-9, False),
        (2 * LARGE, 0.1, 1e-9, False),
        (2 * LARGE, 1e-7, 0.1, False),
    ],
)
def test_a_run_is_put_out_where_loss_and_gradients_go_after_large_updates(
    ratio: float, norm: float, loss: float, expected: bool
) -> None:
    baseline = Baseline()
    baseline.updates.accept(ratio)
    baseline.accept(1.0, 100.0)
    assert not baseline.put_out
    for _ in range(20):
        baseline.accept(norm, loss)
    assert baseline.put_out is expected
    if expected:
        assert baseline.progress == (False, False, False), "no rate has proved to be good"


@pytest.mark.parametrize(
    ("first", "tells"), [([31.0, -53.0, 560.0], False), ([-1.0, -2.0], True), ([0.0, 1.0], True), ([], True)]
)
def test_a_loss_on_both_sides_of_zero_before_training_tells_nothing(first: list[float], tells: bool) -> None:
    baseline = taught([1.0] * len(first), first) if first else Baseline()
    assert baseline.loss_tells is tells
    for _ in range(20):
        baseline.accept(1.0, 5.0 if not first or first[0] >= 0.0 else -5.0)
    for _ in range(20):
        baseline.accept(1.0, -50.0)
    assert baseline.loss_tells is tells, "what is learned later may cross zero"


@pytest.mark.parametrize(
    ("losses", "norms", "tells"),
    [
        ([-850.0, -15.0], [190.0, 4.0], False),
        ([-850.0, -15.0], [190.0, 190.0], True),
        ([-850.0, -400.0], [190.0, 4.0], True),
        ([850.0, 15.0], [190.0, 4.0], True),
        ([-15.0, -850.0], [190.0, 4.0], True),
    ],
    ids=["both vanish", "gradients stay", "the loss stays", "above zero it has learned", "a likelihood"],
)
def test_a_loss_below_zero_that_vanishes_with_its_gradients_is_a_cost_and_no_measure(
    losses: list[float], norms: list[float], tells: bool
) -> None:
    baseline = Baseline()
    for level, norm in zip(losses, norms, strict=True):
        for loss in near(level, 20):
            baseline.accept(norm, loss)
    assert baseline.loss_tells is tells
    for loss in near(losses[0], 20):
        baseline.accept(norms[0], loss)
    assert baseline.loss_tells is tells, "what was found once is not forgotten"


def test_a_loss_that_has_deceived_is_no_progress_and_is_not_forgotten_when_weights_go_back() -> None:
    baseline, other = taught(calm(100), noisy_fall()), Baseline()
    assert any(baseline.progress)
    baseline.deceived = True
    assert baseline.progress == (False, False, False)
    other.outlast(baseline.outlasting())
    assert other.deceived


def noisy_fall() -> list[float]:
    return near(2.3, 50) + near(0.3, 50)
