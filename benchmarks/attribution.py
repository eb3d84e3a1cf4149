"""Measure how often the layer at fault is named first, and how often a healthy model is accused.

Run ``python -m benchmarks.attribution --trials 20``. Columns: the layer with the largest gradient, the layer with the
largest gradient over weight, and :func:`lightning_gradguard.attribution.blame`.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gradguard.attribution import Probe, blame
from lightning_gradguard.layers.names import kind_of, layer_of, layers
from lightning_gradguard.snapshots import Snapshot


class Residual(nn.Module):
    """Add a body's output to its input."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Branches(nn.Module):
    """Concatenate what parallel branches make of the same input."""

    def __init__(self, inward: int) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv2d(inward, 8, k, padding=k // 2) for k in (1, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([path(x) for path in self.paths], 1), inplace=True)


class Pool(nn.Module):
    """Average over all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.ndim == 4 else x.mean(1)


class Recurrent(nn.Module):
    """Read the last output of a recurrent layer."""

    def __init__(self, layer: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.cells = nn.ModuleList(
            [layer(16, 32, batch_first=True, **options), layer(32, 32, batch_first=True, **options)]
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        for cell in self.cells:
            x = cell(x)[0]
        return self.head(x[:, -1])


class Block(nn.Module):
    """A pre-LN block with separate query, key, value projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.proj(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), is_causal=True))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class GPT(nn.Module):
    """A small pre-LN language model, initialised as GPT-2 is; the head is tied to the embedding."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(50, width), nn.Parameter(torch.randn(16, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 50, bias=False)
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(layer.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "down.weight")):
                parameter.data.div_(math.sqrt(8.0))
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(x) + self.position)))[:, -1]


class Siren(nn.Module):
    """Sine activations with their own initialisation (Sitzmann et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(2, 64), *(nn.Linear(64, 64) for _ in range(3)), nn.Linear(64, 10)])
        for index, layer in enumerate(self.net):
            bound = 1 / 2 if index == 0 else math.sqrt(6 / 64) / 30
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net[:-1]:
            x = torch.sin(30 * layer(x))
        return self.net[-1](x)


def kaiming(model: nn.Module) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def mlp(depth: int = 10, he: bool = True) -> nn.Module:
    body = [part for _ in range(depth) for part in (nn.Linear(64, 64), nn.ReLU(inplace=True))]
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), *body, nn.Linear(64, 10))
    return kaiming(model) if he else model


def residual_mlp() -> nn.Module:
    body = (Residual(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(5))
    return nn.Sequential(nn.Linear(32, 64), *body, nn.Linear(64, 10))


def cnn(norm: bool = False) -> nn.Module:
    def stage(inward: int, outward: int, stride: int) -> list[nn.Module]:
        conv = nn.Conv2d(inward, outward, 3, stride, 1)
        return [conv, *([nn.BatchNorm2d(outward)] if norm else []), nn.ReLU(inplace=True)]

    body = (
        stage(3, 16, 1) + stage(16, 16, 1) + stage(16, 32, 2) + stage(32, 32, 1) + stage(32, 32, 2) + stage(32, 32, 1)
    )
    return kaiming(nn.Sequential(*body, Pool(), nn.Linear(32, 10)))


def resnet(group: bool) -> nn.Module:
    norm = functools.partial(nn.GroupNorm, 8) if group else nn.BatchNorm2d
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=10, norm_layer=norm)


def inception() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), *(Branches(24) for _ in range(3)), Pool(), nn.Linear(24, 10)
    )


def encoder(first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, norm_first=first, batch_first=True)
    body = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    for parameter in body.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)
    return nn.Sequential(nn.Linear(16, 64), body, Pool(), nn.Linear(64, 10))


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10
    )


def zero_init() -> nn.Module:
    model = residual_mlp()
    for part in model:
        if isinstance(part, Residual):
            nn.init.zeros_(part.body[-1].weight)
    return model


def stock(name: str) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=10)


