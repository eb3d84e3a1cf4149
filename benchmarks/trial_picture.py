"""Two runs whose treatments are tried, as a picture: one is kept at once, the other's first treatment is taken back.

``python -m benchmarks.trial_picture`` writes ``docs/images/trial.png`` and prints each trial; half a minute.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from benchmarks.zoo.data import digits
from lightning_gradguard import Guard
from lightning_gradguard.records import TrialRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "trial.png"
BATCH = 64
INK, SOFT, LINE, SKIPPED = "#212529", "#868e96", "#1864ab", "#d9480f"
SHADES = {"kept": ("#d3f9d8", "#2b8a3e"), "taken back": ("#ffe3e3", "#c92a2a")}
WORDS = {
    ("rollback", "backoff"): "back, and a lower rate",
    ("rollback", "initialize", "backoff"): "drawn anew, and a lower rate",
    ("reinitialize",): "one layer repaired",
    ("rollback",): "back",
}


@dataclass(frozen=True)
class Setting:
    """A run: its title, network, rate, seed and length."""

    title: str
    net: Callable[[], nn.Module]
    rate: float
    seed: int
    steps: int


@dataclass
class Run:
    """What is drawn of a run: its losses, the rates of its updates, and what was done."""

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    back: list[int] = field(default_factory=list)
    trials: list[TrialRecord] = field(default_factory=list)
    accuracy: float = math.nan


def mlp(depth: int, width: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """Return a classifier of the digits, as PyTorch initialises it."""
    sizes = [64, *[width] * depth]
    hidden = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


SETTINGS = (
    Setting("Three ReLU layers, SGD at a rate of 10 instead of 0.1", lambda: mlp(3, 128, nn.ReLU), 10.0, 0, 250),
    Setting("Ten tanh layers, SGD at a rate of 3", lambda: mlp(10, 64, nn.Tanh), 3.0, 2, 220),
)


def train(setting: Setting, *, guarded: bool) -> Run:
    """Train by SGD on the digits, and note what the guard does."""
    torch.manual_seed(setting.seed)
    data, model, run = digits(), setting.net(), Run()
    optimizer = torch.optim.SGD(model.parameters(), setting.rate)
    guard = Guard(model, mode="guard" if guarded else "watch")
    generator = torch.Generator().manual_seed(setting.seed)
    for step in range(setting.steps):
        chosen = torch.randint(len(data.x), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(data.x[chosen]), data.y[chosen])
        loss.backward()
        report = guard.before_step(optimizer, loss=loss, batch=data.x[chosen])
        run.losses.append(loss.item())
        run.rates.append(math.nan if report.skipped else float(optimizer.param_groups[0]["lr"]))
        if report.skipped:
            run.skipped.append(step)
        if any(o.applied and o.remedy == "rollback" for o in report.outcomes):
            run.back.append(step)
        optimizer.step()
    run.trials = [trial for incident in guard.incidents for trial in incident.trials]
    with torch.no_grad():
        run.accuracy = float((model(data.x_test).argmax(1) == data.y_test).float().mean())
    guard.close()
    return run


def draw(settings: Sequence[Setting], runs: Sequence[tuple[Run, Run]], path: Path) -> None:
    """Draw each run's loss, and below it the rate of its updates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style = {"font.size": 10, "axes.edgecolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT, "text.color": INK}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            2 * len(runs), 1, figsize=(9, 4.6 * len(runs)), height_ratios=[3, 1.3] * len(runs), layout="constrained"
        )
        for i, (setting, (guarded, alone)) in enumerate(zip(settings, runs, strict=True)):
            above, below = axes[2 * i], axes[2 * i + 1]
            for axis in (above, below):
                axis.set(yscale="log", xlim=(-2, setting.steps * 1.15), xticks=range(0, setting.steps + 1, 50))
                axis.minorticks_off()
                axis.spines[["top", "right"]].set_visible(False)
                for trial in guarded.trials:
                    shade, _ = SHADES.get(trial.outcome, ("#f1f3f5", SOFT))
                    axis.axvspan(trial.opened, trial.closed, color=shade, lw=0)
            _losses(above, setting, guarded, alone)
            _rates(below, setting, guarded)
            above.tick_params(labelbottom=False)
            below.set_xlabel("step", color=SOFT)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=180)
        plt.close(figure)


