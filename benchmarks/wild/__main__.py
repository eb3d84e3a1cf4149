"""``python -m benchmarks.wild``: do the wild runs under every contender and write the report."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from pathlib import Path

from benchmarks.wild.case import Case, cases
from benchmarks.wild.contenders import NAMES
from benchmarks.wild.report import tables
from benchmarks.wild.runner import plan, present, run
from benchmarks.zoo.runner import silence

REPORT = Path("docs/benchmark/wild.md")
SHORT = ("none", "twin", "gradguard")


def short(chosen: list[Case], count: int = 8) -> list[Case]:
    """Pick the same few sick and healthy cases every time, none of them held out."""
    open_to_see = sorted((c for c in chosen if not c.held_out), key=lambda c: hashlib.md5(c.name.encode()).hexdigest())
    return [c for kind in ("sick", "healthy") for c in [c for c in open_to_see if c.kind == kind][:count]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wild", description=__doc__)
    parser.add_argument("--cases", default="*", help="comma-separated patterns of names or kinds")
    parser.add_argument("--held-out", choices=("include", "exclude", "only"), default="include")
    parser.add_argument("--seeds", help="comma-separated, 0,1,2 unless told")
    parser.add_argument("--contenders", help=f"comma-separated, of {','.join(NAMES)}")
    parser.add_argument("--processes", type=int, default=2, help="worker processes")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/wild.jsonl"), help="results; a second call goes on where the first was"
    )
    parser.add_argument(
        "--short", action="store_true", help=f"a handful of cases, seed 0, {', '.join(SHORT)}: under two minutes"
    )
    parser.add_argument("--report", action="store_true", help=f"only write {REPORT} from the results that there are")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for."""
    options = parse(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers
    silence()
    chosen = cases(options.cases, options.held_out)
    if options.short:
        chosen = short(chosen)
    if options.list:
        for c in chosen:
            print(f"{c.name:44} {c.kind:8} {'held out' if c.held_out else '':9} {c.what}")
        return 0
    names = (options.contenders or ",".join(SHORT if options.short else NAMES)).split(",")
    if unknown := set(names) - set(NAMES):
        print(f"no such contender: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    seeds = [int(s) for s in (options.seeds or ("0" if options.short else "0,1,2")).split(",")]
    jobs = plan(chosen, names, seeds)
    rows = present(jobs, options.out)[0] if options.report else run(jobs, options.out, options.processes)
    stale = present(jobs, options.out)[1]
    note = f"{stale} of {len(rows)} rows stem from older code.\n\n" if stale else ""
    everything = chosen == cases() and set(NAMES) <= set(names) and len(seeds) >= 3
    if options.report or everything:
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(
            f"# Runs as strangers write them\n\nMade by `python -m benchmarks.wild`.\n\n{note}{tables(rows)}"
        )
    print(note + tables(rows, detail=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
