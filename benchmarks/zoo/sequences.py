"""Rules on synthetic sequences of gradient norms: false alarms when all is well, and delays when it is not.

A rule sees one norm after the other and says at each whether it would act. ``python -m benchmarks.zoo.sequences``
prints the tables. The sequences are synthetic: they show what a formula does, not what a training run looks like.
"""

from __future__ import annotations

import argparse
import bisect
import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import fmean, median, pstdev, stdev

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from benchmarks.zoo.report import markdown
from lightning_gradguard import Guard
from lightning_gradguard.diagnostics.sink import Sink

Rule = Callable[[float], bool]
Norms = npt.NDArray[np.float64]
ONSET = 300
"""Step at which drifts and spikes begin: every rule has warmed up by then."""


def zclip(threshold: float = 2.5, alpha: float = 0.97, warmup: int = 25) -> Rule:
    """Make ZClip's rule (2025): z above 2.5 against exponential averages, which learn what was left after clipping."""
    first: list[float] = []
    mean, variance = 0.0, -1.0

    def judge(norm: float) -> bool:
        nonlocal mean, variance
        if variance < 0:
            first.append(norm)
            if len(first) >= warmup:
                mean, variance = fmean(first), pstdev(first) ** 2
            return False
        std = math.sqrt(variance)
        z = (norm - mean) / (std + 1e-6)
        alarm = z > threshold
        kept = mean + threshold * std / (z / threshold) if alarm else norm
        mean = alpha * mean + (1 - alpha) * kept
        variance = alpha * variance + (1 - alpha) * (kept - mean) ** 2
        return alarm

    return judge


def olmo(sigmas: float = 6.0, window: int = 128) -> Rule:
    """Make OLMo's rule: above mean + 6 σ of the last 128, rejected values included."""
    past: deque[float] = deque(maxlen=window)

    def judge(norm: float) -> bool:
        ready = len(past) + 1 >= window // 2
        alarm = ready and not norm - fmean(past) <= sigmas * stdev(past)
        past.append(norm)
        return alarm

    return judge


def spike_detection(factor: float = 2.0, window: int = 10) -> Rule:
    """Make Lightning's rule: worse than the last value, and off the running mean of ten by twice that mean."""
    past: deque[float] = deque(maxlen=window)

    def judge(norm: float) -> bool:
        if past and norm > past[-1] and abs(norm - fmean(past)) >= factor * fmean(past):
            return True
        past.append(norm)
        return False

    return judge


def autoclip(percentile: float = 0.1) -> Rule:
    """Make AutoClip's rule (2020): above the 10th percentile of all norms. It clips nine steps of ten by design."""
    seen: list[float] = []

    def judge(norm: float) -> bool:
        bisect.insort(seen, norm)
        return norm > seen[int(percentile * (len(seen) - 1))]

    return judge


def megatron(factor: float = 10.0, first: int = 100) -> Rule:
    """Make Megatron-LM's rule: ten times the maximum of the first hundred."""
    seen, peak = 0, 0.0

    def judge(norm: float) -> bool:
        nonlocal seen, peak
        if seen < first:
            seen, peak = seen + 1, max(peak, norm)
            return False
        return norm > factor * peak

    return judge


def log_mad(limit: float = 6.0, window: int = 128, warmup: int = 25) -> Rule:
    """Make a robust z-score of the log norm: median and MAD of the last 128 accepted values."""
    past: deque[float] = deque(maxlen=window)

    def judge(norm: float) -> bool:
        value = math.log(norm)
        if len(past) >= warmup:
            ordered = np.fromiter(past, float)
            centre = float(np.median(ordered))
            spread = 1.4826 * float(np.median(np.abs(ordered - centre)))
            if value - centre > limit * max(spread, 1e-3):
                return True
        past.append(value)
        return False

    return judge


def cusum(slack: float = 0.5, limit: float = 8.0, warmup: int = 200) -> Rule:
    """Make a one-sided CUSUM (Page, 1954) of the log norm against its first 200 steps."""
    first: list[float] = []
    centre, spread, total = 0.0, 0.0, 0.0

    def judge(norm: float) -> bool:
        nonlocal centre, spread, total
        if len(first) < warmup:
            first.append(math.log(norm))
            centre = median(first)
            spread = max(1.4826 * median(abs(v - centre) for v in first), 1e-3) if len(first) == warmup else 0.0
            return False
        total = max(0.0, total + (math.log(norm) - centre) / spread - slack)
        if total <= limit:
            return False
        total = 0.0
        return True

    return judge


class Ear(Sink):
    """Hear the guard's notices: what it reports without acting."""

    def __init__(self) -> None:
        self.heard = False

    def notice(self, step: int, message: str) -> None:
        """Remember that there was one."""
        self.heard = True


