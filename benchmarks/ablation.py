"""What each technique does alone: ``python -m benchmarks.ablation`` runs the zoo's sick cases under one at a time.

*Alone* means alone: the guard detects and blames as always, but may use that one remedy only. The ladder answers as
always, too, and what is switched off is left out; so where it calls for nothing that is there, the step passes as it
came, a NaN too. The second half of the table adds one thing to each technique: a step that the ladder wants
skipped is skipped.

A result depends on the package and on the zoo, whose fingerprint is kept with it, and on the remedies of its set-up,
whose fingerprint is part of its name: one whose remedies are changed here is done again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from lightning.pytorch import Callback

from benchmarks.zoo.__main__ import quick
from benchmarks.zoo.case import Case, cases
from benchmarks.zoo.report import RESCUED, Row, markdown, rescues
from benchmarks.zoo.runner import plan, run, silence
from lightning_gradguard import GradGuard
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.remedies import (
    Augment,
    Clip,
    LearningRateBackoff,
    Regularize,
    Reinitialize,
    Remedy,
    Skip,
    SwapActivation,
)

SIX: dict[str, Callable[[], Remedy]] = {
    "clipping": Clip,
    "initialisation": Reinitialize,
    "regularisation": Regularize,
    "augmentation": Augment,
    "learning_rate": LearningRateBackoff,
    "activation": SwapActivation,
}
OPTIONAL = {name: SIX[name] for name in ("regularisation", "augmentation", "activation")}
MORE: dict[str, Callable[[], Remedy]] = {**SIX, "sign_step": partial(Clip, algorithm="sign")}


def only(*makers: Callable[[], Remedy]) -> list[Remedy]:
    """Make these remedies."""
    return [make() for make in makers]


def with_default(*makers: Callable[[], Remedy]) -> list[Remedy]:
    """Make these remedies besides those of the default ladder."""
    return [*default_remedies(), *only(*makers)]


SETUPS: dict[str, Callable[[], list[Remedy]]] = {
    **{name: partial(only, make) for name, make in MORE.items()},
    "all_six": partial(only, *SIX.values()),
    "skipping": partial(only, Skip),
    **{f"{name}_and_skipping": partial(only, make, Skip) for name, make in MORE.items()},
    "all_six_and_skipping": partial(only, *SIX.values(), Skip),
    "default": default_remedies,
    **{f"default_and_{name}": partial(with_default, make) for name, make in OPTIONAL.items()},
    "default_and_optional": partial(with_default, *OPTIONAL.values()),
}
"""The remedies of each run, by the name under which the zoo finds it: ``benchmarks.ablation:NAME``."""


def __getattr__(name: str) -> Callable[[], Callback]:
    setup, _, version = name.partition("@")
    if setup in SETUPS and version in ("", fingerprint(setup)):
        return lambda: GradGuard(remedies=SETUPS[setup](), journal=False)
    raise AttributeError(name)


def fingerprint(setup: str) -> str:
    """Hash what a set-up's remedies are and how they are configured."""
    made = [(type(remedy).__qualname__, sorted(vars(remedy).items())) for remedy in SETUPS[setup]()]
    # Not where an object lies in memory.
    told = re.sub(r" at 0x[0-9a-f]+", "", repr(made))
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def label(setup: str) -> str:
    """Write a set-up's name for a person."""
    return setup.replace("_and_skipping", " + skipping").replace("_and_", " + ").replace("_", " ")


def named(rows: Sequence[Row]) -> list[Row]:
    """Give the contenders the names that the report uses."""
    short = (row["contender"].removeprefix("benchmarks.ablation:").partition("@")[0] for row in rows)
    return [{**row, "contender": label(name)} for row, name in zip(rows, short, strict=True)]


