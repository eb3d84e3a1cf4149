"""``python -m benchmarks.zoo``: run the zoo, print its tables, and say by the exit code whether all is well."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from benchmarks.zoo import sequences
from benchmarks.zoo.case import Case, cases
from benchmarks.zoo.contenders import CONTENDERS
from benchmarks.zoo.report import regressions, tables, write
from benchmarks.zoo.runner import plan, run, silence

QUICK_CONTENDERS = "none,skip+clip,gradguard"


def quick(chosen: list[Case]) -> list[Case]:
    """Pick one cheap sick case per cause and every third control, none of them held out: about two minutes."""
    picked: dict[str, Case] = {}
    for case in chosen:
        if case.kind == "sick" and not case.held_out and case.max_steps <= 400:
            picked.setdefault(case.cause, case)
    healthy = [c for c in chosen if c.kind == "healthy" and not c.held_out and c.max_steps <= 800]
    return [*picked.values(), *healthy[::3]]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one case per cause, seed 0, three contenders")
    parser.add_argument("--cases", default="*", help="comma-separated patterns of names, causes or kinds")
    parser.add_argument("--contenders", help="comma-separated; also module:factory, which gives a callback")
    parser.add_argument("--contender", action="append", default=[], help="one more contender")
    parser.add_argument("--seeds", help="comma-separated, 0,1,2 unless told")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes")
    parser.add_argument("--held-out", choices=("include", "exclude", "only"), default="include")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results.jsonl"))
    parser.add_argument("--guarded-twins", action="store_true", help="run the contenders on the healthy twins too")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    parser.add_argument(
        "--report",
        type=Path,
        help="also write tables (Markdown) and plots into this folder, those of benchmarks.zoo.sequences and, in a "
        "full run, of benchmarks.ablation included; docs/benchmark for a run of everything",
    )
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if GradGuard loses a case or touches a control"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run what was asked for."""
    options = parse(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # inherited by the workers
    silence()
    chosen = cases(options.cases, options.held_out)
    if options.quick:
        chosen = quick(chosen)
    if options.list:
        for c in chosen:
            held = "held out" if c.held_out else ""
            print(f"{c.name:36} {c.kind:8} {held:9} {c.cause:22} {c.architecture}, {c.optimizer}")
        return 0
    default = QUICK_CONTENDERS if options.quick else ",".join(CONTENDERS)
    names = (options.contenders or default).split(",") + options.contender
    seeds = [int(s) for s in (options.seeds or ("0" if options.quick else "0,1,2")).split(",")]
    rows = run(plan(chosen, names, seeds, options.guarded_twins), options.out, options.jobs)
    print(tables(rows))
    everything = chosen == cases() and set(CONTENDERS) <= set(names)
    folder = options.report or (Path("docs/benchmark") if everything else None)
    if folder:
        write(rows, folder)
        (folder / "sequences.md").write_text(sequences.tables() if everything else sequences.tables(2000, 5))
    if folder and everything:
        from benchmarks import ablation  # it imports this module

        ablation.main(["--jobs", str(options.jobs), "--report", str(folder)])
    broken = regressions(rows) if options.check else []
    print(*broken, sep="\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
