"""Memory that runs out while a snapshot is taken: rollback is switched off with one warning, the run goes on."""

from __future__ import annotations

import math
import resource
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard, SnapshotStore
from tests.faults.processes import run
from tests.faults.victims import quiet

WIDTH = 4096
"""The layer takes 64 MiB, which the allocator asks of the system in one piece and gives back in one."""


def starving(result: Path) -> None:
    """Train a large layer, and from the fifth step on leave no room for another copy of it."""
    quiet()
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    guard = Guard(network, snapshots=SnapshotStore(every=5))
    x = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    held, kept = [], []
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(30):
            optimizer.zero_grad()
            loss = network(x).square().mean() * (math.nan if step == 25 else 1.0)
            loss.backward()
            if step == 5:
                leave(48 * 2**20)
            if step == 24:
                resource.setrlimit(resource.RLIMIT_AS, limits)
            held.append(guard.before_step(optimizer, loss=loss.detach()).held)
            optimizer.step()
            kept.append(guard.attach(optimizer).snapshots.latest is not None)
    finite = all(bool(p.isfinite().all()) for p in network.parameters())
    warned = [str(w.message) for w in caught]
    torch.save({"held": held, "kept": kept, "warned": warned, "finite": finite}, result)


def leave(room: int) -> None:
    """Set the least limit of memory with which a block of ``room`` bytes can still be had."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    low, high = 0, 2**46
    while high - low > 2**20:
        limit = (low + high) // 2
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        try:
            torch.empty(room, dtype=torch.uint8)
            high = limit
        except RuntimeError:
            low = limit
    resource.setrlimit(resource.RLIMIT_AS, (high, hard))


@pytest.mark.fault("out of memory while a snapshot is taken")
def test_without_memory_for_a_snapshot_the_run_goes_on(tmp_path: Path) -> None:
    assert run(starving, tmp_path / "end.pt") == 0
    found = torch.load(tmp_path / "end.pt", weights_only=True)
    assert [step for step, held in enumerate(found["held"]) if held] == [25]
    assert found["finite"]
    # It happened while memory was short, all snapshots went, and none was taken when there was memory again.
    assert found["kept"] == [step < found["kept"].index(False) for step in range(30)]
    assert 5 <= found["kept"].index(False) < 24
    assert len(found["warned"]) == 1 and "rollback is switched off" in found["warned"][0]
    assert "allocate memory" in found["warned"][0]
