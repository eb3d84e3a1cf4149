"""Optimizers in each of their implementations: a bad batch leaves no trace in them, and going back restores their
state."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import GradGuard, Guard
from tests.builders import Net, mlp, regression, same, spoil
from tests.compatibility.matrix import cells
from tests.compatibility.runs import BAD, STEPS, Bursts, fit, thrown_back, unnoticed

LOOP, FOREACH, FUSED = {"foreach": False}, {"foreach": True}, {"fused": True}
EACH = {"for-loop": LOOP, "foreach": FOREACH}
WITH_FUSED = {**EACH, "fused": FUSED}

# Keyword arguments, and the implementations there are on a CPU.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "SGD": ("SGD", {"lr": 0.01}, WITH_FUSED),
    "SGD with momentum": ("SGD", {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-2}, WITH_FUSED),
    "SGD with Nesterov momentum": ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}, WITH_FUSED),
    "Adam": ("Adam", {"lr": 0.01}, WITH_FUSED),
    "AdamW": ("AdamW", {"lr": 0.01, "amsgrad": True}, WITH_FUSED),
    "Adagrad": ("Adagrad", {"lr": 0.01}, WITH_FUSED),
    "RMSprop": ("RMSprop", {"lr": 0.001, "momentum": 0.5, "centered": True}, EACH),
    "Adadelta": ("Adadelta", {"lr": 0.1}, EACH),
    "Adamax": ("Adamax", {"lr": 0.01}, EACH),
    "NAdam": ("NAdam", {"lr": 0.01}, EACH),
    "RAdam": ("RAdam", {"lr": 0.01}, EACH),
    "Rprop": ("Rprop", {"lr": 0.001}, EACH),
    "ASGD": ("ASGD", {"lr": 0.01}, EACH),
    "Adafactor": ("Adafactor", {"lr": 0.01}, EACH),
}
MAKE: dict[str, Any] = {
    f"{name}, {way}": (kind, {**options, **how})
    for name, (kind, options, ways) in KINDS.items()
    for way, how in ways.items()
}
MAKE["Adam, learning rate in a tensor"] = ("Adam", {"foreach": False, "tensor": 0.01})


def maker(spec: tuple[str, dict[str, Any]]) -> Any:
    """Return the optimizer's constructor, or skip where torch has none."""
    kind, options = spec
    if not hasattr(torch.optim, kind):
        pytest.skip(f"torch {torch.__version__} has no {kind}")

    def make(parameters: Any) -> Any:
        rate = {"lr": torch.tensor(options["tensor"])} if "tensor" in options else {}
        return getattr(torch.optim, kind)(parameters, **{k: v for k, v in options.items() if k != "tensor"}, **rate)

    return make


@pytest.mark.parametrize("spec", cells("Optimizers", MAKE, "healthy", "sick"))
def test_a_bad_batch_leaves_no_trace_under(spec: Any, tmp_path: Path) -> None:
    make = maker(spec)
    unnoticed(lambda: Net(mlp(), make), tmp_path)
    # What goes by signs makes the same updates of gradients of any length: there is nothing to throw back.
    (unnoticed if spec[0] == "Rprop" else thrown_back)(lambda: Bursts(mlp(), make), tmp_path)


def matrices(parameters: Any, kind: Any, **options: Any) -> Any:
    """Return an optimizer that takes matrices only."""
    return kind([p for p in parameters if p.ndim == 2], **options)


@pytest.mark.cell("Optimizers", "Muon", "healthy", "sick")
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon(tmp_path: Path) -> None:
    make = partial(matrices, kind=torch.optim.Muon, lr=0.01)
    unnoticed(lambda: Net(mlp(), make), tmp_path)
    thrown_back(lambda: Bursts(mlp(), make), tmp_path)


