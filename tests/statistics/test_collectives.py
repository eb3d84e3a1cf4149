"""What only one process knows is no ground for a decision."""

from __future__ import annotations

import pytest

from lightning_gradguard.statistics.collectives import Collectives, Own

TWO = Collectives(2, gather=lambda value: [value, "the other's"])


def test_nothing_can_be_decided_by_what_only_this_process_knows() -> None:
    with pytest.raises(TypeError, match="no ground for a decision"):
        bool(Own("x"))
    assert Own("x").known(TWO) is None and Own("x").known(Collectives()) == "x"


def test_told_it_is_everybodys_and_what_follows_from_it_is_told_too() -> None:
    assert Own("mine").told(TWO) == ["mine", "the other's"]
    assert Own("mine").and_then(len).told(Collectives()) == [4]
