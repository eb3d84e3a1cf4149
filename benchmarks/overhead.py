"""Measure what the guard costs on the healthy path, as a ratio to ``torch.nn.utils.clip_grad_norm_``.

Run ``python -m benchmarks.overhead``; it rewrites ``docs/performance.md``, its data (``docs/performance.json``) and its plots.
Contenders are interleaved step by step in one process, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from benchmarks.overhead_models import with_gradients
from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.diagnostics import Journal, Sink, TensorBoardSink

PERIOD = 100
"""Steps of a round: every one of them holds one snapshot and two windows, as any 100 steps of a long run do."""
CLIP, LOWER, ONE_SYNC, GUARD = "clip_grad_norm_", "_foreach_norm alone", "foreach norm + one transfer", "GradGuard"
SEED = 0


@dataclass(frozen=True)
class Contender:
    """What is timed: ``call`` acts on one step's gradients, on one step in ``stride``; ``kind`` tells afterwards what it did."""

    name: str
    call: Callable[[], object]
    stride: int = 1
    kind: Callable[[], str] = lambda: "plain"


class CountingStore(SnapshotStore):
    """Tell when a snapshot was taken; the guard works on copies, so the count belongs to the class."""

    taken: ClassVar[int] = 0

    def take(self, *args: Any, **kwargs: Any) -> None:
        type(self).taken += 1
        super().take(*args, **kwargs)


class CountingSink(Sink):
    """Tell when a window was logged, and that nothing else was."""

    def __init__(self) -> None:
        self.windows = 0

    def window(self, window: object) -> None:
        self.windows += 1

    def incident(self, incident: object, event: str) -> None:
        raise AssertionError("the benchmark's gradients are healthy")


@contextmanager
def guarded(model: nn.Module, *, snapshots: bool = True) -> Iterator[tuple[Contender, list[float]]]:
    """Yield the guard as a contender in the middle of a healthy run, and the seconds of its first steps."""
    optimizer = torch.optim.AdamW(model.parameters()) if snapshots else torch.optim.SGD(model.parameters(), lr=1e-3)
    if snapshots:
        optimizer.step()  # A snapshot holds Adam's moments as well.
    # Falling, so that the run is seen to learn; made beforehand, since a training loop has its loss at hand.
    losses = itertools.cycle([torch.tensor(2.0 * 0.999**i + 0.1) for i in range(2000)])
    count = CountingSink()
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        sinks = [TensorBoardSink(writer), Journal(folder), count]
        guard = Guard(model, sinks=sinks, snapshots=CountingStore(keep=2 if snapshots else 0))

        seen = [0, 0]

        def kind() -> str:
            before, seen[:] = tuple(seen), (CountingStore.taken, count.windows)
            return "snapshot" if seen[0] > before[0] else "window" if seen[1] > before[1] else "plain"

        def step() -> None:
            guard.before_step(optimizer, loss=next(losses))

        first = [_seconds(step) for _ in range(5)]
        # Past the doubling gaps of the first steps: from here on a round is like the next.
        for _ in range(1, 160 if snapshots else 20):
            step()
        kind()
        yield Contender(GUARD, step, kind=kind), first
        guard.close()


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def plain_contenders(parameters: list[nn.Parameter]) -> list[Contender]:
    """Return the yardstick and its lower bounds."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return [
        # So high a limit leaves the values as they are; the multiplication is made all the same.
        Contender(CLIP, lambda: nn.utils.clip_grad_norm_(parameters, 1e9)),
        Contender(LOWER, lambda: torch._foreach_norm(grads)),
        Contender(ONE_SYNC, lambda: torch.stack(torch._foreach_norm(grads)).norm().item()),
    ]


def peers(model: nn.Module, parameters: list[nn.Parameter]) -> list[Contender]:
    """Return the peers that are installed."""
    found = []
    try:
        from zclip import ZClip

        zclip = ZClip()
        found.append(Contender("zclip", lambda: zclip.step(model), 10))
    except ImportError:
        pass
    try:
        from autoclip.torch import QuantileClip

        found.append(Contender("autoclip", QuantileClip(iter(parameters), global_threshold=True).step, 10))
    except ImportError:
        pass
    from lightning.pytorch.utilities import grad_norm

    found.append(Contender("Lightning grad_norm()", lambda: grad_norm(model, 2), 10))
    try:
        from timm.utils import adaptive_clip_grad

        found.append(Contender("timm AGC", lambda: adaptive_clip_grad(parameters, clip_factor=1e9), 10))
    except ImportError:
        pass
    return found


def measure(model: nn.Module, rounds: int, bar: tqdm[Any]) -> dict[str, Any]:
    """Return each contender's ratio to clipping, and the milliseconds behind it: medians over rounds."""
    parameters, order = with_gradients(model), random.Random(SEED)
    seconds: dict[str, list[float]] = {}
    with guarded(model) as (guard, first):
        contenders = [*plain_contenders(parameters), guard, *peers(model, parameters)]
        for contender in contenders:
            contender.call()
        for _ in range(rounds):
            for name, cost in _round(contenders, order).items():
                seconds.setdefault(name, []).append(cost)
                bar.update(1 / (len(contenders) + 3))
    ratios = {name: [c / y for c, y in zip(costs, seconds[CLIP], strict=True)] for name, costs in seconds.items()}
    return {
        "tensors": len(parameters),
        "elements": sum(p.numel() for p in parameters),
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "quartiles": {name: _quartiles(values) for name, values in ratios.items()},
        "milliseconds": {name: 1e3 * statistics.median(costs) for name, costs in seconds.items()},
        "first_steps": [f / statistics.median(seconds[CLIP]) for f in first],
    }


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4)[::2] if len(values) > 1 else values * 2


def _round(contenders: Sequence[Contender], order: random.Random) -> dict[str, float]:
    """Time one period, and return seconds a step.

    A contender's cost is the median of its steps, so that a moment in which the machine did something else does not count. The
    guard's snapshots and windows are rare but no accidents: what they cost beyond a plain step is added at their true interval.
    """
    times: dict[str, list[tuple[float, str]]] = {c.name: [] for c in contenders}
    for i in range(PERIOD):
        # Who comes next has the caches that the last one left; in random order no one has a lucky place.
        turn = [c for c in contenders if i % c.stride == 0]
        for c in order.sample(turn, len(turn)):
            times[c.name].append((_seconds(c.call), c.kind()))
    costs = {name: statistics.median(t for t, kind in taken if kind == "plain") for name, taken in times.items()}
    guard = times[GUARD]
    for kind in ("snapshot", "window"):
        extra = [t - costs[GUARD] for t, k in guard if k == kind]
        costs[f"{GUARD}: {kind}s"] = sum(extra) / PERIOD
    costs[f"{GUARD}: every step"] = costs[GUARD]
    costs[GUARD] += costs[f"{GUARD}: snapshots"] + costs[f"{GUARD}: windows"]
    return costs
