"""The benchmark of the record measures what it says."""

from __future__ import annotations

from pathlib import Path

from benchmarks import diagnostics


def test_the_compact_event_is_small() -> None:
    seconds, size = diagnostics.compact_event(count=40)
    assert seconds > 0
    # Four bytes a layer and little around them, twenty times in a thousand steps.
    assert 20 * 4 * 200 < size < 25_000 < diagnostics.MOST_BYTES


def test_a_long_run_is_written_as_a_run_writes_it(tmp_path: Path) -> None:
    board, journal = diagnostics.long_run(tmp_path, 10, steps=5000)
    assert 10_000 < board < 200_000 and 10_000 < journal < 100_000


def test_a_missed_bar_is_said() -> None:
    assert diagnostics.verdict(3.1, 3.0) == "**missed**" and diagnostics.verdict(float("nan"), 3.0) == "**missed**"
    assert diagnostics.verdict(2.9, 3.0) == "held"
