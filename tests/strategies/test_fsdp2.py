"""FSDP2 on two processes: norms are of the whole, shards are skipped and rolled back, both ranks decide alike."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp
from lightning.pytorch import Callback
from torch import Tensor

from lightning_gradguard import GradGuard, Policy
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.history.sample import RECENT
from lightning_gradguard.records import to_json
from lightning_gradguard.remedies import Augment, Regularize, Remedy, SwapActivation
from lightning_gradguard.statistics.joint_loss import LOSS_EVERY
from tests.builders import Net, loader, mlp, same, spoil, trainer
from tests.strategies.ddp_scenarios import ADAM, SGD, data, deep
from tests.strategies.fsdp_scenarios import HOT, OPTIONAL, SCENARIOS, Damages, Mirror, thrown_back_soon
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


class Both(Net):
    """A module that has the batches of both ranks at once; the second one's loss can be multiplied."""

    def __init__(
        self, optimizer: Any, sick: range = range(0), by: float = 1.0, network: torch.nn.Sequential | None = None
    ) -> None:
        super().__init__(network or mlp(), optimizer)
        self.sick, self.by = sick, by

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        first, second = (torch.nn.functional.mse_loss(self.network(x), y) for x, y in batch)
        return (first + second * (self.by if batch_idx in self.sick else 1.0)) / 2


