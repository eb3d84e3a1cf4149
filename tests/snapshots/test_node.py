"""One copy for the processes of a host: made by the first of them, seen by all, and by all or none."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import SnapshotStore
from lightning_gradguard.snapshots import node, restore, store
from lightning_gradguard.snapshots.budget import Keeping
from lightning_gradguard.snapshots.snapshot import LiveState
from lightning_gradguard.statistics.collectives import Collectives
from tests.builders import mlp, same

pytestmark = pytest.mark.skipif(not node.can_share(), reason="this system shares no memory in this way")
SIZE = 4
"""Processes, two on each of two hosts; here they are threads."""


def together(work: Callable[[Collectives], Any]) -> list[Any]:
    """Let processes work, and return what each came to."""
    barrier, told, ended = threading.Barrier(SIZE, timeout=20.0), [None] * SIZE, [None] * SIZE

    def gather(rank: int, value: Any) -> list[Any]:
        told[rank] = value
        barrier.wait()
        found = list(told)
        barrier.wait()
        return found

    def run(rank: int) -> None:
        def mean(values: list[float]) -> list[float]:
            return [sum(column) / SIZE for column in zip(*gather(rank, values), strict=True)]

        try:
            ended[rank] = work(Collectives(SIZE, mean, lambda value: gather(rank, value), neighbours=2, rank=rank))
        except Exception as error:
            ended[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def trained(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = mlp(norm=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, amsgrad=bool(seed))
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return network, optimizer


def state(network: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return dict(network.named_parameters()), dict(network.named_buffers()), optimizer


def test_all_processes_of_a_host_see_one_copy() -> None:
    own = [trained() for _ in range(SIZE)]

    def work(collectives: Collectives) -> Any:
        network, optimizer = own[collectives.rank]
        next(network.buffers()).fill_(float(collectives.rank))  # running statistics are each one's own
        first = node.take(1, LiveState(*state(network, optimizer)), {}, collectives, None)
        wanted = [p.detach().clone() for p in network.parameters()]
        optimizer.step()
        again = node.take(2, LiveState(*state(network, optimizer)), {}, collectives, first)
        collectives.mean([0.0])  # as whoever takes one tells how it went
        reused = again.parameters["0.weight"].data_ptr() == first.parameters["0.weight"].data_ptr()
        newest = [p.detach().clone() for p in network.parameters()]
        optimizer.step()
        restore(again, *state(network, optimizer))
        return reused, same([*network.parameters()], newest), same(wanted, newest), float(next(network.buffers())[0])

    assert together(work) == [(True, True, False, float(rank)) for rank in range(SIZE)]


def test_where_one_host_has_no_such_memory_none_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    make, made = os.memfd_create, []

    def fails(name: str) -> int:
        made.append(name)
        if len(made) == 2:
            raise OSError("no memory")
        return make(name)

    monkeypatch.setattr(os, "memfd_create", fails)
    own = state(*trained())
    ended = together(lambda collectives: node.take(1, LiveState(*own), {}, collectives, None))
    assert all(isinstance(one, MemoryError) for one in ended)


@pytest.mark.parametrize(("alike", "keeping"), [(True, Keeping.NODE), (False, Keeping.LEAN)])
def test_a_state_that_is_not_the_same_on_all_is_not_shared(
    alike: bool, keeping: Keeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an optimizer that leaves each process a part of its state."""
    network, optimizer = trained()
    whole = store.need(network.parameters(), network.buffers(), optimizer, pinned=0).whole
    monkeypatch.setattr(store, "left", lambda: 4.0 * 3.0 * whole)

    own = [state(*trained(0 if alike else rank % 2)) for rank in range(SIZE)]

    def work(collectives: Collectives) -> Any:
        kept = SnapshotStore()
        told = kept.plan(*own[collectives.rank], collectives)
        return kept.keeping, bool(told)

    assert together(work) == [(keeping, True)] * SIZE