def grid(rows: list[Row]) -> tuple[list[str], list[str], dict[tuple[str, str], list[float]]]:
    """Return set-ups, causes, and the rescues of each pair."""
    cause = {row["case"]: row["cause"] for row in rows}
    found: dict[tuple[str, str], list[float]] = {}
    for (setup, case), value in rescues(rows).items():
        found.setdefault((setup, cause[case]), []).append(value)
    there = {setup for setup, _ in found}
    order = [name for name in ("none", *map(label, SETUPS)) if name in there]
    return order, list(dict.fromkeys(cause.values())), found


def table(rows: list[Row]) -> str:
    """Lay out the rescued cases by set-up and cause, with the mean rescue and how often anything was done at all."""
    setups, causes, found = grid(rows)
    lines = []
    for setup in setups:
        counts = [found.get((setup, cause), []) for cause in causes]
        every = [value for values in counts for value in values]
        acted = [row["interventions"] > 0 for row in rows if row["contender"] == setup]
        cells = [f"{sum(v >= RESCUED for v in values)}/{len(values)}" for values in counts]
        total = f"**{sum(v >= RESCUED for v in every)}/{len(every)}**"
        lines.append([setup, *cells, total, f"{fmean(every):.2f}", f"{sum(acted)}/{len(acted)}"])
    return markdown(["remedies", *causes, "rescued", "mean rescue", "acted in"], lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draw set-ups against causes: the colour is the mean rescue (1: the twin's score), the number how many."""
    setups, causes, found = grid(rows)
    for setup in setups:
        found[setup, "all"] = [value for cause in causes for value in found.get((setup, cause), [])]
    causes = ["all", *causes]
    values = [[fmean(found.get((s, c)) or [float("nan")]) for c in causes] for s in setups]
    inside = [[found.get((setup, cause), []) for cause in causes] for setup in setups]
    draw(setups, causes, values, [[f"{sum(v >= RESCUED for v in of)}/{len(of)}" for of in row] for row in inside], path)


def draw(
    setups: Sequence[str], causes: Sequence[str], values: list[list[float]], told: list[list[str]], path: Path
) -> None:
    """Draw a table of values between 0 and 1, with a text in each cell."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(0.55 * len(causes) + 3.5, 0.32 * len(setups) + 2), layout="constrained")
    image = axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            pale = 0.2 < value < 0.8
            axes.text(x, y, told[y][x], ha="center", va="center", fontsize=7, color="black" if pale else "white")
    axes.axvline(0.5, color="white", linewidth=4)
    for first in ("clipping", "skipping", "default"):  # alone, with skipped steps, with the whole ladder
        if first in setups:
            axes.axhline(setups.index(first) - 0.5, color="white", linewidth=4)
    axes.set_xticks(range(len(causes)), causes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(setups)), setups)
    axes.tick_params(length=0)
    figure.colorbar(image, label="mean rescue (1 = the healthy twin's score)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write(rows: list[Row], folder: Path) -> None:
    """Write ``ablation.md`` and ``ablation.png`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ablation.md").write_text(table(rows))
    plot(rows, folder / "ablation.png")


def sick(shorter: bool) -> list[Case]:
    """List the sick cases, or one cheap one a cause."""
    return [c for c in (quick(cases("sick")) if shorter else cases("sick")) if c.kind == "sick"]


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one case a cause")
    parser.add_argument("--setups", default=",".join(SETUPS), help="comma-separated, all unless told")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated, 0,1,2 unless told")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/ablation.jsonl"))
    parser.add_argument("--report", type=Path, default=Path("docs/benchmark"), help="folder of table and plot")
    options = parser.parse_args(arguments)
    setups = options.setups.split(",")
    unknown = [name for name in setups if name not in SETUPS]
    if unknown:
        parser.error(f"no such set-up: {', '.join(unknown)}; there are {', '.join(SETUPS)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers
    silence()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    names = [f"{__spec__.name}:{name}@{fingerprint(name)}" for name in setups]
    rows = named(run(plan(sick(options.quick), names, seeds), options.out, options.jobs))
    write(rows, options.report)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
