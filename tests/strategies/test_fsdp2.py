"""FSDP2 on two processes: norms are those of the whole, shards are held and rolled back, and both ranks decide alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp

from lightning_gradguard import GradGuard
from lightning_gradguard.records import to_json
from tests.builders import Net, loader, mlp, same, spoil, trainer
from tests.strategies.ddp_scenarios import SGD, data
from tests.strategies.fsdp_scenarios import SCENARIOS
from tests.strategies.launch import group
from tests.strategies.test_ddp import actions

pytestmark = pytest.mark.skipif(
    not hasattr(torch.distributed.fsdp, "fully_shard"), reason="fully_shard became public with torch 2.6"
)
TWO = "FSDP2 (`ModelParallelStrategy`), two processes"
cell = partial(pytest.mark.cell, "Strategies", TWO)

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return group("fsdp_scenarios", tmp_path_factory.mktemp("fsdp"))


def alone(root: Path, sick: int | None = None) -> tuple[dict[str, Any], list[Any]]:
    """Return weights and incidents of a single process that has the batches of both ranks at once."""
    halves = [spoil(data(rank), 20) if rank == sick else data(rank) for rank in range(2)]
    batches = [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(*halves, strict=True)]
    guard, module = GradGuard(journal=False), Net(mlp(), SGD)
    trainer(root, callbacks=[guard]).fit(module, loader(batches))
    return dict(module.named_parameters()), [to_json(i) for i in guard.incidents]


@pytest.mark.parametrize("name", SCENARIOS)
@cell(
    "sick",
    note="layers are blamed but not re-initialised; a resumed run can go back again after its first healthy step",
)
def test_ranks_end_alike(ranks: Ranks, name: str) -> None:
    first, second = (rank[name] for rank in ranks)
    assert same(first, second)
    assert all(value.isfinite().all() for value in first["weights"].values())


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@cell("healthy")
def test_a_healthy_run_is_bit_identical_to_the_unguarded_one(ranks: Ranks, kind: str) -> None:
    plain, guarded = (ranks[0][f"{way} {kind}"] for way in ("plain", "guarded"))
    assert same(plain, guarded) and guarded["incidents"] == []


@pytest.mark.parametrize("sick", [0, 1])
def test_a_nan_on_one_rank_costs_that_step_and_leaves_no_trace(ranks: Ranks, sick: int) -> None:
    found, clean = ranks[0][f"NaN on rank {sick}"], ranks[0]["never seen"]
    assert actions(found) == [(20, "non-finite", ["skip"])]
    assert same(found["weights"], clean["weights"]) and same(found["optimizer"], clean["optimizer"])


@pytest.mark.parametrize("sick", [0, 1])
@cell("sick")
def test_what_is_measured_and_done_equals_a_single_process(ranks: Ranks, sick: int, tmp_path: Path) -> None:
    weights, incidents = alone(tmp_path, sick)
    found = ranks[0][f"NaN on rank {sick}"]
    for name, value in weights.items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-4, atol=1e-6)
    # The number of bad elements among them, though they lie on both ranks.
    told = [action["verdict"]["reason"] for incident in incidents for action in incident["actions"]]
    assert [a["verdict"]["reason"] for i in found["incidents"] for a in i["actions"]] == told


def test_a_corrupt_batch_on_one_rank_is_named(ranks: Ranks) -> None:
    assert actions(ranks[0]["corrupt on rank 1"]) == [(50, "sudden", ["skip"])]
    assert ranks[0]["corrupt on rank 1"]["incidents"][0]["blame"][0]["layer"] == "batch"


def test_a_spike_is_clipped(ranks: Ranks) -> None:
    assert actions(ranks[0]["clipped"]) == [(50, "sudden", ["clip"])]


@cell("sick")
def test_shards_are_rolled_back_and_rates_lowered_alike(ranks: Ranks) -> None:
    assert {"rollback", "backoff"} <= {remedy for _, _, done in actions(ranks[0]["backing off"]) for remedy in done}


def test_a_bad_layer_is_named_but_not_re_initialised(ranks: Ranks) -> None:
    found = ranks[0]["bad layer"]
    assert found["incidents"][0]["blame"][0]["layer"] == "network.4"
    assert not any("reinitialize" in done for _, _, done in actions(found))
