"""Who is at fault for a test of Lightning's that fails with the guard."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lightning_suite import __main__ as command


@pytest.mark.parametrize(
    ("found", "culprit"),
    [
        ({"guard": {"a": "passed", "b": "skipped"}}, {}),
        ({"guard": {"a": "failed"}, "none": {"a": "failed"}}, {"a": "none"}),
        ({"guard": {"a": "failed"}, "none": {"a": "passed"}, "nothing": {"a": "failed"}}, {"a": "nothing"}),
        (
            {"guard": {"a": "failed"}, **{o: {"a": "passed"} for o in ("none", "nothing")}, "writes": {"a": "failed"}},
            {"a": "writes"},
        ),
        ({"guard": {"a": "timeout"}, **{o: {"a": "passed"} for o in command.OTHERS}}, {"a": "guard"}),
    ],
    ids=["none fails", "fails without", "fails with anything", "fails by what is written", "the guard alone"],
)
def test_the_guard_is_at_fault_for_what_it_fails_alone(found: Any, culprit: dict[str, str]) -> None:
    assert command.culprits(found) == culprit
    assert command.guilty(found) == [test for test, who in culprit.items() if who == "guard"]
