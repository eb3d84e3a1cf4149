"""Do the wild runs, each in a worker process, and append what came out to a file of JSON lines."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tqdm import tqdm

from benchmarks.wild import contenders
from benchmarks.wild.case import Case, Task, cases
from benchmarks.zoo.observer import fingerprint_state
from benchmarks.zoo.runner import OutOfTimeError, Row, _begin, incidents_of, read, silence

LIMIT_SECONDS = 60
"""Processor time of one run, so that a busy machine loses none."""
Key = tuple[str, str, int, str]


@dataclass(frozen=True)
class Job:
    """One run to do."""

    case: str
    contender: str
    seed: int

    def key(self) -> Key:
        """Identify the run together with the code it depends on, so that stale results are not taken for new ones."""
        return self.case, self.contender, self.seed, fingerprint_code(self.case, self.contender)


@cache
def by_name() -> dict[str, Case]:
    """Map names to cases."""
    return {c.name: c for c in cases()}


@cache
def fingerprint_code(case: str, contender: str) -> str:
    """Hash the files that a result depends on."""
    here = Path(__file__).parent
    apart = ("sick_", "healthy_", "report", "__main__")
    files = [f for f in sorted(here.glob("*.py")) if not f.name.startswith(apart)]
    files += [here.parent / "zoo" / name for name in ("case.py", "data.py", "models.py")]
    files.append(Path(by_name()[case].source))
    if contender == contenders.GUARD:
        package = find_spec("lightning_gradguard")
        for folder in package.submodule_search_locations or () if package is not None else ():
            files += sorted(Path(folder).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _out_of_time(signum: int, frame: Any) -> None:
    raise OutOfTimeError(f"run took more than {LIMIT_SECONDS} s of processor time")


def seed_all(seed: int) -> None:
    """Seed the global random numbers that a run may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def execute(job: Job) -> Row:
    """Do one run; one that raises is scored as it ended, one that cannot be built or scored as chance."""
    silence()
    case = by_name()[job.case]
    row: Row = {
        "case": case.name, "contender": job.contender, "seed": job.seed, "code": job.key()[3], "kind": case.kind,
        "regime": case.regime, "held_out": case.held_out, "chance": case.chance, "score": case.chance, "state": "",
        "steps": 0, "stopped": False, "error": "", "incidents": [],
    }  # fmt: skip
    signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    start, start_cpu = time.perf_counter(), time.process_time()
    task, trainer = None, None
    try:
        seed_all(job.seed)
        task = case.build(job.seed, contenders.variant(job.contender))
        trainer = make_trainer(case, job.contender)
        # The contender's own construction must not shift the random numbers of the run.
        seed_all(job.seed + 1)
        resume: dict[str, Any] = {"ckpt_path": task.checkpoint, "weights_only": False} if task.checkpoint else {}
        trainer.fit(task.module, task.batches, **resume)
    except (KeyboardInterrupt, SIGTERMException):  # not the run that failed
        raise
    except BaseException as error:  # Lightning turns some failures into SystemExit
        row["error"] = f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    row["seconds"] = round(time.perf_counter() - start, 3)
    row["cpu_seconds"] = round(time.process_time() - start_cpu, 3)
    return row | outcome(case, task, trainer, row["error"])


def make_trainer(case: Case, contender: str) -> Trainer:
    """Make the Trainer of a case under a contender, whose callbacks come last."""
    options: dict[str, Any] = {
        "max_steps": case.steps, "max_epochs": -1, "accelerator": "cpu", "devices": 1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    options |= case.trainer()
    own = options.pop("callbacks", None) or []
    own = list(own) if isinstance(own, (list, tuple)) else [own]
    return Trainer(callbacks=[*own, *contenders.callbacks(contender)], **options)


def outcome(case: Case, task: Task | None, trainer: Trainer | None, error: str) -> Row:
    """Say how a run ended, and what was done to it."""
    row: Row = {}
    if trainer is not None:
        row["steps"] = trainer.global_step
        row["stopped"] = not error and trainer.global_step < case.steps
        row["incidents"] = [describe(i) for i in list(incidents_of(trainer))[:20]]
    if task is not None:
        row["state"] = fingerprint_state(task.module, [])
        try:
            score = float(task.evaluate(task.module))
        except Exception as failure:
            score, row["error"] = math.nan, error or f"in evaluate: {type(failure).__name__}: {failure}"[:300]
        row["score"] = score if math.isfinite(score) else case.chance
    return row


def describe(incident: Any) -> Row:
    """Reduce an incident to what the report needs."""
    first = next(iter(getattr(incident, "actions", ())), None)
    return {
        "step": incident.step,
        "form": str(getattr(incident, "form", getattr(incident, "kind", ""))),
        "culprit": incident.culprit,
        "remedies": list(incident.remedies),
        "alarms": incident.alarms,
        "closed": incident.closed,
        "helped": incident.helped,
        "decision": str(getattr(getattr(first, "decision", None), "reason", "")),
        "verdict": str(getattr(getattr(first, "verdict", None), "reason", "")),
    }


def plan(chosen: Iterable[Case], names: Iterable[str], seeds: Iterable[int]) -> list[Job]:
    """List the runs: every contender that applies to a case, under every seed."""
    chosen, names = list(chosen), list(names)
    return [Job(c.name, n, seed) for seed in seeds for c in chosen for n in names if contenders.applies(n, c)]


def run(jobs: list[Job], path: Path, processes: int) -> list[Row]:
    """Do the runs that the file does not hold yet; give the rows of all of them."""
    done = {_key(r) for r in read(path)}
    missing = [job for job in jobs if job.key() not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="run") as bar:
        for row in _execute_all(missing, processes):
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            bar.set_postfix_str(f"{row['case']} / {row['contender']}")
            bar.update()
    return present(jobs, path)[0]


def present(jobs: list[Job], path: Path) -> tuple[list[Row], int]:
    """Give the rows of these runs that the file holds, and how many of them stem from other code than today's."""
    wanted = {job.key()[:3]: job.key() for job in jobs}
    rows = [r for r in read(path) if _key(r)[:3] in wanted]
    return rows, sum(_key(r) != wanted[_key(r)[:3]] for r in rows)


def _key(row: Row) -> Key:
    return row["case"], row["contender"], row["seed"], row["code"]


def _execute_all(jobs: list[Job], processes: int) -> Iterator[Row]:
    if processes == 1:
        yield from map(execute, jobs)
        return
    # Spawned, not forked: a forked torch can hang on locks held by the parent's threads.
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
    ) as pool:
        for future in as_completed([pool.submit(execute, job) for job in jobs]):
            yield future.result()
