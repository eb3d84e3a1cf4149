"""Memory of a dropped snapshot is written over only when no checkpoint has it any more."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lightning_gradguard.snapshots.lending import Lending
from lightning_gradguard.snapshots.snapshot import Snapshot
from lightning_gradguard.snapshots.store import SnapshotStore


def taken() -> Snapshot:
    network, store = nn.Linear(2, 2), SnapshotStore()
    store.take(1, dict(network.named_parameters()), {}, torch.optim.SGD(network.parameters(), lr=0.1))
    assert isinstance(store.latest, Snapshot)
    return store.latest


def test_what_a_checkpoint_still_has_is_not_free() -> None:
    lending, one = Lending(), taken()
    assert lending.free([one]) is one
    lent = lending.lend(one)
    assert lending.free([one]) is None
    assert copy.deepcopy(lending).free([one]) is one, "a copy has lent nothing"
    del lent
    assert lending.free([one]) is one


def test_the_newest_of_those_that_are_free_is_taken() -> None:
    lending, old, new = Lending(), taken(), taken()
    lent = lending.lend(new)
    assert lending.free([old, new]) is old
    assert torch.equal(lending.borrow(lent).parameters["weight"], new.parameters["weight"])