class Looked(nn.Module):
    """An embedding with sparse gradients; which row is looked up depends on the features, a NaN among them or not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(256, 1, sparse=True)
        self.bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.table(((x > 0) * self.bits).sum(1)) * x.sum(1, keepdim=True)
        return y


@pytest.mark.cell("Optimizers", "SparseAdam", "healthy", "sick")
def test_sparse_adam(tmp_path: Path) -> None:
    make = partial(torch.optim.SparseAdam, lr=0.01)
    unnoticed(lambda: Net(Looked(), make), tmp_path)
    thrown_back(lambda: Bursts(Looked(), make), tmp_path)


@pytest.mark.parametrize("kind", cells("Optimizers", {f"timm's {k}": k for k in ("Lion", "Lamb")}, "healthy", "sick"))
def test_optimizers_of_others(kind: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm.optim", reason="timm is not installed")
    make = partial(getattr(timm, kind), lr=0.001)
    unnoticed(lambda: Net(mlp(), make), tmp_path)
    thrown_back(lambda: Bursts(mlp(), make), tmp_path)


# -- on a GPU only

CAPTURABLE = {
    f"{kind}, capturable": kind
    for kind in ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adamax", "Adadelta", "ASGD", "Rprop")
}


@pytest.mark.parametrize(
    "kind",
    cells("Optimizers", CAPTURABLE, "refused", notes=dict.fromkeys(CAPTURABLE, "by torch itself on a CPU")),
)
def test_on_a_cpu_torch_itself_refuses_capturable(kind: str, tmp_path: Path) -> None:
    make = partial(getattr(torch.optim, kind), lr=0.001, capturable=True)
    with pytest.raises(AssertionError, match="capturable"):
        fit(Net(mlp(), make), regression(2), tmp_path, [GradGuard(journal=False)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", cells("Optimizers", CAPTURABLE, "healthy", "sick"))
def test_capturable(kind: str, tmp_path: Path) -> None:
    make = partial(getattr(torch.optim, kind), lr=0.001, capturable=True)
    unnoticed(lambda: Net(mlp(), make), tmp_path, accelerator="gpu")
    thrown_back(lambda: Bursts(mlp(), make), tmp_path, accelerator="gpu")


# -- differentiable: its parameters are no leaves, which no Trainer can give it, so a plain loop

DIFFERENTIABLE = {
    f"{kind}, differentiable": kind
    for kind in ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adadelta", "Adamax", "NAdam", "RAdam", "Rprop", "ASGD")
}


def unrolled(kind: str, batches: Any, *, guarded: bool) -> tuple[Any, Any, list[int]]:
    """Train functionally; return the parameters, the optimizer's state and the steps that were skipped."""
    network = mlp()
    live = {name: p.detach().clone().requires_grad_().clone() for name, p in network.named_parameters()}
    optimizer = getattr(torch.optim, kind)(list(live.values()), lr=0.01, differentiable=True)
    guard, skipped = Guard(network), []
    for index, (x, y) in enumerate(batches):
        loss = nn.functional.mse_loss(torch.func.functional_call(network, live, (x,)), y)
        for p, grad in zip(live.values(), torch.autograd.grad(loss, list(live.values())), strict=True):
            p.grad = grad
        if guarded and guard.before_step(optimizer, loss=loss, batch=(x, y)).skipped:
            skipped.append(index)
        optimizer.step()
    return live, optimizer.state_dict()["state"], skipped


@pytest.mark.parametrize(
    "kind",
    cells("Optimizers", DIFFERENTIABLE, "healthy", "sick", notes=dict.fromkeys(DIFFERENTIABLE, "in a plain loop")),
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_differentiable(kind: str) -> None:
    batches = regression(STEPS)
    plain = unrolled(kind, batches[:BAD] + batches[BAD + 1 :], guarded=False)
    assert same(plain, unrolled(kind, batches[:BAD] + batches[BAD + 1 :], guarded=True))
    assert same((*plain[:2], [BAD]), unrolled(kind, spoil(batches, BAD), guarded=True))
