"""What was seen of the signal, and when it is looked for again."""

from __future__ import annotations

from lightning_gradguard.attribution.signal import Signal
from lightning_gradguard.records import Verdict
from lightning_gradguard.treatment import LIFE, SignalWatch
from tests.builders import same, through_a_file


def test_it_is_looked_for_at_longer_and_longer_intervals() -> None:
    watch = SignalWatch()
    assert [n for n in range(1, 8 * LIFE) if watch.time_to_look(n)] == [LIFE, 2 * LIFE, 4 * LIFE]
    watch.look_soon(1000)
    assert not watch.time_to_look(1000 + LIFE - 1) and watch.time_to_look(1000 + LIFE)


def test_an_alarm_that_had_the_layers_measured_is_heard_once() -> None:
    watch, verdict = SignalWatch(), Verdict("sudden", "test", 2.0, 1.0, "x")
    watch.look_for(verdict)
    assert watch.looked and watch.alarm() is verdict and watch.alarm() is None
    watch.look_for(None)
    assert not watch.looked


def test_what_was_measured_goes_with_the_weights_it_was_measured_of() -> None:
    watch = SignalWatch()
    watch.growth, watch.dead = 50.0, True
    watch.go_back(look=True)
    assert (watch.growth, watch.dead) == (50.0, False)
    watch.go_back(look=False)
    assert watch.growth is None


def test_all_of_it_comes_back_through_a_file() -> None:
    watch, other = SignalWatch(), SignalWatch()
    watch.growth, watch.dead, watch.seen = 50.0, True, Signal(1.0, 2.0, None)
    watch.look_for(Verdict("sudden", "test", 2.0, float("inf"), "x"))
    watch.look_soon(7)
    other.load_state_dict(through_a_file(watch.state_dict()), watch.next_look)
    assert same(vars(other), vars(watch))
