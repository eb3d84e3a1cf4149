"""Measure on a GPU what the guard adds to a real training step, beside ``clip_grad_norm_``; called by ``benchmarks.overhead``.

One model is trained; blocks of plain, clipped and guarded steps take turns, so that what the machine does meets all of them alike.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from lightning_gradguard import Guard

PLAIN, CLIPPED, GUARDED = "unguarded", "gradient_clip_val=1.0", "GradGuard"
STEPS = 100
"""Steps of a block: one snapshot and two windows, as in any 100 steps of a long run."""

WATCHED = 20
"""Steps that are made under the strictest watch for waits."""

Batch = tuple[Tensor, Tensor]


class Language(nn.Module):
    """A GPT: 124 million parameters by default, pre-norm, the head tied to the embedding."""

    def __init__(
        self, width: int = 768, depth: int = 12, heads: int = 12, words: int = 50304, context: int = 1024
    ) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(words, width), nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, shape ``(batch * context, words)``."""
        seen = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        size = tokens.shape[1]
        out = self.blocks(seen, mask=self.mask[:size, :size], is_causal=True)
        return (out @ self.embedding.weight.T).flatten(0, 1)


def resnet50(device: str) -> tuple[nn.Module, Batch]:
    """Return ResNet-50 with a batch of 128 images."""
    return torchvision.models.resnet50().to(device), (
        torch.randn(128, 3, 224, 224, device=device),
        torch.randint(1000, (128,), device=device),
    )


def gpt(device: str) -> tuple[nn.Module, Batch]:
    """Return the GPT with a batch of 16 x 1,024 tokens."""
    tokens = torch.randint(50304, (16, 1025), device=device)
    return Language().to(device), (tokens[:, :-1], tokens[:, 1:].flatten())


MODELS: dict[str, Callable[[str], tuple[nn.Module, Batch]]] = {"ResNet-50": resnet50, "GPT, 124 M": gpt}


def measure(
    build: Callable[[str], tuple[nn.Module, Batch]],
    *,
    device: str = "cuda",
    fused: bool = False,
    rounds: int = 9,
    steps: int = STEPS,
    told: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Return milliseconds of a training step of each kind, their ratio to an unguarded one (medians over rounds), and waits of calm steps.

    Args:
        build: Makes the model and one batch on the device.
        device: Where to train.
        fused: Whether AdamW is the fused one, or what torch takes by default.
        rounds: Turns of each kind.
        steps: Steps of a turn.
        told: Called after each round.
    """
    torch.manual_seed(0)
    model, (inputs, targets) = build(device)
    # So low a rate keeps three kinds of steps on one model from disturbing each other.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, **({"fused": True} if fused else {}))
    guard = Guard(model)
    track = guard.attach(optimizer)

    def step(kind: str, watch: str = "default") -> None:
        if kind == GUARDED:
            guard.augment((inputs, targets))
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        if kind == GUARDED:
            with _watching(device, watch):
                guard.before_step(optimizer, loss=loss.detach(), batch=(inputs, targets))
        elif kind == CLIPPED:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    kinds, order = [PLAIN, CLIPPED, GUARDED], random.Random(0)
    for _ in range(2 * steps):  # past the first steps, which the guard looks at more closely
        step(GUARDED)
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in order.sample(kinds, len(kinds)):
            _wait(device)
            start = time.perf_counter()
            for _ in range(steps):
                step(kind)
            _wait(device)
            taken[kind].append((time.perf_counter() - start) / steps)
        told()
    waits: list[str] = []
    for number in range(2 * WATCHED):
        # At a snapshot the host waits, which is no wait of a calm step; the first steps look at what the other kinds have done.
        strict = number >= WATCHED and not track.snapshots.due(track.steps + track.gate.waiting)
        try:
            step(GUARDED, "error" if strict else "default")
        except RuntimeError as error:
            if not strict:
                raise
            waits.append(f"{error}"[:300])
            optimizer.step()
    incidents = len(guard.incidents)
    guard.close()
    if incidents:
        raise AssertionError("the benchmark's gradients are healthy")
    ratios = {k: [a / b for a, b in zip(taken[k], taken[PLAIN], strict=True)] for k in kinds}
    return {
        "milliseconds": {k: 1e3 * statistics.median(t) for k, t in taken.items()},
        "ratio": {k: statistics.median(r) for k, r in ratios.items()},
        "waits": len(waits),
        **({"first wait": waits[0]} if waits else {}),
    }


@contextlib.contextmanager
def _watching(device: str, mode: str) -> Iterator[None]:
    """Let torch raise at what waits for the GPU, where ``mode`` is ``"error"``."""
    if mode == "default" or torch.device(device).type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":  # a CPU has done what it was told when it returns
        torch.cuda.synchronize(device)


def table(gpu: dict[str, Any]) -> str:
    """Return what was measured as a Markdown table."""
    lines = ["| | step, ms | " + f"{CLIPPED} | **{GUARDED}** |", "|---|---:|---:|---:|"]
    for name, found in gpu["models"].items():
        ratio = found["ratio"]
        lines.append(
            f"| {name} | {found['milliseconds'][PLAIN]:.1f} | {ratio[CLIPPED]:.3f} | **{ratio[GUARDED]:.3f}** |"
        )
    return "\n".join(lines)
