"""``python -m benchmarks.field``: try the guard on runs that were not in the zoo, and print what came out."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import torch
from tqdm import tqdm

import lightning_gradguard
from benchmarks.field.healthy import healthy_runs
from benchmarks.field.report import tables
from benchmarks.field.sick import sick_runs
from benchmarks.field.training import NO_TROUBLE, Row, Run, train

Job = tuple[str, Run, str]
"""Kind, run, and what to do with it: ``none``, ``gradguard`` or ``twin``."""


def held_out(name: str) -> bool:
    """A third of the runs, chosen by their names, is looked at only once."""
    return hashlib.sha256(name.encode()).digest()[0] % 3 == 0


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """List the runs asked for."""
    for kind, runs in (("healthy", healthy_runs()), ("sick", sick_runs())):
        chosen = [r for r in runs if any(fnmatch(r.name, p) or p == kind for p in options.runs.split(";"))]
        if options.held_out != "include":
            chosen = [r for r in chosen if held_out(r.name) == (options.held_out == "only")]
        for run in chosen[:: 8 if options.quick else 1]:
            for what in ("none", "gradguard", *(("twin",) if kind == "sick" else ())):
                yield kind, run, what


@cache
def code(kind: str, guarded: bool, seed: int = 0) -> str:
    """Hash what a result depends on, files as they are when the command starts: stale ones are done again."""
    here = Path(__file__).parent
    files = [here / f"{name}.py" for name in ("networks", "recipes", "training", kind)]
    if guarded:
        files += sorted(Path(lightning_gradguard.__file__).parent.rglob("*.py"))
    text = b"".join(f.read_bytes() for f in files)
    return hashlib.sha256(text + (str(seed).encode() if seed else b"")).hexdigest()[:12]


def execute(job: Job, seed: int = 0) -> Row:
    """Do one run."""
    kind, run, what = job
    if what == "twin":
        run = Run(run.name, run.recipe, run.optimizer, run.schedule, NO_TROUBLE, run.steps, run.resume, run.options)
    row = train(run, guarded=what == "gradguard", seed=seed)
    return {
        "kind": kind, "name": run.name, "what": what, "held_out": held_out(run.name),
        "code": code(kind, what == "gradguard", seed),
        "recipe": run.recipe.name, "chance": run.recipe.chance, "expected": list(job[1].trouble.culprit), **row,
    }  # fmt: skip


def read(path: Path) -> dict[tuple[str, str], Row]:
    """Read results; the last row of a run counts."""
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {(row["name"], row["what"]): row for row in rows}


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.field", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every eighth run")
    parser.add_argument("--runs", default="*", help="patterns of names, or healthy or sick, separated by semicolons")
    parser.add_argument("--seed", type=int, default=0, help="of the weights; another one needs another --out")
    parser.add_argument("--held-out", choices=("include", "exclude", "only"), default="include")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/field.jsonl"))
    parser.add_argument("--report", type=Path, help="also write the tables (Markdown) to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # bit-identity needs it
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    wanted = list(jobs(options))
    done = read(options.out)
    seed = options.seed
    stale = [j for j in wanted if done.get((j[1].name, j[2]), {}).get("code") != code(j[0], j[2] == "gradguard", seed)]
    with options.out.open("a") as file, tqdm(total=len(stale), unit="run", disable=not sys.stderr.isatty()) as bar:
        for job in stale:
            bar.set_postfix_str(f"{job[1].name} / {job[2]}")
            file.write(json.dumps(execute(job, seed), allow_nan=False) + "\n")
            file.flush()
            bar.update()
    rows = read(options.out)
    text = tables([rows[j[1].name, j[2]] for j in wanted])
    print(text)
    if options.report:
        options.report.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
