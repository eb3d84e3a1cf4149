"""The pull towards good weights: decoupled, fading, and nothing to a healthy run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.defaults import default_detectors
from lightning_gradguard.detectors import Detector
from lightning_gradguard.records import Verdict
from lightning_gradguard.remedies import Regularize, Skip
from tests.builders import context_for, mlp, regression, same, through_a_file


def displaced(keep: int = 2) -> tuple[nn.Module, Any, SnapshotStore, dict[str, Any]]:
    """A network that is one away, in every weight, from its snapshot."""
    module = mlp()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    store = SnapshotStore(keep=keep)
    if keep:
        store.take(0, dict(module.named_parameters()), {}, optimizer)
    good = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0)
            p.grad = torch.zeros_like(p)
    return module, optimizer, store, good


def test_it_covers_a_fading_share_of_the_way_to_the_snapshot() -> None:
    module, optimizer, store, good = displaced()
    remedy, context = Regularize(steps=4, pull=0.5), context_for(module, optimizer, snapshots=store)
    remedy.before_update(context)
    assert all(torch.equal(p, good[name] + 1.0) for name, p in module.named_parameters()), "not before it is applied"
    assert remedy.apply(context).applied
    left = 1.0
    for share in (0.5, 0.375, 0.25, 0.125, 0.0, 0.0):
        remedy.before_update(context)
        left *= 1.0 - share
        for name, p in module.named_parameters():
            torch.testing.assert_close(p.detach() - good[name], torch.full_like(p, left))


def test_the_gradients_do_not_see_it() -> None:
    module, optimizer, store, _ = displaced()
    context = context_for(module, optimizer, snapshots=store)
    remedy = Regularize()
    remedy.apply(context)
    remedy.before_update(context)
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_what_is_not_updated_is_not_pulled() -> None:
    module, optimizer, store, _ = displaced()
    context = context_for(module, optimizer, snapshots=store)
    for p in module.parameters():
        p.grad = None
    before = [p.detach().clone() for p in module.parameters()]
    remedy = Regularize()
    remedy.apply(context)
    remedy.before_update(context)
    assert same(before, [p.detach() for p in module.parameters()])


def test_without_a_snapshot_matrices_decay_and_vectors_do_not() -> None:
    module, optimizer, store, _ = displaced(keep=0)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    remedy, context = Regularize(decay=0.1), context_for(module, optimizer, snapshots=store)
    assert "decaying" in remedy.apply(context).detail
    remedy.before_update(context)
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.9 if p.ndim > 1 else 1.0))


def test_it_goes_on_after_a_checkpoint_where_it_was() -> None:
    module, optimizer, store, good = displaced()
    context = context_for(module, optimizer, snapshots=store)
    first, second = Regularize(steps=3, pull=0.5), Regularize(steps=3, pull=0.5)
    first.apply(context)
    first.before_update(context)
    second.load_state_dict(through_a_file(first.state_dict()))
    second.before_update(context)
    left = 0.5 * (1.0 - 0.5 * 2 / 3)
    pulled = module[0].weight - good["0.weight"]  # type: ignore[index]
    torch.testing.assert_close(pulled, torch.full_like(pulled, left))


class Accuses(Detector):
    """Accuse the optimizer at one step."""

    name = "accuses"

    def judge(self, statistics: Any, baseline: Any) -> Verdict | None:
        return Verdict("state", self.name, 1.0, 1.0, "for a test") if statistics.step == 100 else None


@pytest.mark.parametrize("trouble", [False, True])
def test_under_the_guard_it_acts_after_trouble_only_and_has_snapshots_to_pull_to(trouble: bool) -> None:
    def run(remedies: list[Any]) -> Any:
        network = mlp()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.03)
        detectors = [*([Accuses()] if trouble else []), *default_detectors()]
        guard = Guard(network, detectors=detectors, remedies=remedies)
        for x, y in regression(120):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(network(x), y)
            loss.backward()
            guard.before_step(optimizer, loss=loss)
            optimizer.step()
        return network.state_dict(), guard

    plain, _ = run([Skip()])
    pulled, guard = run([Skip(), Regularize()])
    assert same(plain, pulled) is not trouble
    assert ("regularize" in {name for i in guard.incidents for name in i.remedies}) is trouble
    details = [o.detail for i in guard.incidents for a in i.actions for o in a.outcomes if o.remedy == "regularize"]
    assert bool(details) is trouble and all("pulled towards those of step" in detail for detail in details)
