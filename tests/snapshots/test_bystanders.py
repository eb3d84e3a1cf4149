"""What no optimizer trains: which of it is watched, copied, and found broken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.snapshots.bystanders import AGAIN, Bystanders, Fallen, aside, put_back


class Pupil(nn.Module):
    """A network with a teacher, a mask and a count."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.teacher = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]), persistent=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def loose(self) -> dict[str, Tensor]:
        return aside(self, {id(p) for p in self.net.parameters()})


def remembering(module: Pupil, *, fits: bool = True) -> Bystanders:
    kept = Bystanders()
    wanted = kept.unplanned(module.loose())
    assert wanted is not None
    kept.plan(wanted, fits=fits)
    assert kept.renew(module.loose()) == []
    return kept


def spoil(module: Pupil, value: float = torch.nan) -> Tensor:
    with torch.no_grad():
        before = module.teacher[0].weight.clone()
        module.teacher[0].weight[1] = value
    return before


def test_what_may_turn_nan_and_belongs_to_nobody_is_watched() -> None:
    assert set(Pupil().loose()) == {
        "teacher.0.weight",
        "teacher.0.bias",
        "teacher.1.weight",
        "teacher.1.bias",
        "mask",
    }


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_was_finite_is_found_and_put_back(value: float) -> None:
    module = Pupil()
    kept = remembering(module)
    before = spoil(module, value)
    found = kept.find(module.loose(), {})
    assert [one.name for one in found] == ["teacher.0.weight"]
    assert put_back(found) == ["teacher.0.weight"]
    assert torch.equal(module.teacher[0].weight, before)
    assert kept.find(module.loose(), {}) == []


def test_autograd_is_not_told() -> None:
    module = Pupil()
    kept = remembering(module)
    spoil(module)
    version = module.teacher[0].weight._version
    put_back(kept.find(module.loose(), {}))
    assert module.teacher[0].weight._version == version


def test_a_copy_is_made_again_only_where_something_has_changed() -> None:
    module = Pupil()
    kept = remembering(module)
    first = {name: copied.data_ptr() for name, copied in kept._copies.items()}
    held = {name: copied.clone() for name, copied in kept._copies.items()}
    module.teacher[0].weight.data.add_(1.0)  # As many an average is moved, of which the count of writes does not tell.
    kept._copies["teacher.0.bias"].fill_(7.0)
    kept.renew(module.loose())
    assert {name: copied.data_ptr() for name, copied in kept._copies.items()} == first
    assert torch.equal(kept._copies["teacher.0.weight"], held["teacher.0.weight"] + 1.0)
    assert kept._copies["teacher.0.bias"].tolist() == [7.0] * 4


def test_what_is_broken_when_a_copy_is_due_is_returned_and_not_copied() -> None:
    module = Pupil()
    kept = remembering(module)
    before = spoil(module)
    assert [one.name for one in kept.renew(module.loose())] == ["teacher.0.weight"]
    assert torch.equal(kept._copies["teacher.0.weight"], before)


def test_without_room_it_is_named_only() -> None:
    module = Pupil()
    kept = remembering(module, fits=False)
    spoil(module)
    found = kept.find(module.loose(), {})
    assert [(one.name, one.copy) for one in found] == [("teacher.0.weight", None)]
    assert put_back(found) == []


def test_what_is_trained_by_now_is_forgotten() -> None:
    module = Pupil()
    kept = remembering(module)
    kept.renew(aside(module, {id(p) for p in module.parameters()}))
    assert set(kept._copies) == set()
    assert set(kept._norms) == set()


def test_a_large_finite_number_is_finite() -> None:
    module = Pupil()
    module.teacher[0].weight.data.fill_(1e30)
    kept = remembering(module)
    assert kept.find(module.loose(), {}) == []
    spoil(module)
    assert len(kept.find(module.loose(), {})) == 1


def test_a_buffer_of_a_snapshot_counts_where_it_was_finite_there() -> None:
    live, was = torch.tensor([0.0, torch.nan]), torch.tensor([1.0, 2.0])
    [found] = Bystanders().find({}, {"running": (live, was)})
    assert found == Fallen("running", live, was)
    assert Bystanders().find({}, {"mask": (live, live.clone())}) == []
    assert Bystanders().find({}, {"other": (live, torch.zeros(3))}) == []


def test_more_than_was_planned_for_is_asked_about_again() -> None:
    module = Pupil()
    kept = remembering(module)
    assert kept.unplanned(module.loose()) is None
    assert kept.unplanned(module.loose() | {"more": torch.zeros(99)}) is not None


def test_what_is_spoilt_again_at_once_is_not_believed_to_be_at_fault() -> None:
    kept, names = Bystanders(), ["a", "b"]
    assert kept.believe(names, 5)
    assert not kept.believe(["a"], 6)
    assert kept.believe(["a"], 6 + AGAIN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_every_kind_of_number(dtype: Any) -> None:
    values = {"a": torch.ones(3, dtype=dtype), "b": torch.ones(2)}
    kept = Bystanders()
    kept.plan(1000, fits=True)
    kept.renew(values)
    values["a"][1] = torch.nan
    put_back(kept.find(values, {}))
    assert torch.equal(values["a"], torch.ones(3, dtype=dtype))
