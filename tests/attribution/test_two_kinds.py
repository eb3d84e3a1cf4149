"""Two kinds of batches at the beginning of a run, of which one is corrupt."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from lightning_gradguard.attribution.batch import scales
from lightning_gradguard.attribution.two_kinds import TwoKinds
from lightning_gradguard.history.sample import THIN_HISTORY


def test_gradients_and_data_a_thousand_times_those_of_another_batch_are_of_the_large_kind() -> None:
    kinds = TwoKinds()
    assert not kinds.large(5e4, [1.0, 4e5]) and not kinds.large(4e4, [1.0, 4e5]), "there is no other to compare with"
    assert not kinds.large(8.0, [1.0, 4.0])
    assert kinds.large(6e4, [1.0, 3e5]) and kinds.accepted and kinds.small == [[1.0, 4.0]]
    assert kinds.large(6e4, [1.0, 3e5]) and not kinds.accepted, "those that were let through are forgotten"


@pytest.mark.parametrize(("norm", "peak"), [(6e4, 40.0), (60.0, 4e5), (6e4, 0.0)])
def test_one_of_the_two_alone_tells_nothing(norm: float, peak: float) -> None:
    kinds = TwoKinds()
    kinds.large(8.0, [1.0, 4.0])
    assert not kinds.large(norm, [1.0, peak])


def test_batches_of_another_number_of_tensors_are_not_compared() -> None:
    kinds = TwoKinds()
    kinds.large(8.0, [4.0])
    assert not kinds.large(8e6, [4.0, 4e6]) and not kinds.large(8e6, [])


def trained(steps: int, rows: float, mode: Literal["guard", "watch"] = "guard") -> tuple[Guard, list[Tensor]]:
    """A regression by Adam, of which every other batch but the third holds a target in another unit."""
    torch.manual_seed(0)
    net = nn.Linear(8, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    guard, generator = Guard(net, mode=mode), torch.Generator().manual_seed(1)
    for step in range(steps):
        x = torch.randn(16, 8, generator=generator)
        y = x[:, :1] - 2.0 * x[:, 1:2]
        if step in (0, 1) or step % 2:
            y[step % 16] *= rows
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=(x, y))
        optimizer.step()
    return guard, list(net.parameters())


def test_a_run_that_begins_with_corrupt_batches_goes_on_as_if_they_had_never_been() -> None:
    guard, (weight, _) = trained(4 * THIN_HISTORY, 1e6)
    first = guard.incidents[0]
    assert first.step == 3 and first.culprit == "batch" and first.remedies[:2] == ("skip", "rollback")
    assert first.trials == () and all(set(one.remedies) <= {"skip", "rollback"} for one in guard.incidents)
    assert weight[0, :2].tolist() == pytest.approx([1.0, -2.0], abs=0.3)


def test_a_target_of_one_number_tells_no_scale() -> None:
    lucky, usual = (torch.ones(1, 8), torch.tensor([[1e-3]])), (torch.ones(1, 8), torch.tensor([[7.0]]))
    assert scales(lucky) == scales(usual) == [1.0, 0.0]
    kinds = TwoKinds()
    kinds.large(7e-3, scales(lucky))
    assert not kinds.large(10.0, scales(usual))
    assert scales((torch.ones(8, 1), torch.full((8, 1), -7.0))) == [1.0, 7.0], "a batch of eight samples has a scale"


def test_a_healthy_run_is_let_be() -> None:
    guard, weights = trained(4 * THIN_HISTORY, 30.0)
    assert not guard.incidents and all(map(torch.equal, trained(4 * THIN_HISTORY, 30.0, "watch")[1], weights))
