"""Whose loss a backward pass is of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.statistics import loss_owners
from lightning_gradguard.statistics.loss_owners import LossOwners


def pair() -> tuple[nn.Linear, nn.Linear, list[torch.optim.Optimizer]]:
    one, two = nn.Linear(2, 2), nn.Linear(2, 1)
    return one, two, [torch.optim.SGD(one.parameters(), 0.1), torch.optim.SGD(two.parameters(), 0.1)]


def value(loss: Tensor | None) -> float | None:
    return None if loss is None else loss.item()


def test_a_single_optimizer_is_told_the_sum_of_its_backward_passes_once() -> None:
    _, _, (optimizer, _) = pair()
    owners = LossOwners()
    for one in (0.5, 0.25):
        owners.backward(torch.tensor(one), [optimizer])
    assert value(owners.of(optimizer)) == 0.75
    assert owners.of(optimizer) is None
    owners.backward(torch.tensor(2.0), [optimizer])
    assert value(owners.of(optimizer)) == 2.0


def test_a_loss_of_two_optimizers_is_told_to_both() -> None:
    one, two, both = pair()
    owners = LossOwners()
    for _ in range(3):
        loss = two(one(torch.ones(4, 2))).mean()
        assert not owners.backward(loss, both)
        assert [value(owners.of(optimizer)) for optimizer in both] == [loss.item(), loss.item()]


def test_losses_of_one_optimizer_each_are_told_to_it() -> None:
    one, two, both = pair()
    owners = LossOwners()
    for turn in range(3):
        for module, optimizer, other in ((one, both[0], both[1]), (two, both[1], both[0])):
            loss = module(torch.ones(4, 2)).mean() * (turn + 1)
            assert not owners.backward(loss, both)
            assert value(owners.of(optimizer)) == loss.item()
            assert owners.of(other) is None


def test_the_graph_of_a_loss_is_walked_only_until_all_have_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, both = pair()
    owners, walked = LossOwners(), []
    found = loss_owners.first_uses
    monkeypatch.setattr(loss_owners, "first_uses", lambda loss: walked.append(loss) or found(loss))
    for _ in range(3):
        for module, optimizer in ((one, both[0]), (two, both[1])):
            owners.backward(module(torch.ones(4, 2)).mean(), both)
            owners.of(optimizer)
    assert len(walked) == 2


def test_the_losses_of_adversaries_are_told_to_nobody() -> None:
    generator, critic, both = pair()
    owners, told = LossOwners(), []
    for _ in range(2):
        fake = generator(torch.ones(4, 2))
        told.append(owners.backward(critic(fake.detach()).mean(), both))
        first = owners.of(both[1])
        told.append(owners.backward(-critic(fake).mean(), both))
        assert owners.of(both[0]) is None
    # That of the first critic's step was told before the generator's was seen, and is forgotten then.
    assert first is None
    assert told == [False, True, False, False]


def test_a_loss_that_may_reach_what_is_frozen_for_the_pass_is_told_to_nobody() -> None:
    generator, critic, both = pair()
    owners = LossOwners()
    critic.requires_grad_(False)
    owners.backward(-critic(generator(torch.ones(4, 2))).mean(), both)
    assert owners.of(both[0]) is None


def test_losses_that_are_summed_before_any_step_are_told_to_nobody() -> None:
    one, two, both = pair()
    owners = LossOwners()
    owners.backward(one(torch.ones(4, 2)).mean(), both)
    owners.backward(two(torch.ones(4, 2)).mean(), both)
    assert [owners.of(optimizer) for optimizer in both] == [None, None]


def test_losses_that_are_stepped_by_in_turn_are_parted_though_each_reaches_both() -> None:
    one, two, both = pair()
    owners = LossOwners()
    for turn, optimizer in enumerate(both):
        assert owners.backward(two(one(torch.ones(4, 2))).mean(), both) == (turn > 0)
        assert (owners.of(optimizer) is None) == (turn > 0)
