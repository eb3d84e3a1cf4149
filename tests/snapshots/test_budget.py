"""Snapshots that fit: what they take is known before they are made, and made smaller step by step where it is too much."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.snapshots import budget, snapshot, store
from lightning_gradguard.snapshots.budget import Keeping, Need, fitting, left, need
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


@pytest.mark.parametrize(
    ("available", "keeping"),
    [(100.0, Keeping.ALL), (8.0, Keeping.ONE), (5.0, Keeping.LEAN), (1.0, Keeping.NOTHING)],
)
def test_what_does_not_fit_is_made_smaller_step_by_step(available: float, keeping: Keeping) -> None:
    # Two and one for a treatment take 9, one and that one 6, without the state 2.
    found, told = fitting(Need(1, 2), 2, available=available, processes=1, max_bytes=None, max_share=0.75)
    assert found is keeping
    assert keeping.told in told and bool(told) is (keeping is not Keeping.ALL)


def test_all_processes_of_a_host_share_its_memory() -> None:
    one = fitting(Need(1, 2), 2, available=100.0, processes=1, max_bytes=None, max_share=0.25)
    eight = fitting(Need(1, 2), 2, available=100.0, processes=8, max_bytes=None, max_share=0.25)
    assert (one[0], eight[0]) == (Keeping.ALL, Keeping.LEAN)
    assert fitting(Need(1, 2), 2, available=1e9, processes=1, max_bytes=6, max_share=0.25)[0] is Keeping.ONE


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
    other: Callable[[list[float]], list[float]] = lambda mine: [0.5, 0.5, 0.0]  # noqa: E731, it needs a type
    kept = SnapshotStore()
    told = kept.plan(dict(network.named_parameters()), {}, optimizer, Collectives(2, mean=other))
    assert kept.keeping is Keeping.LEAN and told is not None and "another process" in told


def test_a_failure_that_is_no_lack_of_memory_is_not_called_one() -> None:
    def fails() -> None:
        raise RuntimeError("a hook of somebody's")

    from lightning_gradguard.snapshots.when import attempt

    told = attempt(SnapshotStore(), fails, Collectives())
    assert told is not None and "a hook of somebody's" in told and "no memory" not in told


def test_pinned_memory_is_counted_as_torch_takes_it() -> None:
    from tests.device.simulated import far, simulated

    with simulated():
        assert budget.taken(far(torch.zeros(1000)), 2**30) == 4096
        assert budget.taken(far(torch.zeros(1000)), 100) == 4000
    assert budget.taken(torch.zeros(1000), 2**30) == 4000


def test_seven_billion_parameters_do_not_fit_a_host_of_a_terabyte() -> None:
    """By arithmetic: fp32 with AdamW, eight processes of one host."""
    found = partial(fitting, Need(28 * 10**9, 56 * 10**9), 2, max_bytes=None)
    assert found(available=1e12, processes=8, max_share=0.25)[0] is Keeping.NOTHING
    assert found(available=1e12, processes=1, max_share=0.25)[0] is Keeping.ONE