class Joined(Both):
    """The same with the samples of both ranks in one tensor."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = (both.chunk(2) for both in batch)
        return super().training_step(tuple(zip(x, y, strict=True)), batch_idx)


def alone(
    root: Path, module: Both, guard: GradGuard, *others: Callback, count: int = 40, spoilt: int | None = None
) -> tuple[dict[str, Any], list[Any]]:
    """Return weights and incidents of a single process."""
    halves = [spoil(data(rank, count), 20) if rank == spoilt else data(rank, count) for rank in range(2)]
    batches = list(zip(*halves, strict=True))
    if isinstance(module, Joined):
        batches = [tuple(map(torch.cat, zip(*both, strict=True))) for both in batches]
    trainer(root, callbacks=[*others, guard]).fit(module, loader(batches))
    return dict(module.named_parameters()), [to_json(i) for i in guard.incidents]


def told(incidents: list[Any]) -> list[str]:
    """Return the reasons of all verdicts."""
    return [action["verdict"]["reason"] for incident in incidents for action in incident["actions"]]


@pytest.mark.parametrize("name", SCENARIOS)
@cell(
    "sick",
    note="a resumed run can go back at once",
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
    weights, incidents = alone(tmp_path, Both(SGD), GradGuard(journal=False), spoilt=sick)
    found = ranks[0][f"NaN on rank {sick}"]
    for name, value in weights.items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-4, atol=1e-6)
    # The number of bad elements among them, though they lie on both ranks.
    assert told(found["incidents"]) == told(incidents)


def hot() -> Both:
    return Both(HOT)


def patient(*optional: Remedy) -> GradGuard:
    return GradGuard(journal=False, remedies=[*default_remedies(), *optional], policy=Policy(max_skipped=10))


SINGLE: dict[str, tuple[Any, Any]] = {
    "clipped": (lambda: Both(SGD, range(50, 51), 1e3), lambda: GradGuard(journal=False)),
    "backing off": (hot, thrown_back_soon),
    "regularized": (hot, lambda: thrown_back_soon(Regularize)),
    "mixed up": (hot, lambda: thrown_back_soon(Augment)),
    "mirrored": (hot, lambda: thrown_back_soon(Mirror)),
    "all remedies": (hot, lambda: thrown_back_soon(*OPTIONAL)),
    "bad layer": (lambda: Both(ADAM, network=deep(1e4)), patient),
    "bad layer, swapped": (lambda: Both(ADAM, network=deep(1e4)), lambda: patient(SwapActivation())),
    "damaged layer": (lambda: Both(ADAM, network=deep(1.0)), thrown_back_soon),
    "damaged layer, swapped": (lambda: Both(ADAM, network=deep(1.0)), lambda: thrown_back_soon(SwapActivation)),
}
"""How a single process makes the same run: module and guard."""


@pytest.mark.parametrize("name", SINGLE)
@cell("sick", note="after each remedy equal to a single process, within a relative 1e-4")
def test_after_every_remedy_the_weights_are_those_of_a_single_process(name: str, ranks: Ranks, tmp_path: Path) -> None:
    make, guard = SINGLE[name]
    found, module, others = ranks[0][name], make(), [Damages()] * name.startswith("damaged")
    weights, incidents = alone(tmp_path, module, guard(), *others, count=found["steps"])
    assert actions({"incidents": incidents}) == actions(found)
    assert [a.removeprefix("FSDP") for a in found["activations"]] == [type(m).__name__ for m in module.network]
    if name.startswith("damaged"):
        return  # Several processes know their losses now and then only, and so copy the state at other steps.
    for key, value in weights.items():
        torch.testing.assert_close(found["weights"][key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("mirrored", Mirror), ("mixed up", Augment)])
def test_only_mixup_depends_on_how_samples_lie_on_processes(name: str, kind: Any, ranks: Ranks, tmp_path: Path) -> None:
    weights, incidents = alone(tmp_path, Joined(HOT), thrown_back_soon(kind), count=34)
    assert actions({"incidents": incidents}) == actions(ranks[0][name])
    alike = [torch.allclose(ranks[0][name]["weights"][key], value, rtol=1e-4) for key, value in weights.items()]
    assert all(alike) if kind is Mirror else not any(alike)


@pytest.mark.parametrize("name", ["regularized", "mixed up", "mirrored"])
def test_an_optional_remedy_moves_shards_otherwise(name: str, ranks: Ranks) -> None:
    assert not same(ranks[0][name]["weights"], ranks[0]["backing off"]["weights"])


@pytest.mark.parametrize("name", ["bad layer, swapped", "damaged layer, swapped"])
def test_the_activation_of_a_sharded_layer_is_swapped(name: str, ranks: Ranks) -> None:
    assert ranks[0][name]["activations"].index("Softsign") == 5


@pytest.mark.parametrize(
    ("name", "swapped"), [("all remedies", False), ("bad layer, all remedies", True)], ids=["rate", "layer"]
)
@cell("sick")
def test_the_optional_remedies_act_on_shards_alike(name: str, swapped: bool, ranks: Ranks) -> None:
    """An activation is swapped where a layer is at fault, and not where the rate is."""
    done = {remedy for _, _, names in actions(ranks[0][name]) for remedy in names}
    assert {"regularize", "augment"} <= done and ("swap-activation" in done) is swapped, done
    assert ranks[0][name]["activations"] == ranks[1][name]["activations"]
    assert ("Softsign" in ranks[0][name]["activations"]) is swapped


def test_a_healthy_step_costs_one_small_reduction_and_the_losses_once_in_eight(ranks: Ranks) -> None:
    for rank in ranks:
        late = dict(enumerate(rank["counted"]["collectives"]))
        turns = {step: count for step, count in late.items() if step > RECENT and count != 1}
        assert list(turns) == list(range(16, 60, LOSS_EVERY))
        assert set(turns.values()) <= {3, 7} and list(turns.values()).count(7) <= 2, "snapshots have two means more"


def test_a_corrupt_batch_on_one_rank_is_named(ranks: Ranks) -> None:
    assert actions(ranks[0]["corrupt on rank 1"]) == [(50, "sudden", ["skip"])]
    assert ranks[0]["corrupt on rank 1"]["incidents"][0]["blame"][0]["layer"] == "batch"


def test_a_spike_is_clipped(ranks: Ranks) -> None:
    assert actions(ranks[0]["clipped"]) == [(50, "sudden", ["clip"])]


@cell("sick")
def test_shards_are_rolled_back_and_rates_lowered_alike(ranks: Ranks) -> None:
    assert {"rollback", "backoff"} <= {remedy for _, _, done in actions(ranks[0]["backing off"]) for remedy in done}


@pytest.mark.parametrize(("name", "how"), [("bad layer", "rescaled"), ("damaged layer", "restored from the snapshot")])
@cell("sick")
def test_a_layer_in_shards_is_named_and_mended(name: str, how: str, ranks: Ranks) -> None:
    incident = ranks[0][name]["incidents"][0]
    assert incident["blame"][0]["layer"] == "network.4"
    details = [o["detail"] for a in incident["actions"] for o in a["outcomes"] if o["remedy"] == "reinitialize"]
    assert details and how in details[0]
