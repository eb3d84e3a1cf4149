"""Modules of every make: what a bad batch was through leaves no trace, and going back restores all of it."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lightning_gradguard import GradGuard
from tests.builders import Net, loader, mlp, regression, trainer
from tests.compatibility.matrix import cells
from tests.compatibility.runs import Bursts, thrown_back, unnoticed
from tests.compatibility.test_optimizers import Looked

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)


class Tied(nn.Module):
    """Two layers that share one weight, and one weight that is another's transpose at the start."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encode, self.decode, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 1)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().t().clone())
        self.again = nn.Linear(8, 16)
        self.again.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.decode(self.again(self.decode(self.encode(x).relu()).relu())))
        return y


class Partial(nn.Module):
    """A layer that is frozen, one that is never used, and parameters of the root itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.frozen, self.idle, self.body = nn.Linear(8, 8), nn.Linear(8, 8), mlp()
        self.scale, self.shift = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(()))
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x * self.scale + 0.1 * self.frozen(x)) + self.shift
        return y


class Complex(nn.Module):
    """A layer with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.weight = nn.Parameter(torch.randn(16, 8, dtype=torch.complex64) / 4)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head((x.to(torch.complex64) @ self.weight.T).abs())
        return y


class Rounded(nn.Module):
    """A parametrisation that rounds a weight to 256 levels, and passes the gradient through."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(weight, 0.02, 0, -128, 127)


class Quantised(nn.Module):
    """A frozen weight in eight bits, with a low-rank adapter that is trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.weight = nn.Parameter(torch.randint(-127, 127, (16, 8), dtype=torch.int8), requires_grad=False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 16, bias=False)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head((x @ (self.weight.float() / 300).T + self.up(self.down(x))).relu())
        return y


class Twice(nn.Module):
    """A layer that is gone through three times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.layer, self.head = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = self.layer(x).relu()
        y: Tensor = self.head(x)
        return y


def compiled(backend: str) -> Any:
    return torch.compile(mlp(), backend=backend)


def partly(backend: str = "eager") -> nn.Module:
    network = mlp()
    return nn.Sequential(torch.compile(network[0], backend=backend), *network[1:])


def with_first(change: Any) -> nn.Module:
    """Return the small network with its first layer changed."""
    network = mlp()
    network[0] = change(network[0])
    return network


def lazy() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(1))


def normalised(norm: nn.Module) -> nn.Module:
    network = mlp()
    return nn.Sequential(network[0], norm, *network[1:])


def rounded(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Rounded())


MAKE: dict[str, Any] = {
    "torch.compile of the whole": partial(compiled, "eager"),
    "torch.compile of the whole, with AOTAutograd": partial(compiled, "aot_eager"),
    "torch.compile of a part": partly,
    "torch.compile of a part, with AOTAutograd": partial(partly, "aot_eager"),
    "tied weights": Tied,
    "a module used several times": Twice,
    "frozen parameters, unused parameters, `nn.Parameter` outside a layer": Partial,
    "sparse gradients": Looked,
    "complex parameters": Complex,
    "weight norm": partial(with_first, parametrizations.weight_norm),
    "orthogonal weights": partial(with_first, parametrizations.orthogonal),
    "weights quantised in training (straight-through)": partial(with_first, rounded),
    "frozen 8-bit weights with a trained adapter": Quantised,
    "BatchNorm": partial(mlp, norm=True),
    "SyncBatchNorm, one process": lambda: normalised(nn.SyncBatchNorm(16)),
    "LayerNorm": lambda: normalised(nn.LayerNorm(16)),
}


@pytest.fixture(autouse=True)
def _compile_anew() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("make", cells("Modules", MAKE, "healthy", "sick"))
def test_a_bad_batch_leaves_no_trace_in(make: Any, tmp_path: Path) -> None:
    unnoticed(lambda: Net(make(), SGD), tmp_path)
    thrown_back(lambda: Bursts(make(), SGD), tmp_path)


@pytest.fixture
def denormals() -> Iterator[None]:
    """Switch small numbers on again: kernels built with -ffast-math, as torch 2.4 builds them, switch them off as they
    are loaded."""
    yield
    torch.set_flush_denormal(False)


def lacking() -> str:
    """Name what Inductor needs to build a kernel for the CPU and does not find here; nothing if all is there."""
    if shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is None:
        return "a C++ compiler"
    return "" if (Path(sysconfig.get_path("include")) / "Python.h").exists() else "Python's headers"


builds = pytest.mark.skipif(bool(lacking()), reason=f"Inductor needs {lacking()}, not found here")


@builds
@pytest.mark.slow
@pytest.mark.cell("Modules", "torch.compile of the whole, with Inductor", "healthy", "sick")
@pytest.mark.usefixtures("denormals")
def test_inductor(tmp_path: Path) -> None:
    unnoticed(lambda: Net(compiled("inductor"), SGD), tmp_path)
    thrown_back(lambda: Bursts(compiled("inductor"), SGD), tmp_path)


def one_layer() -> Any:
    torch.manual_seed(3)
    return torch.compile(nn.Linear(8, 1), backend="inductor")


@builds
@pytest.mark.usefixtures("denormals")
def test_inductor_in_short(tmp_path: Path) -> None:
    # Most of a first compilation goes into trying which vector instructions the compiler can build.
    with torch._inductor.config.patch("cpp.vec_isa_ok", False):
        unnoticed(lambda: Net(one_layer(), SGD), tmp_path)
        thrown_back(lambda: Bursts(one_layer(), SGD), tmp_path)


@pytest.mark.cell(
    *("Modules", "spectral norm", "healthy", "sick"),
    note="its power iteration goes on in a skipped step's forward pass, as it does without a guard",
)
def test_spectral_norm(tmp_path: Path) -> None:
    make = partial(with_first, parametrizations.spectral_norm)
    unnoticed(lambda: Net(make(), SGD), tmp_path, trace=True)
    thrown_back(lambda: Bursts(make(), SGD), tmp_path)


class Lazy(Net):
    """A module whose parameters get their shapes from the first batch."""

    def __init__(self) -> None:
        super().__init__(lazy(), SGD)


class LazyBursts(Bursts):
    def __init__(self) -> None:
        super().__init__(lazy(), SGD)


@pytest.mark.cell("Modules", "lazy modules", "healthy", "sick")
def test_lazy_modules(tmp_path: Path) -> None:
    unnoticed(Lazy, tmp_path)
    thrown_back(LazyBursts, tmp_path)


TIED = pytest.mark.xfail(
    strict=True, reason="what the repair by one user of a tied weight has mended, that by the other restores"
)


@pytest.mark.parametrize("make", [partly, pytest.param(Tied, marks=TIED)])
def test_a_bad_layer_is_mended_in(make: Any, tmp_path: Path) -> None:
    network = make()
    with torch.no_grad():
        next(network.parameters()).mul_(1e6)
    guard = GradGuard(journal=False)
    trainer(tmp_path, callbacks=[guard]).fit(Net(network, ADAM), loader(regression(60)))
    assert "reinitialize" in guard.incidents[0].remedies
    # Either user of a tied weight may be named: what is mended is the same tensor.
    assert guard.incidents[0].culprit in (["network.0"] if make is partly else ["network.encode", "network.again"])
    assert float(next(network.parameters()).detach().abs().max()) < 10.0
