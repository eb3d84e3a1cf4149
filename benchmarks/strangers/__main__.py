"""``python -m benchmarks.strangers``: tell how strangers' sets ended at first sight, or any results file of theirs."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.strangers.sets import SETS

HERE = Path(__file__).parent
GOOD = 0.95
Rows = dict[tuple[str, str, int], dict[str, Any]]


def read(files: Iterable[Path]) -> Rows:
    """Return the rows of results files by name, contender and seed; later ones replace earlier ones."""
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return {(row["name"], row["contender"], row["seed"]): row for row in rows}


def rescue(rows: Rows, name: str, contender: str, seed: int) -> float:
    """Return a run's share of what its twin gains over a trivial predictor, within -1 and 1.1.

    A score that is not finite counts as the trivial one.
    """
    row, twin = rows[name, contender, seed], rows[name, "twin", seed]
    score = row["score"] if row["score"] is not None and math.isfinite(row["score"]) else row["trivial"]
    return max(-1.0, min(1.1, (score - row["trivial"]) / (twin["score"] - row["trivial"])))


def table(rows: Rows) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    sick = [key for key, row in rows.items() if row["kind"] == "sick" and key[1] == "guard"]
    yield "| sick runs under | mean rescue | runs at 0.95 or more |"
    yield "| --- | --- | --- |"
    for contender in ("none", "clip", "guard"):
        found = [rescue(rows, name, contender, seed) for name, _, seed in sick]
        yield f"| {contender} | {statistics.mean(found):.2f} | {sum(v >= GOOD for v in found)} of {len(found)} |"
    healthy = [(rows[key], rows[key[0], "none", key[2]]) for key in rows if key[1] == "guard"]
    for regime, told in ((False, "Healthy runs"), (True, "Healthy runs that declare a change of regime")):
        pairs = [(a, b) for a, b in healthy if a["kind"] == "healthy" and bool(a["regime"]) is regime]
        same = sum(a.get("weights", a.get("hash")) == b.get("weights", b.get("hash")) for a, b in pairs)
        worst = max((b["score"] - a["score"] for a, b in pairs), default=0.0)
        yield f"\n{told}: {same} of {len(pairs)} bit-identical to unguarded; the largest loss of score is {worst:.4f}."


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strangers", description=__doc__)
    for name in SETS:
        parser.add_argument(
            f"--{name}", type=Path, help=f"newer results of the {name} set, whose rows replace those at first sight"
        )
    options = vars(parser.parse_args())
    for name, newer in options.items():
        rows = read(file for file in (HERE / name / "results.jsonl", newer) if file is not None)
        print(f"## The {name} set\n\n" + "\n".join(table(rows)) + "\n")


if __name__ == "__main__":
    main()
