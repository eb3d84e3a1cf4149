"""DDP on four processes, and on two that do not have the same number of batches."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.builders import same
from tests.strategies.ddp_of_four import SCENARIOS
from tests.strategies.launch import group
from tests.strategies.test_ddp import actions

Ranks = list[dict[str, Any]]
FOUR = "DDP, four processes"
cell = partial(pytest.mark.cell, "Strategies")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return group("ddp_of_four", tmp_path_factory.mktemp("ddp"), size=4)


@pytest.mark.parametrize("name", SCENARIOS)
@cell(FOUR, "sick", note="after every remedy parameters and optimizer state are bit-identical across ranks")
def test_ranks_end_alike(ranks: Ranks, name: str) -> None:
    first, *others = (rank[name] for rank in ranks)
    assert all(value.isfinite().all() for value in first["end"]["weights"].values())
    assert all(same(first["end"], other["end"]) and first["incidents"] == other["incidents"] for other in others)


@cell(FOUR, "healthy")
def test_a_healthy_run_is_bit_identical_to_the_unguarded_one(ranks: Ranks) -> None:
    for rank in ranks:
        assert same(rank["plain"]["end"], rank["guarded"]["end"]) and rank["guarded"]["incidents"] == []


@cell(FOUR, "sick")
def test_trouble_on_one_rank_is_one_decision_of_all(ranks: Ranks) -> None:
    for rank in ranks:
        assert actions(rank["NaN"]) == [(20, "non-finite", ["skip"])]
        assert same(rank["NaN"]["end"], rank["never seen"]["end"])
        assert actions(rank["corrupt"]) == [(50, "sudden", ["skip"])]
        assert {"rollback", "backoff"} <= {r for _, _, done in actions(rank["backing off"]) for r in done}


@pytest.mark.parametrize("guarded", [pytest.param(False, marks=pytest.mark.slow), True])
@cell(
    *("DDP, uneven data (torch's Join)", "refused"),
    note="Lightning enters no Join: the run ends with the process group's error, guarded or not, and never hangs",
)
def test_uneven_data_end_with_an_error_and_not_with_a_hang(
    guarded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARDED", str(int(guarded)))
    with pytest.raises(AssertionError, match=r"(?i)gloo|connection|timed? ?out"):
        group("uneven", tmp_path, timeout=60.0)
