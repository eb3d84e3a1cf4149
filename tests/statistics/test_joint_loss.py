"""The loss of several processes: averaged as seldom as calm allows."""

from __future__ import annotations

import torch

from lightning_gradguard.statistics.collectives import Collectives
from lightning_gradguard.statistics.joint_loss import LOSS_EVERY, JointLoss, value_of

TWO = Collectives(2, mean=lambda values: [10.0 + v for v in values])


def test_one_process_knows_its_loss_at_once() -> None:
    assert JointLoss().of(torch.tensor(2.0), Collectives(), 3, lambda: True) == ((), 2.0)
    assert value_of(None) is None


def test_losses_wait_and_are_averaged_all_at_a_time() -> None:
    joint, found = JointLoss(), []
    for step in range(1, LOSS_EVERY + 1):
        found.append(joint.of(float(step), TWO, step, lambda: True))
    assert all(one == ((), None) for one in found[:-1])
    assert found[-1] == ([10.0 + step for step in range(1, LOSS_EVERY)], 10.0 + LOSS_EVERY)
    assert joint.own == []


def test_a_step_that_cannot_wait_does_not() -> None:
    assert JointLoss().of(1.0, TWO, 1, lambda: False) == ([], 11.0)


def test_the_loss_of_a_skipped_step_counts_in_no_mean() -> None:
    joint = JointLoss()
    joint.of(1.0, TWO, 1, lambda: True)
    joint.of(2.0, TWO, 2, lambda: True)
    joint.drop()
    assert joint.of(3.0, TWO, 3, lambda: False) == ([11.0], 13.0)


def test_what_was_settled_is_learned_when_its_turn_comes() -> None:
    joint = JointLoss()
    joint.of(1.0, TWO, 1, lambda: True)
    joint.settle(TWO)
    assert joint.own == [] and joint.averaged == [11.0]
    assert joint.of(2.0, TWO, 2, lambda: False) == ([11.0], 12.0)