def _losses(axis: Axes, setting: Setting, run: Run, alone: Run) -> None:
    axis.set_title(setting.title, loc="left", fontsize=12, fontweight="bold", color=INK)
    bottom, peak = min(run.losses) / 3.0, max(run.losses)
    # What is lost without a guard may go to inf; the labels have the uppermost fifth for themselves.
    highest = max(loss for loss in alone.losses if loss < 30.0 * peak)
    top = highest * (highest / bottom) ** 0.3
    axis.set_ylim(bottom, top)
    steps = range(setting.steps)
    axis.plot(steps, alone.losses, color="#adb5bd", lw=1.1, zorder=2)
    axis.plot(steps, run.losses, color=LINE, lw=1.6, zorder=3)
    _beside(axis, setting, run.losses[-1], "guarded", LINE)
    if alone.losses[-1] < top:
        _beside(axis, setting, sorted(alone.losses[-15:])[7], "without guard", SOFT)
    else:
        gone = next(step for step in steps if not alone.losses[step] < top)
        axis.annotate(
            "without guard", (gone, highest), (14, 0), textcoords="offset points", color=SOFT, va="center", zorder=4
        )
    axis.set_ylabel("loss", color=SOFT)
    upper = axis.get_xaxis_transform()
    for row, trial in enumerate(run.trials):
        _, ink = SHADES.get(trial.outcome, ("", SOFT))
        words = WORDS.get(trial.treatment, " and ".join(trial.treatment))
        axis.text(trial.opened + 1, 0.97 - 0.08 * row, f"trial: {words}", color=ink, va="top", transform=upper)
        inside = trial.closed - trial.opened > 0.15 * setting.steps
        axis.annotate(
            trial.outcome,
            (trial.closed, 0.03),
            (-4 if inside else 4, 0),
            xycoords=upper,
            textcoords="offset points",
            color=ink,
            fontweight="bold",
            ha="right" if inside else "left",
        )
    only = [step for step in run.skipped if step not in run.back]
    for marked, fill in ((only, "white"), (run.back, SKIPPED)):
        heights = [run.losses[step] for step in marked]
        axis.scatter(marked, heights, s=30, facecolor=fill, edgecolor=SKIPPED, linewidth=1.5, zorder=5)
    if only:
        place = (only[0], run.losses[only[0]])
        # Beside the axis there is no room above for half of a word.
        beside = only[0] < 0.1 * setting.steps
        where, side = ((12, -16), "left") if beside else ((0, 8), "center")
        axis.annotate("skipped", place, where, textcoords="offset points", color=SKIPPED, ha=side)
    if run.back:
        place = (run.back[-1], run.losses[run.back[-1]])
        axis.annotate("gone back", place, (6, 6), textcoords="offset points", color=SKIPPED)


def _beside(axis: Axes, setting: Setting, height: float, text: str, colour: str) -> None:
    axis.annotate(text, (setting.steps, height), (5, 0), textcoords="offset points", color=colour, va="center")


def _rates(axis: Axes, setting: Setting, run: Run) -> None:
    axis.plot([0, setting.steps], [setting.rate] * 2, color=SOFT, lw=1, ls=(0, (4, 3)))
    _beside(axis, setting, setting.rate, "asked for", SOFT)
    axis.plot(range(setting.steps), run.rates, color=LINE, lw=1.8)
    _beside(axis, setting, run.rates[-1], "in use", LINE)
    axis.set_ylim(min(rate for rate in run.rates if math.isfinite(rate)) / 2, setting.rate * 2.5)
    axis.set_ylabel("rate", color=SOFT)


def main(arguments: list[str] | None = None) -> int:
    """Train, draw and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trial_picture", description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE, help="where the picture goes")
    options = parser.parse_args(arguments)
    runs = [(train(setting, guarded=True), train(setting, guarded=False)) for setting in SETTINGS]
    for setting, (guarded, alone) in zip(SETTINGS, runs, strict=True):
        print(f"{setting.title}: accuracy {guarded.accuracy:.3f} guarded, {alone.accuracy:.3f} without a guard")
        for trial in guarded.trials:
            print(f"  steps {trial.opened} to {trial.closed}: {' + '.join(trial.treatment)}: {trial.outcome}")
    draw(SETTINGS, runs, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
