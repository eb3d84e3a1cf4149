"""One small model of each library: healthy bit-identical, and a trouble that is typical of it survived."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.builders import same
from tests.ecosystem.libraries import LIBRARIES, State

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Some leave files where they are run.


def finite(state: State) -> bool:
    return all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point())


def apart(one: State, other: State) -> float:
    """Return the distance between two sets of weights."""
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one))


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_healthy_run_ends_bit_identical(name: str, tmp_path: Path) -> None:
    library = LIBRARIES[name]
    guard = library.guard()
    ends = [library.train(tmp_path, guards, False) for guards in ([], [guard])]
    assert same(*ends) and not guard.incidents


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_sick_run_is_rescued(name: str, tmp_path: Path) -> None:
    library = LIBRARIES[name]
    healthy = library.train(tmp_path, [], False)
    try:
        lost = library.train(tmp_path, [], True)
    except Exception:
        lost = {}  # Some check what the network puts out, and raise.
    saved = library.train(tmp_path, [library.guard()], True)
    assert finite(saved)
    # What is no longer finite is lost; of the rest the guarded run must end the nearer to the healthy one.
    assert not lost or not finite(lost) or apart(saved, healthy) < apart(lost, healthy)
