"""Snapshots that fit: what they take is known before they are made, and made smaller where it is too much."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.snapshots import budget, snapshot, store
from lightning_gradguard.snapshots.budget import Budget, Keeping, Need, fitting, left, need
from lightning_gradguard.statistics.collectives import Collectives
from tests.builders import mlp, regression

GIB = 2**30


def machine(root: Path, *, meminfo: int | None = None, limit: str | None = None, used: int = 0) -> Path:
    if meminfo is not None:
        (root / "proc").mkdir(parents=True)
        (root / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {meminfo // 1024} kB\n")
    if limit is not None:
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/memory.max").write_text(limit)
        (root / "sys/fs/cgroup/memory.current").write_text(str(used))
    return root


def test_what_is_left_is_the_least_of_machine_and_container(tmp_path: Path) -> None:
    assert left(machine(tmp_path / "a", meminfo=8 * GIB)) == 8 * GIB
    assert left(machine(tmp_path / "b", meminfo=8 * GIB, limit="max")) == 8 * GIB
    assert left(machine(tmp_path / "c", meminfo=8 * GIB, limit=str(4 * GIB), used=3 * GIB)) == GIB
    assert left(machine(tmp_path / "d", meminfo=8 * GIB, limit=str(GIB), used=2 * GIB)) == 0.0
    assert left(tmp_path / "nowhere") == float("inf")


def test_what_is_needed_is_foreseen_before_the_first_step() -> None:
    network = mlp(norm=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    before = need(network.parameters(), network.buffers(), optimizer, pinned=0)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    after = need(network.parameters(), network.buffers(), optimizer, pinned=0)
    assert after.values == before.values
    assert before.state == pytest.approx(after.state, rel=0.1)
    plain = need(network.parameters(), (), torch.optim.SGD(network.parameters(), lr=0.1), pinned=0)
    assert plain.state == 0


ALONE = frozenset(Keeping) - {Keeping.NODE, Keeping.DISK}
"""What a process can do that is the only one of its host, and writes no checkpoints."""


def found(wanted: Need, possible: Collection[Keeping] = ALONE, **limits: Any) -> Keeping:
    budget = Budget(**{"processes": 1, "max_bytes": None, "max_share": 0.25, **limits})
    return fitting([budget.allows(wanted, 2)], possible)


@pytest.mark.parametrize(
    ("available", "keeping"),
    [(100.0, Keeping.ALL), (8.0, Keeping.ONE), (5.0, Keeping.LEAN), (1.0, Keeping.NOTHING)],
)
def test_what_does_not_fit_is_made_smaller_step_by_step(available: float, keeping: Keeping) -> None:
    # Two and one for a treatment take 9, one and that one 6, without the state 2.
    assert found(Need(1, 2), available=available, max_share=0.75) is keeping
    told = Budget(available, 1, None, 0.75).told(Need(1, 2), 2, keeping)
    assert told.startswith("snapshots would take 9 B of host memory") and told.endswith(keeping.told)


def test_all_processes_of_a_host_share_its_memory() -> None:
    assert found(Need(1, 2), available=100.0) is Keeping.ALL
    assert found(Need(1, 2), available=100.0, processes=8) is Keeping.LEAN
    assert found(Need(1, 2), available=1e9, max_bytes=6) is Keeping.ONE


def test_processes_of_a_host_that_train_the_same_weights_keep_one_copy_together() -> None:
    together = ALONE | {Keeping.NODE}
    assert found(Need(1, 2), together, available=100.0, processes=8) is Keeping.NODE
    assert found(Need(1, 2), together, available=100.0, processes=8, max_bytes=5) is Keeping.LEAN
    assert found(Need(1, 2), together, available=200.0, processes=8) is Keeping.ONE


def test_a_checkpoint_on_disk_is_better_than_nothing() -> None:
    assert found(Need(1, 2), ALONE | {Keeping.DISK}, available=1.0) is Keeping.DISK


def train(memory: float, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Guard, Any, list[str], nn.Module]:
    monkeypatch.setattr(store, "left", lambda: memory)
    network = mlp(norm=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=2.0, momentum=0.9)  # a hundred times too high
    guard = Guard(network, snapshots=SnapshotStore(**options))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for inputs, targets in regression(90):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(network(inputs), targets)
            loss.backward()
            guard.before_step(optimizer, loss=loss, batch=(inputs, targets))
            optimizer.step()
    return guard, guard.attach(optimizer), [str(one.message) for one in told], network


BYTES = 2700
"""Of one snapshot of that network, about."""


@pytest.mark.parametrize(
    ("memory", "keeping"),
    [(1e9, Keeping.ALL), (2.5, Keeping.ONE), (1.5, Keeping.LEAN), (0.1, Keeping.NOTHING)],
)
def test_a_run_goes_on_with_what_the_host_allows(
    memory: float, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it has to go back: as far as there is something to go back to."""
    guard, track, told, network = train(memory * 4 * BYTES, monkeypatch)
    assert track.snapshots.keeping is keeping
    assert len([one for one in told if "snapshots would take" in one]) == (keeping is not Keeping.ALL)
    assert len(track.snapshots._kept) <= {Keeping.ALL: 2, Keeping.NOTHING: 0}.get(keeping, 1)
    assert all(bool(p.isfinite().all()) for p in network.parameters())
    done = {o.remedy for i in guard.incidents for a in i.actions for o in a.outcomes if o.applied}
    assert ("rollback" in done) is (keeping is not Keeping.NOTHING)


