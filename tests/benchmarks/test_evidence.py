"""The cost of evidence is measured, not quoted."""

from __future__ import annotations

from benchmarks import evidence


def test_reading_and_the_loop_are_timed() -> None:
    warm, inside = evidence.reading(20)
    assert 0.0 < warm < 1e4 and 0.0 < inside < 1e5
    assert len(evidence.ratios(2, steps=2)) == 2
