"""Windows that widen with the run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.diagnostics.widening import LEAD, Widening
from tests.diagnostics.examples import window


def through(widening, windows, trouble=()):
    out = []
    for seen in windows:
        if seen.tick in trouble:
            out += widening.trouble()
        out += widening.add(seen)
    return out + widening.flush()


def windows(count, **peaks):
    return [window(t, layers=("a",), norm_peak=peaks.get(f"at_{t}", 1.0)) for t in range(count)]


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 600), st.sets(st.integers(0, 600), max_size=8))
def test_nothing_is_lost_and_the_count_is_bounded(parts, spare, count, trouble):
    out = through(Widening(parts, spare=spare), windows(count), trouble)
    assert [w.first_step for w in out[1:]] == [w.step + 1 for w in out[:-1]]
    assert not out or (out[0].first_step, out[-1].step) == (0, 25 * count - 1)
    # Each beginning of trouble may end a window early, and end it with what waits.
    bound = parts * (1 + math.log(max(count / parts, 1))) + spare + (LEAD + 2) * (len(trouble) + 1)
    assert len(out) <= bound


def test_a_million_steps_are_some_thousand_windows_and_keep_their_peak():
    out = through(Widening(1000, spare=2000), windows(20_000, at_13333=77.0))
    assert len(out) <= 1000 * (1 + math.log(20))
    assert max(w.norm_peak for w in out) == 77.0
    assert all((w.step - w.first_step + 1) / 25 <= (w.tick + LEAD + 1) / 1000 + 1 for w in out)


def test_around_trouble_windows_stay_as_they_are():
    out = through(Widening(10, spare=1000), windows(1000), trouble={800})
    narrow = [w.tick for w in out if w.step - w.first_step == 24 and w.tick > 100 and w.tick < 990 - LEAD]
    assert narrow == list(range(800 - LEAD, 800 + LEAD))


def test_endless_trouble_does_not_fill_the_disk():
    widening = Widening(100, spare=200)
    assert len(through(widening, windows(5000), trouble=range(0, 5000, 25))) < 100 * (1 + math.log(50)) + 200 + 200 * 2


@pytest.mark.parametrize("start", [0, 5000])
def test_a_resumed_run_goes_on_as_wide_as_it_was(start):
    out = through(Widening(10), windows(start + 1000)[start:])
    assert (out[0].step - out[0].first_step > 1000) == (start > 0)
