"""Rolling back to the newest good snapshot, and to the older one if that was sick."""

from __future__ import annotations

from typing import Any

import torch

from lightning_gradguard import SnapshotStore
from lightning_gradguard.remedies import Rollback
from tests.builders import context_for, mlp, same, through_a_file


def trained() -> tuple[Any, Any, SnapshotStore, list[Any]]:
    """A network with snapshots after 1, 2 and 3 updates, of which two are kept."""
    module = mlp(norm=True)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    store, states = SnapshotStore(), []
    for step in range(3):
        optimizer.zero_grad()
        module(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        store.take(step, dict(module.named_parameters()), dict(module.named_buffers()), optimizer)
        states.append(([v.clone() for v in module.state_dict().values()], str(optimizer.state_dict()["state"])))
    return module, optimizer, store, states


def spoil(module: Any) -> None:
    with torch.no_grad():
        for value in module.state_dict().values():
            value.mul_(torch.nan) if value.is_floating_point() else value.add_(5)


def now(module: Any, optimizer: Any) -> Any:
    return [*module.state_dict().values()], str(optimizer.state_dict()["state"])


def test_everything_is_as_it_was() -> None:
    module, optimizer, store, states = trained()
    spoil(module)
    context = context_for(module, optimizer, snapshots=store, buffers=dict(module.named_buffers()), step=50)
    outcome = Rollback().apply(context)
    assert outcome.applied and "step 2" in outcome.detail
    assert same(now(module, optimizer), states[2])


def test_trouble_that_is_back_at_once_goes_to_the_older_snapshot() -> None:
    module, optimizer, store, states = trained()
    rollback = Rollback(patience=10)
    for step, expected in ((50, 2), (55, 1), (60, 1), (100, 1)):
        spoil(module)
        buffers = dict(module.named_buffers())
        rollback.apply(context_for(module, optimizer, snapshots=store, buffers=buffers, step=step))
        assert same(now(module, optimizer), states[expected])


def test_patience_survives_a_checkpoint() -> None:
    module, optimizer, store, _ = trained()
    first, second = Rollback(), Rollback()
    first.apply(context_for(module, optimizer, snapshots=store, step=0))
    second.load_state_dict(through_a_file(first.state_dict()))
    second.apply(context_for(module, optimizer, snapshots=store, step=5))
    assert store.latest is not None and store.latest.step == 1


def test_without_a_snapshot_it_says_so() -> None:
    module = mlp()
    before = [v.clone() for v in module.state_dict().values()]
    outcome = Rollback().apply(context_for(module))
    assert not outcome.applied and "no snapshot" in outcome.detail
    assert same(before, [*module.state_dict().values()])


def test_lbfgs_does_not_write_back_what_was_undone_within_its_step() -> None:
    """It keeps direction and step length in local variables, and stores them when the step ends."""
    module = mlp()
    optimizer = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=4)
    rollback, calls, batch = Rollback(), [], torch.randn(4, 8)
    context = context_for(module, optimizer)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = module(batch).square().mean()
        loss.backward()
        calls.append(len(calls))
        if len(calls) == 10:
            rollback.apply(context)
            optimizer.zero_grad()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    context.snapshots.take(2, context.parameters, {}, optimizer)
    before = [p.detach().clone() for p in module.parameters()], str(optimizer.state_dict()["state"])
    optimizer.step(closure)
    assert str(optimizer.state_dict()["state"]) != before[1]
    rollback.after_update()
    assert same([p.detach() for p in module.parameters()], before[0])
    assert str(optimizer.state_dict()["state"]) == before[1]


def test_an_optimizer_state_that_was_loaded_and_has_made_no_good_update_is_begun_anew() -> None:
    module, optimizer, _, states = trained()
    store = SnapshotStore()
    extra = {"baseline": {"count": 0}, "number": 400}
    store.take(400, dict(module.named_parameters()), dict(module.named_buffers()), optimizer, extra)
    for step, kept in ((411, True), (405, False)):
        spoil(module)
        context = context_for(module, optimizer, snapshots=store, buffers=dict(module.named_buffers()), step=step)
        assert ("begun anew" in Rollback().apply(context).detail) is not kept
        assert bool(optimizer.state) is kept
        assert same([*module.state_dict().values()], states[2][0])
