"""Snapshots: independent copies, bounded, restored in place."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

from lightning_gradguard import SnapshotStore
from lightning_gradguard.snapshots import restore
from tests.builders import mlp, regression, same, through_a_file

OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.05, amsgrad=True),
    "adamw-fused": partial(torch.optim.AdamW, lr=0.05, fused=True),
    "rprop": torch.optim.Rprop,
    "adagrad": torch.optim.Adagrad,
    "lbfgs": partial(torch.optim.LBFGS, lr=0.1, max_iter=2, history_size=3),
}


def step(module: nn.Module, optimizer: Any, batch: Any) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(batch[0]), batch[1])
        loss.backward()
        return loss

    optimizer.step(closure)


def take(store: SnapshotStore, step: int, module: nn.Module, optimizer: Any) -> None:
    store.take(step, dict(module.named_parameters()), dict(module.named_buffers()), optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("through", [lambda s: s, through_a_file], ids=["memory", "file"])
def test_a_run_that_went_back_repeats_itself_bit_by_bit(name: str, through: Any) -> None:
    module, batches, store = mlp(norm=True), regression(12), SnapshotStore(in_checkpoint=True)
    optimizer = OPTIMIZERS[name](module.parameters())
    for batch in batches[:6]:
        step(module, optimizer, batch)
    take(store, 6, module, optimizer)
    again = SnapshotStore()
    for batch in batches[6:]:
        step(module, optimizer, batch)
    end = [v.clone() for v in module.state_dict().values()]
    again.load_state_dict(through(store.state_dict(incident=True)))
    assert again.latest is not None
    for _ in range(2):  # what was restored must not change with the run that goes on from it
        restore(again.latest, dict(module.named_parameters()), dict(module.named_buffers()), optimizer)
        for batch in batches[6:]:
            step(module, optimizer, batch)
        assert same(end, [*module.state_dict().values()])


def test_restoring_is_in_place_and_leaves_rates_alone() -> None:
    module = mlp()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    store = SnapshotStore()
    take(store, 0, module, optimizer)
    step(module, optimizer, regression(1)[0])
    optimizer.param_groups[0]["lr"] = 0.02
    addresses = [p.data_ptr() for p in module.parameters()]
    assert store.latest is not None
    names = restore(store.latest, dict(module.named_parameters()), {}, optimizer)
    assert addresses == [p.data_ptr() for p in module.parameters()]
    assert optimizer.param_groups[0]["lr"] == 0.02
    assert names == tuple(dict(module.named_parameters()))
    assert not optimizer.state, "a parameter that had no state then has none now"


def test_a_parameter_that_the_snapshot_does_not_know_is_left_alone() -> None:
    module = mlp()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    store = SnapshotStore()
    known = dict(list(module.named_parameters())[:2])
    store.take(0, known, {}, optimizer)
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(3.0)
    assert store.latest is not None
    assert restore(store.latest, dict(module.named_parameters()), {}, optimizer) == tuple(known)
    assert all(bool((p == 3.0).all()) for p in list(module.parameters())[2:])


@given(st.integers(1, 200), st.integers(0, 4), st.integers(1, 1500))
def test_memory_is_bounded_and_gaps_are_at_most_every(every: int, keep: int, steps: int) -> None:
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    store, taken = SnapshotStore(every=every, keep=keep), []
    for number in range(steps):
        if store.due(number):
            take(store, number, module, optimizer)
            taken.append(number)
        assert len(store._kept) <= keep
    gaps = [b - a for a, b in itertools.pairwise(taken)]
    assert taken[:1] == ([0] if keep else [])
    assert all(gap <= every for gap in gaps) and gaps == sorted(gaps)


def test_discarding_keeps_the_last_one() -> None:
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    store = SnapshotStore()
    for number in (0, 10, 20):
        take(store, number, module, optimizer)
    for expected in (10, 10):
        store.discard_latest()
        assert store.latest is not None and store.latest.step == expected


def test_switched_off_it_takes_no_more() -> None:
    module = nn.Linear(1, 1)
    store = SnapshotStore()
    take(store, 0, module, torch.optim.SGD(module.parameters(), lr=0.1))
    store.switch_off()
    assert store.latest is None and not store.due(10**9)


def steps_of(store: SnapshotStore) -> list[int]:
    return [kept.step for kept in store._kept]


def taken_at(store: SnapshotStore, *steps: int) -> SnapshotStore:
    module = nn.Linear(1, 1)
    for number in steps:
        take(store, number, module, torch.optim.SGD(module.parameters(), lr=0.1))
    return store


@pytest.mark.parametrize(("pinned", "kept"), [(True, [0, 40]), (False, [20, 40])])
def test_the_first_is_kept_in_place_of_the_second_newest_while_it_is_pinned(pinned: bool, kept: list[int]) -> None:
    store = SnapshotStore()
    store.pinned = pinned
    taken_at(store, 0, 10, 20, 40)
    assert steps_of(store) == kept
    assert (store.first is not None) is pinned
    store.pinned = False
    taken_at(store, 80, 160)
    assert steps_of(store) == [80, 160] and store.first is None


def test_where_only_one_is_kept_it_is_the_newest_though_pinned() -> None:
    store = SnapshotStore(keep=1)
    store.pinned = True
    assert steps_of(taken_at(store, 0, 10)) == [10]


def test_the_first_is_one_with_no_update_behind_it_whatever_its_step() -> None:
    module, store = nn.Linear(1, 1), SnapshotStore()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step_, count in ((7, 3), (8, 0)):
        store.take(step_, dict(module.named_parameters()), {}, optimizer, {"baseline": {"count": count}})
    assert store.first is store.latest is not None and store.older is not None and store.older.updates == 3


def test_all_but_the_oldest_can_be_dropped() -> None:
    store = taken_at(SnapshotStore(), 0, 10)
    store.only_first()
    assert steps_of(store) == [0]


def test_a_pinned_first_outlives_a_resume() -> None:
    store, again = SnapshotStore(in_checkpoint=True), SnapshotStore()
    store.pinned = True
    again.load_state_dict(through_a_file(taken_at(store, 0, 10).state_dict()))
    assert steps_of(taken_at(again, 20)) == steps_of(taken_at(store, 20)) == [0, 20]


def test_a_capture_is_a_copy_that_the_store_does_not_keep() -> None:
    module, store = nn.Linear(2, 2), SnapshotStore()
    parameters = dict(module.named_parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = module.weight.detach().clone()
    captured = store.capture(3, parameters, {}, optimizer, {"baseline": {"count": 3}})
    nn.init.zeros_(module.weight)
    assert store.empty and store.due(0) and captured.updates == 3
    restore(captured, parameters, {}, optimizer)
    assert torch.equal(module.weight, before)


def test_while_a_treatment_is_on_trial_the_next_is_due_ten_steps_after_the_last() -> None:
    store = taken_at(SnapshotStore(), 500)
    assert [store.due(step) for step in (509, 510, 599, 600)] == [False, False, False, True]
    assert [store.due(step, soon=True) for step in (509, 510)] == [False, True]
    assert [store.schedule.overdue(step) for step in (600, 899, 900)] == [False, False, True]
    assert not SnapshotStore(keep=0).due(10, soon=True)


def _bytes(state: Any) -> int:
    """Bytes of all the different tensors in a nested state."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tree_leaves(state)}
    return sum(storages.values())


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_snapshots_hold_no_more_than_keep_times_parameters_and_optimizer_state(keep: int) -> None:
    module, store = mlp(), SnapshotStore(keep=keep, in_checkpoint=True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    for number, batch in enumerate(regression(8)):
        step(module, optimizer, batch)
        if store.due(10 * number):
            take(store, 10 * number, module, optimizer)
    live = _bytes([list(module.parameters()), [list(s.values()) for s in optimizer.state.values()]])
    held = _bytes([[s["parameters"], s["buffers"], s["optimizer_state"]] for s in store.state_dict()["kept"]])
    assert held == keep * live


def test_memory_is_used_again_but_that_of_a_checkpoint_only_once_it_is_written() -> None:
    module, store = nn.Linear(2, 2), SnapshotStore(keep=1, in_checkpoint=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def next_snapshot(number: int) -> int:
        nn.init.constant_(module.weight, number)
        take(store, number, module, optimizer)
        assert store.latest is not None and bool((store.latest.parameters["weight"] == number).all())
        return store.latest.parameters["weight"].data_ptr()

    first = next_snapshot(0)
    assert next_snapshot(10) == first
    checkpoint = store.state_dict()
    assert next_snapshot(20) != first
    assert bool((checkpoint["kept"][0]["parameters"]["weight"] == 10).all())
    checkpoint, second = store.state_dict(), store.latest.parameters["weight"].data_ptr()  # type: ignore[union-attr]
    del checkpoint  # as a writer does that is done with it
    assert next_snapshot(30) == second


@pytest.mark.parametrize("in_checkpoint", [False, True])
@pytest.mark.parametrize("incident", [False, True])
def test_a_checkpoint_holds_snapshots_if_asked_and_the_last_good_one_in_an_incident(
    in_checkpoint: bool, incident: bool
) -> None:
    store = taken_at(SnapshotStore(in_checkpoint=in_checkpoint), 0, 10, 20)
    kept = [one["step"] for one in store.state_dict(incident=incident)["kept"]]
    assert kept == ([10, 20] if in_checkpoint else [20] if incident else [])


def test_a_resumed_run_copies_its_own_weights_at_once_and_then_at_the_steps_of_the_uninterrupted_one() -> None:
    store, again = taken_at(SnapshotStore(), 0, 10, 20, 40), SnapshotStore()
    again.load_state_dict(through_a_file(store.state_dict()))
    assert again.missing and not store.missing and not SnapshotStore().missing
    taken_at(again, 50)
    assert again.latest is not None and not again.missing
    assert [again.due(step) for step in (51, 79, 80)] == [store.due(step) for step in (51, 79, 80)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_snapshot_from_a_gpu_is_whole_once_it_is_asked_for() -> None:
    network = mlp().cuda()
    optimizer = torch.optim.AdamW(network.parameters())
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    store, parameters = SnapshotStore(), dict(network.named_parameters())
    wanted = {name: p.detach().cpu() for name, p in parameters.items()}
    store.take(0, parameters, {}, optimizer)
    optimizer.step()  # the update comes after the copy, in the device's own order
    snapshot = store.latest
    assert snapshot is not None and same(snapshot.parameters, wanted)
    assert all(p.is_pinned() for p in snapshot.parameters.values())


@pytest.mark.parametrize("share", [0.0, 1.01, 2])
def test_a_share_is_more_than_nothing_and_at_most_all(share: float) -> None:
    with pytest.raises(ValueError, match="max_share must be > 0 and <= 1, got"):
        SnapshotStore(max_share=share)
