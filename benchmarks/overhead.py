"""Measure what the guard costs on the healthy path, as a ratio to ``torch.nn.utils.clip_grad_norm_``.

Run ``python -m benchmarks.overhead``; it rewrites ``docs/performance.md``, its data (``docs/performance.json``) and its
plots. Contenders are interleaved step by step in one process, so that what else the machine does meets all of them
alike.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from benchmarks import diagnostics, overhead_gpu
from benchmarks.overhead_models import GPT, many_tensors, resnet18, with_gradients
from benchmarks.overhead_report import CLIP, GUARD, LOWER, ONE_SYNC, machine, table, write_report
from benchmarks.overhead_waits import waits
from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.diagnostics import Journal, Sink, TensorBoardSink

PERIOD = 100
"""Steps of a round: every one of them holds one snapshot and two windows, as any 100 steps of a long run do."""
SEED = 0


@dataclass(frozen=True)
class Contender:
    """What is timed: ``call`` acts on a step's gradients, on one step in ``stride``; ``kind`` tells what it did."""

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
    falling = [torch.tensor(2.0 * 0.999**i + 0.1) for i in range(2000)]
    losses = itertools.chain(falling, itertools.repeat(falling[-1]))
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
        # Past the doubling gaps and the short windows of the first steps: from here on a round is like the next.
        for _ in range(1, 560 if snapshots else 20):
            step()
        kind()
        yield Contender(GUARD, step, kind=kind), first
        if guard.incidents:  # the sink's own objection costs it its place, no more
            raise AssertionError(f"the benchmark's gradients are healthy: {guard.report()}")
        guard.close()


def _seconds(call: Callable[[], object]) -> float:
    # Time of all the process's threads on a core. On a busy machine the clock on the wall is unfair: it charges the
    # others' turns to whoever takes long enough to be interrupted. Nothing here waits, but for what the system writes
    # to files.
    start = time.process_time()
    call()
    return time.process_time() - start


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
            bar.update()
        waited = {c.name: waits(c.call) for c in contenders}
    ratios = {name: [c / y for c, y in zip(costs, seconds[CLIP], strict=True)] for name, costs in seconds.items()}
    return {
        "tensors": len(parameters),
        "elements": sum(p.numel() for p in parameters),
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "quartiles": {name: _quartiles(values) for name, values in ratios.items()},
        "milliseconds": {name: 1e3 * statistics.median(costs) for name, costs in seconds.items()},
        "first_steps": [f / statistics.median(seconds[CLIP]) for f in first],
        "waits": waited,
    }


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4)[::2] if len(values) > 1 else values * 2