def test_without_its_state_a_snapshot_is_a_third() -> None:
    network = mlp()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    kept = SnapshotStore(max_bytes=2 * sum(p.nbytes for p in network.parameters()))
    assert kept.plan(dict(network.named_parameters()), {}, optimizer, Collectives())
    kept.take(1, dict(network.named_parameters()), {}, optimizer)
    assert kept.latest is not None and kept.latest.optimizer_state == {}
    snapshot.restore(kept.latest, dict(network.named_parameters()), {}, optimizer)
    assert not optimizer.state


def test_the_process_with_the_least_room_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "left", lambda: 1e12)
    network = mlp()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

    def gather(mine: Any) -> list[Any]:
        _, *more = mine
        return [mine, ([level >= Keeping.LEAN for level in Keeping], *more)]

    kept = SnapshotStore()
    told = kept.plan(dict(network.named_parameters()), {}, optimizer, Collectives(2, gather=gather))
    assert kept.keeping is Keeping.LEAN and told is not None and "another process" in told


def test_what_one_process_alone_needs_more_is_planned_by_all() -> None:
    """Or the one would wait for the others, which make their snapshots without a word."""
    network = mlp()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    asked: list[Any] = []

    def gather(mine: Any) -> list[Any]:
        asked.append(mine)
        return [mine, mine]

    kept, state = SnapshotStore(max_share=1.0), (dict(network.named_parameters()), {}, optimizer)
    for others, times in ((1.0, 1), (0.0, 1), (1.0, 2)):

        def mean(values: list[float], others: float = others) -> list[float]:
            return [(value + others) / 2 for value in values]

        kept.plan(*state, Collectives(2, mean, gather))
        assert len(asked) == times


def test_a_failure_that_is_no_lack_of_memory_is_not_called_one() -> None:
    def fails() -> None:
        raise RuntimeError("a hook of somebody's")

    from lightning_gradguard.snapshots.when import attempt

    told = attempt(fails, Collectives(), "a snapshot")
    assert told is not None and "a hook of somebody's" in told and "no memory" not in told


def test_pinned_memory_is_counted_as_torch_takes_it() -> None:
    from tests.device.simulated import far, simulated

    with simulated():
        assert budget.taken(far(torch.zeros(1000)), 2**30) == 4096
        assert budget.taken(far(torch.zeros(1000)), 100) == 4000
    assert budget.taken(torch.zeros(1000), 2**30) == 4000


def test_seven_billion_parameters_do_not_fit_a_host_of_a_terabyte() -> None:
    """By arithmetic: fp32 with AdamW, eight processes of one host."""
    wanted, with_disk = Need(28 * 10**9, 56 * 10**9), set(Keeping)
    assert found(wanted, available=1e12, processes=8) is Keeping.NOTHING
    assert found(wanted, with_disk, available=1e12, processes=8) is Keeping.NODE
    assert found(wanted, with_disk, available=5e11, processes=8) is Keeping.DISK
    assert found(wanted, available=1e12) is Keeping.ONE
