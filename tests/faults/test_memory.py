"""Memory that runs out while a snapshot is taken or layers are examined: one warning, and the run goes on."""

from __future__ import annotations

import math
import resource
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.attribution import probe, weights
from lightning_gradguard.remedies import Rollback, Skip
from lightning_gradguard.step import copying, treating
from tests.builders import mlp, regression
from tests.faults.processes import run
from tests.faults.victims import quiet

WIDER = 6144
"""The layer takes 144 MiB."""
WIDTH = 4096
"""The layer takes 64 MiB, which the allocator asks of the system in one piece and gives back in one."""
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")


def starving(result: Path) -> None:
    """Train a large layer, and from the fifth step on leave no room for another copy of it."""
    quiet()
    network, optimizer, guard = large(snapshots=SnapshotStore(every=5))
    x = batch()
    skipped, kept = [], []
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
            skipped.append(guard.before_step(optimizer, loss=loss.detach()).skipped)
            optimizer.step()
            kept.append(guard.attach(optimizer).snapshots.latest is not None)
    finite = all(bool(p.isfinite().all()) for p in network.parameters())
    warned = [str(w.message) for w in caught]
    torch.save({"skipped": skipped, "kept": kept, "warned": warned, "finite": finite}, result)


def cramped(result: Path) -> None:
    """Damage a large layer, and leave no room for a copy of it while the culprit is looked for."""
    quiet()
    # The allocator needs room around the pieces too: less than a copy, and much more than a piece.
    network, optimizer, guard = large(WIDER, remedies=[Skip(), Rollback()])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(24):
            if step == 20:
                with torch.no_grad():
                    network[0].weight.mul_(1e4)
            optimizer.zero_grad()
            loss = network(batch(WIDER)).square().mean()
            loss.backward()
            if step == 20:
                leave(128 * 2**20)
            guard.before_step(optimizer, loss=loss.detach())
            resource.setrlimit(resource.RLIMIT_AS, limits)
            optimizer.step()
    found = [(i.step, i.culprit) for i in guard.incidents]
    torch.save({"found": found, "warned": [str(w.message) for w in caught]}, result)


def large(width: int = WIDTH, **options: Any) -> tuple[Any, torch.optim.Optimizer, Guard]:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 1))
    return network, torch.optim.SGD(network.parameters(), lr=1e-4), Guard(network, **options)


def batch(width: int = WIDTH) -> Tensor:
    return torch.randn(2, width, generator=torch.Generator().manual_seed(0))


def leave(room: int) -> None:
    """Let this process have so many bytes more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


@pytest.mark.fault("out of memory while a snapshot is taken")
def test_without_memory_for_a_snapshot_the_run_goes_on(tmp_path: Path) -> None:
    assert run(starving, tmp_path / "end.pt") == 0
    found = torch.load(tmp_path / "end.pt", weights_only=True)
    assert [step for step, skipped in enumerate(found["skipped"]) if skipped] == [25]
    assert found["finite"]
    # It happened while memory was short, all snapshots went, and none was taken when there was memory again.
    assert found["kept"] == [step < found["kept"].index(False) for step in range(30)]
    assert 5 <= found["kept"].index(False) < 24
    assert len(found["warned"]) == 1 and "rollback is switched off" in found["warned"][0]
    assert "allocate memory" in found["warned"][0]


@pytest.mark.fault("no memory for a copy of the layer at fault")
def test_a_layer_is_examined_where_there_is_no_memory_for_a_copy_of_it(tmp_path: Path) -> None:
    assert run(cramped, tmp_path / "end.pt") == 0
    found = torch.load(tmp_path / "end.pt", weights_only=True)
    assert found["found"][0] == (20, "0")
    assert found["warned"] == []


def starved(*_: Any, **__: Any) -> NoReturn:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory, for a test")


@pytest.mark.fault("out of memory while layers are examined (the error is simulated)")
@pytest.mark.parametrize("place", [weights, probe])
def test_a_device_without_memory_costs_the_blame_and_nothing_else(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "rms", starved)
    network = mlp(norm=True)
    optimizer, guard, skipped = torch.optim.Adam(network.parameters(), lr=0.01), Guard(network), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, (x, y) in enumerate(regression(50)):
            optimizer.zero_grad()
            # One step that is lost, then a burst in which layers are measured.
            loss = nn.functional.mse_loss(network(x), y) * (math.nan if step == 20 else 1e6 if 30 <= step < 36 else 1.0)
            loss.backward()
            skipped.append(guard.before_step(optimizer, loss=loss.detach(), batch=(x, y)).skipped)
            optimizer.step()
    # What weights that were good do as well is no fault of theirs, and is learned.
    assert [step for step, was in enumerate(skipped) if was] == [20, 30, 31]
    assert "rollback" in {remedy for i in guard.incidents for remedy in i.remedies}
    assert all(bool(p.isfinite().all()) for p in network.parameters())
    warned = [str(w.message) for w in caught if "GradGuard" in str(w.message)]
    assert all("no memory to examine the layers" in w for w in warned) and bool(warned) is (place is weights)


@pytest.mark.fault("out of memory for the copy before a treatment (the error is simulated)")
@pytest.mark.parametrize("error", [MemoryError("none left"), torch.cuda.OutOfMemoryError("CUDA out of memory")])
def test_without_memory_for_the_copy_before_a_treatment_the_trial_goes_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = SnapshotStore.capture

    def capture(store: SnapshotStore, *args: Any) -> Any:
        if before_a_treatment:
            raise error
        return take(store, *args)

    def captured(run: Any, track: Any) -> Any:
        before_a_treatment.append(1)
        try:
            return copying.captured(run, track)
        finally:
            before_a_treatment.clear()

    before_a_treatment: list[int] = []
    monkeypatch.setattr(SnapshotStore, "capture", capture)
    monkeypatch.setattr(treating, "captured", captured)
    network = mlp(norm=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=2.0, momentum=0.9)  # a hundred times too high
    guard, untreated = Guard(network), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for x, y in regression(90):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(network(x), y)
            loss.backward()
            guard.before_step(optimizer, loss=loss, batch=(x, y))
            optimizer.step()
            untreated.append(guard.attach(optimizer).treatment.untreated)
    assert any(i.trials for i in guard.incidents) and untreated == [None] * 90
    assert all(bool(p.isfinite().all()) for p in network.parameters())
    told = [str(w.message) for w in caught if "GradGuard" in str(w.message)]
    assert len(told) == 1 and "no memory for a copy before a treatment" in told[0]
    assert "if the treatment does not help, its weights stay" in told[0]