IMAGE, VECTOR, SEQUENCE, TOKENS, POINTS = (8, 3, 32, 32), (32, 32), (16, 12, 16), (16, 16), (64, 2)
SICK: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP (He)": (mlp, VECTOR),
    "MLP (default)": (functools.partial(mlp, 6, False), VECTOR),
    "residual MLP": (residual_mlp, VECTOR),
    "CNN": (cnn, IMAGE),
    "CNN + BatchNorm": (functools.partial(cnn, True), IMAGE),
    "ResNet + BatchNorm": (functools.partial(resnet, False), IMAGE),
    "ResNet + GroupNorm": (functools.partial(resnet, True), IMAGE),
    "Inception": (inception, IMAGE),
    "transformer, pre-LN": (functools.partial(encoder, True), SEQUENCE),
    "transformer, post-LN": (functools.partial(encoder, False), SEQUENCE),
    "GPT (tied)": (GPT, TOKENS),
    "ViT": (vit, IMAGE),
    "RNN": (functools.partial(Recurrent, nn.RNN), SEQUENCE),
    "RNN (ReLU)": (functools.partial(Recurrent, nn.RNN, nonlinearity="relu"), SEQUENCE),
    "LSTM": (functools.partial(Recurrent, nn.LSTM), SEQUENCE),
}
HEALTHY = {
    **SICK,
    "torchvision resnet18": (functools.partial(stock, "resnet18"), IMAGE),
    "torchvision mobilenet_v2": (functools.partial(stock, "mobilenet_v2"), IMAGE),
    "torchvision efficientnet_b0": (functools.partial(stock, "efficientnet_b0"), IMAGE),
    "SIREN": (Siren, POINTS),
    "zero-initialised branches": (zero_init, VECTOR),
}


def scale(factor: float, weight: Tensor) -> None:
    weight.mul_(factor)


def fill(value: float, weight: Tensor) -> None:
    weight.fill_(value)


def overwrite(times: float, weight: Tensor) -> None:
    weight.copy_(torch.randn_like(weight) * weight.std() * times)


def flip(weight: Tensor) -> None:
    """Set the top exponent bit that is clear, of one element: the damage a flipped bit does at its worst."""
    flat = weight.view(-1)
    index = int(torch.randint(flat.numel(), ()))
    bits = flat[index : index + 1].view(torch.int32)
    clear = [bit for bit in range(27, 31) if not (int(bits) >> bit) & 1]
    bits.bitwise_or_(1 << clear[int(torch.randint(len(clear), ()))])


# The fault, and whether it strikes in the middle of a run, so that a snapshot exists.
FAULTS: dict[str, tuple[Callable[[Tensor], None], bool]] = {
    "x 3": (functools.partial(scale, 3.0), False),
    "x 10": (functools.partial(scale, 10.0), False),
    "x 100": (functools.partial(scale, 100.0), False),
    "x 1e4": (functools.partial(scale, 1e4), False),
    "x 1e8": (functools.partial(scale, 1e8), False),
    "all 0.1": (functools.partial(fill, 0.1), False),
    "all 1": (functools.partial(fill, 1.0), False),
    "noise, later": (functools.partial(overwrite, 1.0), True),
    "noise x 30, later": (functools.partial(overwrite, 30.0), True),
    "bit flip, later": (flip, True),
}


