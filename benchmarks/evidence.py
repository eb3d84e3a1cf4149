"""What evidence costs a calm step: it reads the random states before each forward pass.

``python -m benchmarks.evidence`` prints microseconds where the processor's caches are warm and inside a training loop,
and the training loop's time with ``evidence=Evidence()`` over that without, of turns that follow each other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import cycle
from statistics import median, quantiles

import torch
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.evidence import Evidence
from lightning_gradguard.evidence.randomness import read

MOST_MICROSECONDS = 30.0
"""What reading may cost a step on a processor that nobody else uses."""


def model(width: int = 512) -> nn.Module:
    """Return a network of a million parameters or so, whose step leaves nothing else in the caches."""
    return nn.Sequential(*(part for _ in range(4) for part in (nn.Linear(width, width), nn.ReLU())))


def loop(net: nn.Module, before: Callable[[torch.Tensor], None], guard: Guard | None = None) -> Callable[[], None]:
    """Return one training step, which calls ``before`` ahead of its forward pass."""
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    batch = torch.randn(128, 512)

    def step() -> None:
        before(batch)
        optimizer.zero_grad()
        loss = net(batch).square().mean()
        loss.backward()
        if guard is not None:
            guard.before_step(optimizer, loss=loss.detach(), batch=batch)
        optimizer.step()
        if guard is not None:
            guard.after_step()

    return step


def reading(steps: int) -> tuple[float, float]:
    """Return the median microseconds of reading, with warm caches and inside a training loop.

    What the clock itself takes there is measured in turns with it, and taken off.
    """
    taken: tuple[list[float], list[float]] = [], []
    turn = cycle((0, 1))

    def timed(_: object = None) -> None:
        which = next(turn)
        begin = time.perf_counter()
        if which:
            read()
        taken[which].append(time.perf_counter() - begin)

    def microseconds(once: Callable[[], None]) -> float:
        for kind in taken:
            kind.clear()
        for _ in range(2 * steps):
            once()
        clock, both = map(median, taken)
        return 1e6 * (both - clock)

    return microseconds(timed), microseconds(loop(model(), timed))


def ratios(rounds: int, steps: int = 10) -> list[float]:
    """Return the time of a guarded loop with evidence over that of one without, in turns."""

    def guarded(evidence: Evidence | None) -> Callable[[], None]:
        net = model()
        guard = Guard(net, evidence=evidence)
        return loop(net, lambda batch: guard.before_forward(batch, 0, 0), guard)

    pair = [guarded(Evidence()), guarded(None)]
    found = []
    for turn in range(rounds + 3):
        taken = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            begin = time.perf_counter()
            for _ in range(steps):
                pair[which]()
            taken[which] = time.perf_counter() - begin
        found.append(taken[0] / taken[1])
    return found[3:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="turns of the comparison, of ten steps each")
    rounds = parser.parse_args().rounds
    warm, inside = reading(10 * rounds)
    low, middle, high = quantiles(ratios(rounds), n=4)
    print(f"random states: {warm:.1f} microseconds with warm caches, {inside:.1f} inside a training loop")
    print(f"a training step with evidence over one without: {middle:.3f} (quartiles {low:.3f} and {high:.3f})")


if __name__ == "__main__":
    main()