def _round(contenders: Sequence[Contender], order: random.Random) -> dict[str, float]:
    """Time one period, and return seconds a step.

    A contender's cost is the median of its steps, so that a moment in which the machine did something else does not
    count. The guard's snapshots and windows are rare but no accidents: what they cost beyond a plain step is added at
    their true interval.
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


def scale(model: nn.Module, steps: int) -> dict[str, Any]:
    """Return milliseconds of a plain step: snapshots off, steps that log a window left out."""
    parameters, order = with_gradients(model), random.Random(SEED)
    times: dict[str, list[float]] = {}
    with guarded(model, snapshots=False) as (guard, _):
        contenders = [*plain_contenders(parameters), guard]
        for _ in range(steps):
            for c in order.sample(contenders, len(contenders)):
                took = _seconds(c.call)
                if c.kind() == "plain":
                    times.setdefault(c.name, []).append(took)
    return {
        "tensors": len(parameters),
        "elements": sum(p.numel() for p in parameters),
        "milliseconds": {name: 1e3 * statistics.median(taken) for name, taken in times.items()},
    }


IMPORT = """
import sys, time
import lightning.pytorch
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[1]
start = time.process_time()
import lightning_gradguard
print(1e3 * (time.process_time() - start))
"""


def import_times(processes: int) -> dict[str, float]:
    """Return the milliseconds that importing the package adds to importing Lightning, in fresh processes.

    The first process compiles the source, as the first import from a checkout does; the others find bytecode, as an
    installer leaves it. Without a folder of its own for that, it would depend on the environment which of the two is
    measured.
    """
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-c", IMPORT, cache]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(1 + processes)]
    first, *others = (float(run.stdout.split()[-1]) for run in runs)
    return {"import_ms": statistics.median(others), "first_import_ms": first}


def record_size(*, layers: int, steps: int) -> dict[str, int]:
    """Return the bytes that a run writes for TensorBoard and into its journal."""
    with tempfile.TemporaryDirectory() as folder:
        board, journal = diagnostics.long_run(Path(folder), layers, steps)
    return {"layers": layers, "steps": steps, "board_bytes": board, "journal_bytes": journal}


def room(elements: int) -> bool:
    """Tell whether parameters and gradients of so many elements leave a quarter of the memory to others."""
    try:
        told = Path("/proc/meminfo").read_text()
        free = 1024 * int(told.partition("MemAvailable:")[2].split()[0])
    except (OSError, IndexError):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2 * 4 * elements < 0.75 * free


def on_a_gpu(*, quick: bool, rounds: int) -> dict[str, Any]:
    """Return what training steps cost on the GPU, with the card's name."""
    chosen = list(itertools.product(overhead_gpu.MODELS.items(), (False, True)))
    return {
        "card": torch.cuda.get_device_name(),
        "models": {
            name + (", fused" if fused else ""): overhead_gpu.measure(
                build, fused=fused, rounds=rounds, steps=10 if quick else overhead_gpu.STEPS
            )
            for (name, build), fused in chosen
        },
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: to see that it works")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of 100 steps (default 9)")
    parser.add_argument("--largest", type=int, default=1024, help="largest size of the scale plot, in 2**20 elements")
    parser.add_argument(
        "--output", type=Path, default=None, help="folder to write into (default docs, or overhead-quick)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table and write the report."""
    chosen = parse(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    quick = chosen.quick
    models: dict[str, Callable[[], nn.Module]] = {
        "ResNet-18": resnet18,
        "GPT, 17 M": GPT,
        "1,000 tensors": many_tensors,
    }
    counts = [10, 30, 100, 300, 1000, 3000, 10000]
    sizes = [4**i for i in range(10) if 4**i <= chosen.largest and room(4**i * 2**20)]
    rounds, processes, long = chosen.rounds, 15, 10**6
    if quick:
        models = {"GPT, tiny": lambda: GPT(8, 1, 16, 8), "20 tensors": lambda: many_tensors(20)}
        counts, sizes, rounds, processes, long = [10, 30], [1], 1, 1, 10**4
    found: dict[str, Any] = {"machine": machine(), "rounds": rounds, "imports": processes}
    with tqdm(total=len(models) * rounds + len(counts) + len(sizes) + 2, disable=chosen.quiet) as bar:
        found["models"] = {name: measure(build(), rounds, _told(bar, name)) for name, build in models.items()}
        found["tensors"] = [_step(bar, f"{n:,} tensors", scale, many_tensors(n), 30) for n in counts]
        found["elements"] = [_step(bar, f"{n} M elements", scale, many_tensors(64, n * 2**14), 11) for n in sizes]
        found |= _step(bar, "import", import_times, processes)
        found["record"] = _step(bar, f"record of {long:,} steps", partial(record_size, layers=1000, steps=long))
    found["gpu"] = on_a_gpu(quick=quick, rounds=rounds) if torch.cuda.is_available() else None
    found["largest"] = max(point["elements"] for point in found["elements"])
    print(table(found))
    write_report(found, chosen.output or Path("overhead-quick" if quick else "docs"), quick=quick)
    return found


def _told(bar: tqdm[Any], what: str) -> tqdm[Any]:
    bar.set_description(what)
    return bar


def _step(bar: tqdm[Any], what: str, call: Callable[..., Any], *args: Any) -> Any:
    bar.set_description(what)
    result = call(*args)
    bar.update()
    return result


if __name__ == "__main__":
    main()