def step(model: nn.Module, inputs: Tensor, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Compute gradients on random classes, and update where there is an optimizer."""
    model.zero_grad()
    F.cross_entropy(model(inputs), torch.randint(10, (len(inputs),))).backward()
    if optimizer is not None:
        optimizer.step()


def batch(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(50, shape) if shape is TOKENS else torch.randn(shape)


def snapshot(model: nn.Module, at: int) -> Snapshot:
    return Snapshot(at, {n: p.detach().clone() for n, p in model.named_parameters()}, {}, {})


def train(model: nn.Module, shape: tuple[int, ...], steps: int) -> Snapshot:
    """Train a little; the snapshot is some steps old when it returns."""
    optimizer, kept = torch.optim.AdamW(model.parameters(), 1e-3), snapshot(model, 0)
    for index in range(steps):
        if index == steps // 2:
            kept = snapshot(model, index)
        step(model, batch(shape), optimizer)
    return kept


def candidates(model: nn.Module) -> list[tuple[str, Tensor]]:
    """List the matrices of all layers, one each, that an initialisation or an accident may spoil."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and kind_of(layers(model).get(layer_of(name), model)) not in ("norm", "other"):
            found.setdefault(layer_of(name), parameter)
    return list(found.items())


def loudest(model: nn.Module, relative: bool) -> str:
    """Name the layer with the largest gradient norm, or the largest over its weight norm."""
    sizes: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.ndim >= 2:
            size = float(parameter.grad.double().norm())
            size = size / max(float(parameter.detach().double().norm()), 1e-12) if relative else size
            sizes[layer_of(name)] = math.inf if math.isnan(size) else size
    return max(sizes, key=sizes.__getitem__)


def accuse(model: nn.Module, shape: tuple[int, ...], kept: Snapshot | None, factor: float = 1.0) -> list[str]:
    """Look once, at a batch that is ``factor`` times what it should be."""
    probe, inputs = Probe(), batch(shape)
    probe.arm(model)
    step(model, inputs * factor if inputs.is_floating_point() else inputs)
    probe.disarm()
    return [suspect.layer for suspect in blame(model, readings=probe.readings(), snapshot=kept)]


def trial(architecture: str, fault: str, seed: int) -> tuple[str, tuple[bool, bool, bool, bool]]:
    """Spoil one random layer; return it, and whether each way named it first, and whether ours named it alone."""
    torch.manual_seed(seed)
    build, shape = SICK[architecture]
    strike, late = FAULTS[fault]
    model = build()
    kept = train(model, shape, 6) if late else None
    options = candidates(model)
    culprit, weight = options[int(torch.randint(len(options), ()))]
    with torch.no_grad():
        strike(weight)
    named = accuse(model, shape, kept)
    first = bool(named) and named[0] == culprit
    return culprit, (loudest(model, False) == culprit, loudest(model, True) == culprit, first, named == [culprit])


def percent(values: Iterable[bool]) -> str:
    counted = list(values)
    return f"{100 * sum(counted) / max(1, len(counted)):6.1f}"


def sick(
    architectures: list[str], faults: list[str], trials: int, verbose: bool
) -> Iterator[tuple[str, str, list[tuple[bool, ...]]]]:
    for architecture in architectures:
        for fault in faults:
            results, missed = [], Counter[str]()
            for seed in range(trials):
                culprit, result = trial(architecture, fault, seed)
                results.append(result)
                missed.update([] if result[2] else [culprit])
            if verbose and missed:
                print(f"  missed: {architecture} / {fault}: {dict(missed)}", flush=True)
            yield architecture, fault, results


def healthy(name: str, trials: int, steps: int) -> tuple[int, int, Counter[str]]:
    """Count the looks at fresh and briefly trained models, on good and spoilt batches, and those accusing a layer."""
    build, shape = HEALTHY[name]
    accused, looks, who = 0, 0, Counter[str]()
    for seed in range(trials):
        torch.manual_seed(1000 + seed)
        model = build()
        kept = train(model, shape, steps) if seed % 2 else snapshot(model, 0)
        for past, factor in ((None, 1.0), (kept, 1.0), (None, 1e3), (kept, 1e3)):
            named = [layer for layer in accuse(model, shape, past, factor) if layer != "batch"]
            accused, looks = accused + bool(named), looks + 1
            who.update(named)
    return accused, looks, who


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print the tables; return the shares (of 1) that the tests look at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--architectures", nargs="*", default=list(HEALTHY), choices=list(HEALTHY))
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args(arguments)
    rows = list(sick([a for a in options.architectures if a in SICK], options.faults, options.trials, options.verbose))
    headings = f"{'largest g':>10} {'g over w':>9} {'ours 1st':>9} {'alone':>7}   (% of trials)"
    for column, keys in ((0, options.architectures), (1, options.faults)):
        print(f"{('architecture', 'fault')[column]:<24}{headings}")
        for key in keys:
            if found := [r for row in rows if row[column] == key for r in row[2]]:
                print(f"{key:<24}" + "   ".join(percent(r[i] for r in found) for i in range(4)))
    results = [r for row in rows for r in row[2]]
    print(f"{'all':<24}" + "   ".join(percent(r[i] for r in results) for i in range(4)))
    mattering = [r for row in rows if row[1] != "x 3" for r in row[2]]
    print(f"{'all but x 3':<24}" + "   ".join(percent(r[i] for r in mattering) for i in range(4)))
    accused = {name: healthy(name, max(2, options.trials // 2), 60) for name in options.architectures}
    found = ", ".join(f"{n} {c} {dict(w)}" for n, (c, _, w) in accused.items() if c) or "none"
    print(f"healthy models, {sum(n for _, n, _ in accused.values())} looks; accused: {found}")
    return {
        "first": sum(r[2] for r in mattering) / max(1, len(mattering)),
        "accused": sum(c for c, _, _ in accused.values()),
    }


if __name__ == "__main__":
    main()
