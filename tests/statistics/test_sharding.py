"""What is whole stays as it is; how the parts of several processes come together, tests/strategies shows."""

from __future__ import annotations

import torch

from lightning_gradguard.statistics.sharding import as_part, comparable, gathered, sharded, whole, write


class Cut:
    """Stands in for a tensor of four elements, of which this process holds two."""

    def __init__(self) -> None:
        self.part = torch.tensor([1.0, 2.0])

    def to_local(self) -> torch.Tensor:
        return self.part

    def full_tensor(self) -> torch.Tensor:
        return torch.cat([self.part, self.part])


def test_a_whole_tensor_is_its_own_part() -> None:
    one, other = torch.ones(2), torch.zeros(2)
    assert not sharded(one) and whole(one) is one
    assert gathered(one, other) is one and as_part(one, other) is one
    write(other, one)
    assert torch.equal(other, one)


def test_of_a_cut_tensor_the_whole_is_known_and_a_part_is_compared_with_the_part() -> None:
    cut = Cut()
    assert sharded(cut) and whole(cut).tolist() == [1.0, 2.0, 1.0, 2.0]  # type: ignore[arg-type]
    assert comparable(torch.zeros(2), cut) and not comparable(torch.zeros(4), cut)
    assert as_part(torch.zeros(4), cut).shape == (4,), "one of another shape is no part of it"
