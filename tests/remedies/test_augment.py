"""Augmentation for a while: mixup in place, put back afterwards, with random numbers of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import Guard
from lightning_gradguard.remedies import Augment
from tests.builders import context_for, mlp, same, through_a_file


def begun(**options: Any) -> Augment:
    remedy = Augment(**options)
    assert remedy.apply(context_for(mlp())).applied
    return remedy


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3), torch.randn(size, 1)


def test_every_sample_becomes_a_mixture_of_which_it_is_the_greater_part() -> None:
    x, y = torch.eye(6), torch.arange(6.0)[:, None]
    begun(seed=3).before_forward((x, y))
    share = x.diagonal()
    assert bool((share >= 0.5).all()) and bool((share < 1.0).any())
    torch.testing.assert_close(x.sum(1), torch.ones(6))
    torch.testing.assert_close(y, x @ torch.arange(6.0)[:, None], msg="targets are mixed like inputs")


def test_the_batch_is_put_back_since_its_memory_may_be_the_data_sets() -> None:
    x, y = batch()
    kept = [x.clone(), y.clone()]
    remedy = begun()
    assert remedy.before_forward({"image": x, "target": y})
    assert not torch.equal(x, kept[0])
    remedy.after_update()
    assert same(kept, [x, y])
    remedy.before_forward([x, y])
    remedy.before_forward(batch())
    assert same(kept, [x, y]), "a batch whose update never came is put back too"


@pytest.mark.parametrize("transform", [None, lambda both: (both[0].mul_(2.0), both[1])], ids=["mixup", "in place"])
def test_nothing_is_written_into_memory_that_others_share(transform: Any) -> None:
    cached, target = batch()
    kept, view = cached.clone(), cached[:]
    remedy = begun(transform=transform)
    remedy.before_forward((view, target))
    assert not torch.equal(view, kept) and torch.equal(cached, kept)
    remedy.after_update()
    assert torch.equal(view, kept) and view.data_ptr() == cached.data_ptr()


@pytest.mark.filterwarnings("ignore:.*not writable", "ignore:.*nested tensors")
def test_memory_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    numpy.save(tmp_path / "data.npy", numpy.eye(6, dtype=numpy.float32))
    mapped = torch.from_numpy(numpy.load(tmp_path / "data.npy", mmap_mode="r"))
    spread, twice = torch.arange(6.0)[:, None].expand(6, 3), torch.eye(6)
    with torch.inference_mode():
        apart = torch.eye(6)
    others = torch.eye(6).to_sparse(), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), apart
    remedy = begun(seed=3)
    remedy.before_forward((mapped, spread, twice, twice, *others))
    assert not torch.equal(mapped, torch.eye(6)) and torch.equal(mapped, twice)
    remedy.after_update()
    assert all(torch.equal(tensor, torch.eye(6)) for tensor in (mapped, twice, apart))


@pytest.mark.parametrize("kind", ["Image", "BoundingBoxes"])
def test_tensors_of_ones_own_kind_keep_it(kind: str) -> None:
    tv_tensors: Any = pytest.importorskip("torchvision.tv_tensors")
    shape = (6, 3, 2, 2) if kind == "Image" else (6, 4)
    options: Any = {} if kind == "Image" else {"format": "XYXY", "canvas_size": (9, 9)}
    made = getattr(tv_tensors, kind)(torch.rand(*shape), **options)
    kept, remedy = made.clone(), begun()
    remedy.before_forward([made])
    assert type(made).__name__ == kind and not torch.equal(made, kept)
    remedy.after_update()
    assert type(made).__name__ == kind and torch.equal(made, kept)


def test_class_indices_and_tokens_stay() -> None:
    x, y = torch.randn(6, 3), torch.arange(6)
    begun().before_forward((x, y))
    assert torch.equal(y, torch.arange(6))
    tokens = torch.arange(12).view(4, 3)
    begun().before_forward(tokens)
    assert torch.equal(tokens, torch.arange(12).view(4, 3))


def test_tensors_that_do_not_hold_the_samples_stay() -> None:
    x, weights, number = torch.randn(6, 3), torch.randn(4), torch.tensor(2.0)
    kept = weights.clone()
    begun().before_forward((x, weights, number, "a name", None))
    assert torch.equal(weights, kept) and float(number) == 2.0


def test_it_lasts_for_some_updates_and_leaves_calm_batches_alone() -> None:
    context = context_for(mlp())
    remedy = Augment(steps=2)
    assert not remedy.before_forward(batch())
    remedy.apply(context)
    told = []
    for _ in range(4):
        told.append(remedy.before_forward(batch()))
        remedy.before_update(context)
        remedy.after_update()
    assert told == [True, True, False, False]


@pytest.mark.parametrize("transform", [None, lambda both: (both[0] + torch.randn_like(both[0]), both[1])])
def test_the_global_generator_is_left_alone(transform: Any) -> None:
    remedy = begun(transform=transform)
    before = torch.get_rng_state()
    mixed = batch()
    torch.set_rng_state(before)
    remedy.before_forward(mixed)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("transform", [None, lambda both: (both[0] * torch.rand(()), both[1])])
def test_it_draws_on_after_a_checkpoint_where_it_was(transform: Any) -> None:
    x, y = batch()
    first, second = begun(transform=transform), Augment(transform=transform)
    first.before_forward((x.clone(), y.clone()))
    second.load_state_dict(through_a_file(first.state_dict()))
    one, two = (x.clone(), y.clone()), (x.clone(), y.clone())
    first.before_forward(one)
    second.before_forward(two)
    assert same(one, two) and not same(one, (x, y))


def test_a_torchvision_transform_can_be_given() -> None:
    from torchvision.transforms import v2

    flip = v2.RandomHorizontalFlip(p=1.0)
    images, labels = torch.rand(2, 3, 4, 4), torch.arange(2)
    expected = images.flip(-1)
    begun(transform=lambda both: (flip(both[0]), both[1])).before_forward((images, labels))
    assert torch.equal(images, expected)


def test_a_transform_that_changes_the_shape_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^transform must keep the batch's shapes"):
        begun(transform=lambda both: both[0][:2]).before_forward(batch())
    with pytest.raises(ValueError, match=r"^transform must be None or a function of a batch, got 3"):
        Augment(transform=3)  # type: ignore[arg-type]


def test_in_a_plain_loop_the_guard_augments_and_puts_back() -> None:
    network = mlp()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    guard = Guard(network, remedies=[Augment()])
    track = guard.attach(optimizer)
    x, y = torch.randn(4, 8), torch.randn(4, 1)
    kept = x.clone()
    assert guard.augment((x, y))[0] is x and torch.equal(x, kept)
    track.remedies["augment"].apply(context_for(network, optimizer))
    loss = nn.functional.mse_loss(network(guard.augment((x, y))[0]), y)
    assert not torch.equal(x, kept)
    loss.backward()
    guard.before_step(optimizer, loss=loss, batch=(x, y))
    assert torch.equal(x, kept)


def test_two_optimizers_do_not_put_back_each_others_batches() -> None:
    parts = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    guard = Guard(parts, remedies=[Augment()])
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in parts]
    for optimizer in optimizers:
        guard.attach(optimizer).remedies["augment"].apply(context_for(parts, optimizer))
    x, y = batch()
    kept = x.clone()
    guard.augment((x, y))
    guard.after_step()
    assert torch.equal(x, kept)
