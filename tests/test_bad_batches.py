"""A NaN in one batch leaves everything as in a run that never saw that batch."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import GradGuard
from lightning_gradguard.guard import Guard
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, trainer

OPTIMIZERS = {
    "sgd-momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "sgd-nesterov-fused": partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, fused=True),
    "adam": partial(torch.optim.Adam, lr=0.01, weight_decay=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "adamw-fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "adamw-foreach-amsgrad": partial(torch.optim.AdamW, lr=0.01, foreach=True, amsgrad=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9),
    "adagrad": partial(torch.optim.Adagrad, lr=0.01),
    "adam-capturable-like": partial(torch.optim.Adam, lr=torch.tensor(0.01), foreach=False),
    "nadam": partial(torch.optim.NAdam, lr=0.01),
}


def run(batches: Any, optimizer: Any, root: Path, callbacks: Any = (), *, norm: bool = True, **options: Any) -> Any:
    fit = trainer(root, callbacks=list(callbacks), **options)
    fit.fit(Net(mlp(norm=norm), optimizer), loader(batches))
    return frozen_copy(fit)


def without(batches: list[Any], *indices: int) -> list[Any]:
    return [batch for i, batch in enumerate(batches) if i not in indices]


@pytest.mark.parametrize("at", [0, 25, 39])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_nan_in_one_batch_leaves_no_trace(name: str, at: int, tmp_path: Path) -> None:
    batches = regression(40)
    guard = GradGuard(journal=False)
    never_saw = run(without(batches, at), OPTIMIZERS[name], tmp_path)
    saw = run(spoil(batches, at), OPTIMIZERS[name], tmp_path, [guard])
    assert same(never_saw, saw)
    assert [i.culprit for i in guard.incidents] == ["batch"]
    assert guard.incidents[0].remedies == ("skip",)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e30])
def test_an_infinite_or_huge_element_leaves_no_trace_either(value: float, tmp_path: Path) -> None:
    batches = regression(40)
    guard = GradGuard(journal=False)
    never_saw = run(without(batches, 25), OPTIMIZERS["adamw"], tmp_path, norm=False)
    assert same(never_saw, run(spoil(batches, 25, value=value), OPTIMIZERS["adamw"], tmp_path, [guard], norm=False))
    assert len(guard.incidents) == 1


def test_several_bad_batches_in_a_row_leave_no_trace(tmp_path: Path) -> None:
    batches = regression(60)
    bad = (20, 21, 22, 23, 40)
    never_saw = run(without(batches, *bad), OPTIMIZERS["adam"], tmp_path)
    saw = run(spoil(batches, *bad), OPTIMIZERS["adam"], tmp_path, [GradGuard(journal=False)])
    assert same(never_saw, saw)


def test_a_bad_micro_batch_costs_its_whole_accumulated_step(tmp_path: Path) -> None:
    batches = regression(40)
    never_saw = run(without(batches, 24, 25, 26, 27), OPTIMIZERS["adam"], tmp_path, accumulate_grad_batches=4)
    guards = [GradGuard(journal=False)]
    assert same(never_saw, run(spoil(batches, 26), OPTIMIZERS["adam"], tmp_path, guards, accumulate_grad_batches=4))


@pytest.mark.parametrize("kind", ["nan", "scale"])
def test_however_often_whichever_micro_batch_is_bad_nothing_but_skipping_is_done(kind: str, tmp_path: Path) -> None:
    batches = regression(240)
    for at in range(33, 240, 7):  # Now the first, now the last of three.
        x, y = batches[at]
        batches[at] = (x.clone().fill_(math.nan) if kind == "nan" else x * 1e8, y)
    guard = GradGuard(journal=False)
    run(batches, OPTIMIZERS["adam"], tmp_path, [guard], norm=False, accumulate_grad_batches=3)
    assert {incident.culprit for incident in guard.incidents} == {"batch"}
    assert {incident.remedies for incident in guard.incidents} == {("skip",)}


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("value", [math.nan, 1e30])
def test_the_users_own_clipping_gets_along_with_a_skipped_step(algorithm: str, value: float, tmp_path: Path) -> None:
    batches, clipping = regression(40), {"gradient_clip_val": 0.5, "gradient_clip_algorithm": algorithm}
    never_saw = run(without(batches, 25), OPTIMIZERS["adam"], tmp_path, norm=False, **clipping)
    spoilt = spoil(batches, 25, value=value)
    fit = trainer(tmp_path, callbacks=[GradGuard(journal=False)], **clipping)
    fit.fit(Net(mlp(), OPTIMIZERS["adam"]), loader(spoilt))
    assert same(never_saw, frozen_copy(fit))
    assert fit.gradient_clip_val == 0.5


@pytest.mark.parametrize("at", [0, 25, 39])
def test_a_huge_element_that_a_normalisation_hides_does_not_stay_in_its_statistics(at: int, tmp_path: Path) -> None:
    batches = regression(40)
    with pytest.warns(RuntimeWarning, match="running statistics of network.1") as caught:
        saw = run(spoil(batches, at, value=1e30), OPTIMIZERS["adamw"], tmp_path, [GradGuard(journal=False)])
    assert sum("running statistics" in str(w.message) for w in caught) == 1
    assert all(value.isfinite().all() for value in saw["weights"].values())
    # What is put back is that batch's share alone, so the others' statistics are those of a run that never saw it.
    never_saw = run(without(batches, at), OPTIMIZERS["adamw"], tmp_path)
    for name in ("network.1.running_mean", "network.1.running_var"):
        assert torch.allclose(saw["weights"][name], never_saw["weights"][name], rtol=0.2, atol=0.2)


@pytest.mark.parametrize("value", [1e10, 1e15])
@pytest.mark.parametrize("at", [20, 25, 39])
def test_a_large_element_that_a_normalisation_hides_does_not_stay_either(at: int, value: float, tmp_path: Path) -> None:
    batches = regression(40)
    with pytest.warns(RuntimeWarning, match="running statistics of network.1"):
        saw = run(spoil(batches, at, value=value), OPTIMIZERS["adamw"], tmp_path, [GradGuard(journal=False)])
    never_saw = run(without(batches, at), OPTIMIZERS["adamw"], tmp_path)
    for name in ("network.1.running_mean", "network.1.running_var"):
        assert torch.allclose(saw["weights"][name], never_saw["weights"][name], rtol=0.2, atol=0.2)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("change", ["data not scaled from the start", "data no longer scaled", "a layer that grew"])
def test_statistics_follow_what_is_no_single_batchs_doing(change: str, momentum: float | None, tmp_path: Path) -> None:
    first, since = {"data not scaled from the start": (1e6, 0), "data no longer scaled": (255.0, 30)}.get(
        change, (1.0, 99)
    )

    def module() -> Net:
        found = Grows(mlp(norm=True), OPTIMIZERS["adamw"], at=30 if change == "a layer that grew" else 99)
        found.network[1].momentum = momentum  # type: ignore[index, union-attr]
        return found

    batches = [(x * first if index >= since else x, y) for index, (x, y) in enumerate(regression(60))]
    ends = []
    for callbacks in ([], [GradGuard(journal=False, remedies=[])]):
        fit = trainer(tmp_path, callbacks=callbacks)
        fit.fit(module(), loader(batches))
        ends.append(frozen_copy(fit))
    assert same(*ends)


class Grows(Net):
    """A module whose first layer is suddenly a million times larger, which the normalisation after it hides."""

    def __init__(self, *args: Any, at: int) -> None:
        super().__init__(*args)
        self.at = at

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == self.at:
            with torch.no_grad():
                self.network[0].weight.mul_(1e6)  # type: ignore[index, operator]
        return super().training_step(batch, batch_idx)


class ClipsByItself(Net):
    """A module that clips by value in its own way, whatever the Trainer was told."""

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="value")


class ClipsWithTorch(Net):
    """A module that clips without asking Lightning."""

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        nn.utils.clip_grad_value_(self.network.parameters(), 0.5)


@pytest.mark.parametrize("kind", [ClipsByItself, ClipsWithTorch])
def test_a_module_that_clips_by_value_itself_gets_along_with_a_skipped_step(kind: Any, tmp_path: Path) -> None:
    ends = []
    for batches in (without(regression(40), 25), spoil(regression(40), 25)):
        module = kind(mlp(), OPTIMIZERS["adam"])
        fit = trainer(tmp_path, callbacks=[GradGuard(journal=False)])
        fit.fit(module, loader(batches))
        ends.append(frozen_copy(fit))
        assert "configure_gradient_clipping" not in vars(module)
    assert same(*ends)


def test_a_nan_that_is_not_the_batchs_fault_is_skipped_as_well() -> None:
    network = mlp(norm=True)
    optimizer = torch.optim.Adam(network.parameters())
    guard = Guard(network)
    guard.attach(optimizer)
    for index, (x, y) in enumerate(regression(30)):
        before = {k: v.clone() for k, v in network.state_dict().items()}
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y) * (math.nan if index == 20 else 1.0)
        loss.backward()
        report = guard.before_step(optimizer, loss=loss, batch=(x, y))
        optimizer.step()
        assert report.skipped is (index == 20)
        assert same(before, dict(network.state_dict())) is (index == 20)


class Speaking(nn.Module):
    """A network whose forward pass returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4, sparse=True)
        self.head = nn.Linear(4, 1)
        self.idle = nn.Linear(4, 1)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, index: Tensor) -> Tensor:
        return self.head(self.embedding(index)).square().mean()


def test_sparse_idle_and_frozen_parameters_are_guarded_too() -> None:
    network = Speaking()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    guard = Guard(network)
    skipped = []
    for step in range(30):
        optimizer.zero_grad()
        loss = network(torch.tensor([1, 2, 2, step % 10])) * (math.nan if step == 20 else 1e9 if step == 25 else 1.0)
        loss.backward()
        skipped.append(guard.before_step(optimizer, loss=loss).skipped)
        optimizer.step()
    assert [i for i, h in enumerate(skipped) if h] == [20, 25]
    assert all(p.isfinite().all() for p in network.parameters())