def gradguard(*, reports: bool) -> Rule:
    """Make the whole guard: one parameter, of rate 0, whose gradient is the norm.

    There is no loss here, which in training is the second witness, and nothing that a remedy could mend: on a
    drift the budget runs out, and the guard goes on with clipping.

    Args:
        reports: Whether a notice counts (at most one in 500 steps), or only an alarm, upon which the guard acts.
    """
    module = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    ear = Ear()
    guard = Guard(module, on_exhausted="continue", sinks=[ear])

    def judge(norm: float) -> bool:
        module.weight.grad = torch.full((1, 1), norm)
        ear.heard = False
        report = guard.before_step(optimizer)
        optimizer.step()
        return report.verdict is not None or (reports and ear.heard)

    return judge


def rules() -> dict[str, Callable[[], Rule]]:
    """Map each rule's name to a factory; a rule keeps its own state."""
    return {
        "zclip": zclip,
        "olmo-skip": olmo,
        "spike-detection": spike_detection,
        "autoclip": autoclip,
        "megatron": megatron,
        "log-MAD 6": log_mad,
        "CUSUM": cusum,
        "GradGuard reports": partial(gradguard, reports=True),
        "GradGuard acts": partial(gradguard, reports=False),
    }


def healthy_sequences(steps: int, seed: int = 0) -> dict[str, Norms]:
    """Draw norms of healthy runs: log-normal of four spreads, heavy-tailed, and log-normal with memory."""
    rng = np.random.default_rng(seed)
    found = {f"log-normal σ = {s}": np.exp(s * rng.normal(size=steps)) for s in (0.1, 0.3, 0.5, 1.0)}
    found["log-t₄, scale 0.2"] = np.exp(0.2 * rng.standard_t(4, steps))
    found["log-t₃, scale 0.3"] = np.exp(0.3 * rng.standard_t(3, steps))
    noise, memory = rng.normal(size=steps), np.zeros(steps)
    for t in range(1, steps):
        memory[t] = 0.95 * memory[t - 1] + noise[t]
    found["log-AR(1) 0.95, σ = 0.3"] = np.exp(0.3 * memory * math.sqrt(1 - 0.95**2))
    return found


def drifting(length: int, seed: int, spread: float = 0.3, factor: float = 1000.0) -> Norms:
    """Draw log-normal norms that grow by ``factor`` over ``length`` steps from :data:`ONSET` on."""
    rng = np.random.default_rng(seed)
    growth = np.concatenate([np.zeros(ONSET), np.linspace(0, math.log(factor), length)])
    return np.exp(growth + spread * rng.normal(size=len(growth)))


def delay(rule: Rule, norms: Iterable[float]) -> int | None:
    """Count the steps from the onset to the first alarm after it, or None if there is none."""
    found = None
    for t, norm in enumerate(norms):
        if rule(float(norm)) and t >= ONSET and found is None:
            found = t - ONSET
    return found


def false_alarms(steps: int) -> str:
    """Tabulate the share of healthy steps with an alarm."""
    sequences, lines = healthy_sequences(steps), []
    for name, make in tqdm(rules().items(), "false alarms"):
        rates = []
        for norms in sequences.values():
            rule = make()
            rates.append(sum(rule(float(v)) for v in norms) / len(norms))
        lines.append([name, *(f"{rate:.1e}" if rate else "0" for rate in rates)])
    return markdown(["rule", *sequences], lines)


def detection(trials: int) -> str:
    """Tabulate drifts found and their median delay, and the share of ten-fold spikes caught at once."""
    lengths, lines = (100, 300, 1000), []
    for name, make in tqdm(rules().items(), "detection"):
        cells = []
        for length in lengths:
            delays = [delay(make(), drifting(length, seed)) for seed in range(trials)]
            found = [d for d in delays if d is not None]
            cells.append(f"{100 * len(found) / trials:.0f} %, {median(found):.0f} steps" if found else "none")
        spikes = [delay(make(), np.append(drifting(1, seed, factor=1.0), 10.0)) is not None for seed in range(trials)]
        lines.append([name, *cells, f"{100 * sum(spikes) / trials:.0f} %"])
    return markdown(["rule", *(f"×1000 over {n} steps" for n in lengths), "×10 spikes caught"], lines)


def tables(steps: int = 60_000, trials: int = 50) -> str:
    """Give both tables as one Markdown text."""
    return "\n".join(
        (
            f"### False alarms per step ({steps:,} healthy steps each)\n",
            false_alarms(steps),
            f"### Drifts found and their median delay; ten-fold spikes caught ({trials} of each)\n",
            detection(trials),
        )
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo.sequences", description=__doc__)
    parser.add_argument("--steps", type=int, default=60_000, help="steps of each healthy sequence")
    parser.add_argument("--trials", type=int, default=50, help="drifts and spikes of each kind")
    parser.add_argument("--out", type=Path, help="write the tables into this file instead")
    options = parser.parse_args()
    text = tables(options.steps, options.trials)
    if options.out:
        options.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
