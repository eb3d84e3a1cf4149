"""What can be used of a saved state is taken, and the rest is named."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lightning_gradguard.checkpoint import usable
from lightning_gradguard.errors import PartError
from lightning_gradguard.parts import Parts
from tests.builders import same
from tests.step.loop import Loop


@pytest.fixture(scope="module")
def loop() -> Loop:
    made = Loop()
    made.step(float("nan"))
    return made


def taken(loop: Loop, state: Any) -> tuple[dict[str, Any], list[str]]:
    return usable(state, loop.network, loop.guard._parts)


def test_a_state_that_fits_is_taken_whole(loop: Loop) -> None:
    state = loop.guard.state_dict()
    found, forgotten = taken(loop, state)
    assert forgotten == [] and same(found, state)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (("policy",), "policy of optimizer 0"),
        (("batches",), "batches of optimizer 0"),
        (("memory", "baseline", "count"), "all of optimizer 0"),
    ],
)
def test_one_piece_that_does_not_fit_costs_that_piece(loop: Loop, broken: tuple[str, ...], named: str) -> None:
    state = copy.deepcopy(loop.guard.state_dict())
    place = state["lanes"]["0"]
    for key in broken[:-1]:
        place = place[key]
    place[broken[-1]] = "nonsense"
    found, forgotten = taken(loop, state)
    assert named in forgotten
    assert ("0" in found["lanes"]) is (broken[0] != "memory")


def test_an_incident_that_nobody_has_open_any_more_is_closed(loop: Loop) -> None:
    state = copy.deepcopy(loop.guard.state_dict())
    assert state["incidents"][0]["closed"] is None
    state["lanes"] = {}
    assert taken(loop, state)[0]["incidents"][0]["closed"] == 60


def test_a_part_that_cannot_load_what_it_saved_is_at_fault_itself(loop: Loop) -> None:
    class Broken(type(loop.guard._parts.remedies[0])):  # type: ignore[misc]
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise RuntimeError("for a test")

    known = loop.guard._parts
    parts = Parts(known.detectors, [Broken()], known.policy, known.snapshots)
    with pytest.raises(PartError, match="for a test"):
        usable(loop.guard.state_dict(), loop.network, parts)
