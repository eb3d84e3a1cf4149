"""DDP on two processes: whatever happens to one rank, both decide alike and end with the same bits."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from lightning_gradguard.history.sample import RECENT
from lightning_gradguard.statistics.joint_loss import LOSS_EVERY
from tests.builders import same
from tests.compatibility.matrix import cells
from tests.strategies.ddp_scenarios import SCENARIOS
from tests.strategies.launch import group

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return group("ddp_scenarios", tmp_path_factory.mktemp("ddp"))


def actions(result: dict[str, Any]) -> list[tuple[int, str, list[str]]]:
    """Return step, form and remedies of everything that was done."""
    return [
        (action["step"], action["verdict"]["form"], [o["remedy"] for o in action["outcomes"] if o["applied"]])
        for incident in result["incidents"]
        for action in incident["actions"]
    ]


cell = partial(pytest.mark.cell, "Strategies")
TWO = "DDP, two processes"


@pytest.mark.parametrize("name", SCENARIOS)
@cell(TWO, "sick", note="after every remedy parameters and optimizer state are bit-identical across ranks")
def test_ranks_end_alike(ranks: Ranks, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    weights, others = (r["end"]["weights"] for r in (first, second))
    learned = {key for key in weights if "running" not in key}
    assert all(same(weights[key], others[key]) for key in learned)
    assert all(value.isfinite().all() for value in weights.values())
    assert same(first["end"]["optimizers"], second["end"]["optimizers"])
    assert first["steps"] == second["steps"]
    assert first["incidents"] == second["incidents"]


KINDS = {
    TWO: "",
    "DDP, BatchNorm": " with BatchNorm",
    "DDP, `static_graph`": " static graph",
    "DDP, `find_unused_parameters`": " unused parameters",
    "DDP, accumulating under `no_sync`": " accumulating",
}


@pytest.mark.parametrize("kind", cells("Strategies", KINDS, "healthy"))
def test_a_healthy_run_is_bit_identical_to_the_unguarded_one(ranks: Ranks, kind: str) -> None:
    for rank in ranks:
        assert same(rank["plain" + kind]["end"], rank["guarded" + kind]["end"])
        assert rank["guarded" + kind]["incidents"] == []


def test_witnesses_with_hooks_change_no_number(ranks: Ranks) -> None:
    for rank in ranks:
        assert same(rank["plain"]["end"], rank["watched"]["end"]) and rank["watched"]["hooks"] == []
    assert {"update_ratio", "second_moment", "router_load"} <= set(ranks[0]["watched"]["seen"])


@pytest.mark.parametrize("sick", [0, 1])
def test_a_nan_on_one_rank_costs_that_step_and_leaves_no_trace(ranks: Ranks, sick: int) -> None:
    for rank in ranks:
        assert actions(rank[f"NaN on rank {sick}"]) == [(20, "non-finite", ["skip"])]
        assert rank[f"NaN on rank {sick}"]["incidents"][0]["blame"][0]["layer"] == "batch"
        assert same(rank[f"NaN on rank {sick}"]["end"], rank["never seen"]["end"])


@cell("DDP, BatchNorm", "sick")
def test_a_nan_leaves_no_trace_in_batch_norm(ranks: Ranks) -> None:
    for rank in ranks:
        assert same(rank["NaN with BatchNorm"]["end"], rank["never seen with BatchNorm"]["end"])


@cell("DDP, `static_graph`", "sick")
def test_a_nan_in_a_static_graph_leaves_no_trace(ranks: Ranks) -> None:
    for rank in ranks:
        assert actions(rank["NaN static graph"]) == [(20, "non-finite", ["skip"])]
        assert same(rank["NaN static graph"]["end"], rank["never seen"]["end"])


def test_a_healthy_step_costs_no_collective_but_the_losses_once_in_eight(ranks: Ranks) -> None:
    for rank in ranks:
        late = dict(enumerate(rank["counted"]["collectives"]))
        # A mean is a barrier and a reduction; snapshots have two: all must have room for them, and have taken them.
        turns = {step: count for step, count in late.items() if step > RECENT and count}
        assert list(turns) == list(range(16, 60, LOSS_EVERY))
        assert set(turns.values()) <= {2, 6} and list(turns.values()).count(6) <= 2


@cell("DDP, accumulating under `no_sync`", "sick")
def test_a_nan_under_no_sync_costs_that_step_and_leaves_no_trace(ranks: Ranks) -> None:
    for rank in ranks:
        assert actions(rank["NaN accumulating"]) == [(10, "non-finite", ["skip"])]
        assert same(rank["NaN accumulating"]["end"], rank["plain accumulating"]["end"])


@cell("DDP, `find_unused_parameters`", "sick")
def test_a_nan_beside_a_parameter_that_one_rank_alone_uses(ranks: Ranks) -> None:
    for rank in ranks:
        assert actions(rank["unused parameters"]) == [(20, "non-finite", ["skip"])]


@pytest.mark.parametrize("sick", [0, 1])
def test_a_corrupt_batch_on_one_rank_is_named_by_both(ranks: Ranks, sick: int) -> None:
    for rank in ranks:
        assert actions(rank[f"corrupt on rank {sick}"]) == [(50, "sudden", ["skip"])]
        assert rank[f"corrupt on rank {sick}"]["incidents"][0]["blame"][0]["layer"] == "batch"


def test_a_bad_start_on_one_rank_is_skipped_on_both(ranks: Ranks) -> None:
    for rank in ranks:
        assert [remedies for _, _, remedies in actions(rank["NaN in the first steps"])] == [["skip"]] * 2


def test_the_optional_remedies_act_on_both(ranks: Ranks) -> None:
    for rank in ranks:
        done = {name for _, _, names in actions(rank["bad layer, all remedies"]) for name in names}
        assert {"reinitialize", "regularize", "augment", "swap-activation"} <= done


def test_a_bad_layer_is_repaired_on_both(ranks: Ranks) -> None:
    for rank in ranks:
        done = actions(rank["bad layer"])
        assert "reinitialize" in done[-1][2] and len(done) <= 2
        assert rank["bad layer"]["incidents"][0]["blame"][0]["layer"] == "network.4"


def test_a_loss_that_leaps_on_one_rank_alone_changes_nothing(ranks: Ranks) -> None:
    for rank in ranks:
        assert actions(rank["leaping"]) == []


def test_a_rate_that_is_far_too_high_is_put_on_the_same_trials_by_both(ranks: Ranks) -> None:
    first, second = (rank["backing off"] for rank in ranks)
    assert actions(first) == actions(second) and same(first["end"], second["end"])
    assert {"rollback", "backoff"} <= {remedy for _, _, remedies in actions(first) for remedy in remedies}
    trials = [(t["cause"], t["outcome"]) for incident in first["incidents"] for t in incident["trials"]]
    assert (
        trials
        and trials[-1][1] == "kept"
        and trials == [(t["cause"], t["outcome"]) for incident in second["incidents"] for t in incident["trials"]]
    )
    assert first["rates"] == second["rates"] and set(first["rates"]) == {2.0}


def test_a_run_resumed_in_mid_trial_ends_as_the_uninterrupted_one(ranks: Ranks) -> None:
    for rank in ranks:
        assert all(rank["resumed"]["trials"]), "the checkpoint came in mid-trial"
        assert same(rank["resumed"]["end"], rank["backing off"]["end"])
        assert same(rank["resumed"]["incidents"], rank["backing off"]["incidents"])


@cell("DDP, resumed", "healthy", "sick", note="in calm and in mid-incident, on every rank")
def test_a_run_resumed_in_calm_knows_what_every_rank_knew(ranks: Ranks) -> None:
    for rank in ranks:
        assert actions(rank["late"])
        assert same(rank["late"]["end"], rank["resumed in calm"]["end"])
        for one in ("late", "resumed in calm"):
            # What is usual of a witness is learned anew in a resumed run, and no decision hangs on it.
            learned = rank[one]["learned"]
            for incident in (*rank[one]["incidents"], *learned["incidents"], learned["lanes"]["0"]["incident"] or {}):
                incident.pop("witnessed", None)
        assert same(rank["late"]["incidents"], rank["resumed in calm"]["incidents"])
        for learned in (rank["late"]["learned"], rank["resumed in calm"]["learned"]):
            # Of the batches themselves each rank remembers its own, and a checkpoint holds those of the first.
            del learned["lanes"]["0"]["batches"]
            del learned["run"]  # Each run has a name of its own.
        assert same(rank["late"]["learned"], rank["resumed in calm"]["learned"])


def test_a_spent_budget_ends_both_at_the_same_step(ranks: Ranks) -> None:
    assert [rank["hopeless"]["steps"] < 80 for rank in ranks] == [True, True]


def test_without_memory_on_one_rank_neither_goes_back(ranks: Ranks) -> None:
    for rank in ranks:
        done = actions(rank["no memory on rank 1"])
        assert done and not any("rollback" in remedies for _, _, remedies in done)
