"""Run cases under contenders, each in a worker process, and append what came out to a file of JSON lines."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from benchmarks.zoo import contenders as contenders_module
from benchmarks.zoo.case import Case, Task, cases
from benchmarks.zoo.observer import UpdateObserver, fingerprint_state

TWIN = "twin"
"""Pseudo-contender: the healthy twin of a sick case, unguarded. It gives the reference score.

``twin:NAME`` is the twin under contender NAME: one more healthy run that should be left alone.
"""

LIMIT_SECONDS = 180
"""Processor time, so that a busy machine loses no run."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run to do."""

    case: str
    contender: str
    seed: int

    @property
    def sick(self) -> bool:
        """Whether the case is to be built sick."""
        return not self.contender.startswith(TWIN)

    @property
    def guard(self) -> str:
        """Name of the contender proper."""
        return "none" if self.contender == TWIN else self.contender.removeprefix(TWIN + ":")

    def key(self) -> tuple[str, str, int, str]:
        """Identify the run together with the code it depends on, so that stale results are not taken for new ones."""
        return self.case, self.contender, self.seed, fingerprint_code(self.case, self.guard)


@cache
def by_name() -> dict[str, Case]:
    """Map names to cases."""
    return {c.name: c for c in cases()}


@cache
def fingerprint_code(case: str, contender: str) -> str:
    """Hash the files that a result depends on."""
    here = Path(__file__).parent
    files = [here / "case.py", here / "data.py", here / "models.py", here / "runner.py", here / "observer.py"]
    files.append(Path(by_name()[case].source))
    if contender != "none":
        files.append(here / "contenders.py")
    if contender not in contenders_module.CONTENDERS or contender == "gradguard":
        package = find_spec("lightning_gradguard")
        for folder in package.submodule_search_locations or () if package is not None else ():
            files += sorted(Path(folder).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def silence() -> None:
    """Make a worker quiet and single-threaded; single-threaded sums are what bit-identity needs."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def _begin(parent: int) -> None:
    """Prepare a worker that does not outlive the process that asked for it, even if that one is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    silence()


class OutOfTimeError(RuntimeError):
    """A run took more processor time than :data:`LIMIT_SECONDS`."""


def _out_of_time(signum: int, frame: Any) -> None:
    raise OutOfTimeError(f"run took more than {LIMIT_SECONDS} s of processor time")


def execute(job: Job) -> Row:
    """Do one run. What it raises is caught and counts as lost."""
    silence()
    case = by_name()[job.case]
    observer = UpdateObserver()
    row: Row = {
        "case": case.name,
        "contender": job.contender,
        "seed": job.seed,
        "code": job.key()[3],
        "kind": case.kind,
        "cause": case.cause,
        "form": case.form,
        "architecture": case.architecture,
        "optimizer": case.optimizer,
        "held_out": case.held_out,
        "chance": case.chance,
        "expected_culprit": sorted(case.culprit),
        "score": 0.0,
        "error": "",
    }
    task = case.build(job.seed, job.sick)
    signal.signal(signal.SIGPROF, _out_of_time)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    start, start_cpu = time.perf_counter(), time.process_time()
    trainer = None
    try:
        trainer = make_trainer(case, task, job.guard, observer)
        # The contender's own construction must not shift the random numbers of the run.
        torch.manual_seed(job.seed + 1)
        trainer.fit(task.module, task.batches)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Lightning turns some failures into SystemExit
        row["error"] = f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    row["onset"] = onset(case, task)
    row["seconds"] = round(time.perf_counter() - start, 3)
    row["cpu_seconds"] = round(time.process_time() - start_cpu, 3)
    row |= outcome(case, task, trainer, observer)
    return row


def onset(case: Case, task: Task) -> int | None:
    """Find the step, as the Trainer counts them, at which a sick run falls ill; None where it is so by its nature, or
    no one can say."""
    events = getattr(task.module, "events", None) or {}
    corrupt = getattr(task.batches.dataset, "corrupt", None) or {}
    first = min([*events, *corrupt], default=None)
    if first is None:
        return None
    return int(first) // int(case.trainer().get("accumulate_grad_batches", 1)) * optimizers_per_step(task.module)


def make_trainer(case: Case, task: Task, contender: str, observer: Callback) -> Trainer:
    """Make the Trainer that a contender asks for; the observer comes last."""
    options = contenders_module.find(contender).setup(case, task.module)
    callbacks = [*options.pop("callbacks", []), observer]
    return Trainer(
        max_steps=case.max_steps * optimizers_per_step(task.module),
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **case.trainer(),
        **options,
    )


def optimizers_per_step(module: LightningModule) -> int:
    """Count what ``global_step`` counts under manual optimization: each optimizer's step by itself."""
    return 1 if module.automatic_optimization else 2


def outcome(case: Case, task: Task, trainer: Trainer | None, observer: UpdateObserver) -> Row:
    """Say how a run ended, and what was done to it."""
    score = task.evaluate(task.module)
    incidents = list(incidents_of(trainer)) if trainer is not None else []
    blamed = [i.culprit for i in incidents if i.culprit is not None]
    return {
        "score": score if math.isfinite(score) else 0.0,
        "steps": trainer.global_step if trainer is not None else 0,
        "state": fingerprint_state(task.module, trainer.optimizers if trainer is not None else []),
        "nonfinite_updates": observer.nonfinite,
        "large_updates": observer.large,
        "worst_update": min(observer.worst, 1e300),
        "first_bad_update": observer.first_bad,
        "incidents": [describe(i) for i in incidents[:20]],
        "interventions": sum(1 for i in incidents if i.remedies),
        "alarms": sum(i.alarms for i in incidents),
        "culprit": blamed[0] if blamed else None,
        "culprit_right": same_layer(blamed[0], case.culprit) if blamed and case.culprit else None,
    }


def incidents_of(trainer: Trainer) -> Iterator[Any]:
    """Find the incidents that a guard among the callbacks has recorded."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for holder in (callback, getattr(callback, "guard", None), *getattr(callback, "guards", ())):
            found = getattr(holder, "incidents", None)
            if found is not None:
                yield from found
                break


def describe(incident: Any) -> Row:
    """Reduce an incident to what the report needs."""
    return {
        "step": incident.step,
        "form": incident.form,
        "culprit": incident.culprit,
        "suspects": [b.layer for b in incident.blame[:3]],
        "remedies": list(incident.remedies),
        "alarms": incident.alarms,
        "helped": incident.helped,
    }


def same_layer(blamed: str, culprits: Iterable[str]) -> bool:
    """Compare module names, whichever of them carries the prefix of the LightningModule's attribute."""
    return any(blamed == c or blamed.endswith("." + c) or c.endswith("." + blamed) for c in culprits)


def plan(chosen: Iterable[Case], names: Iterable[str], seeds: Iterable[int], guarded_twins: bool = False) -> list[Job]:
    """List the runs: every contender that applies, and for each sick case its twin and the unguarded run."""
    names = list(names)
    jobs: dict[Job, None] = {}
    for seed in seeds:
        for case in chosen:
            for name in (TWIN, "none") if case.kind == "sick" else ("none",):
                jobs[Job(case.name, name, seed)] = None
            for name in names:
                if contenders_module.find(name).applies(case):
                    jobs[Job(case.name, name, seed)] = None
                    if guarded_twins and case.kind == "sick" and name not in ("none", TWIN):
                        jobs[Job(case.name, f"{TWIN}:{name}", seed)] = None
    return list(jobs)


def read(path: Path) -> list[Row]:
    """Read results; of several rows for one run the last counts, and a line cut off by a crash is passed over."""
    rows: dict[tuple[str, str, int], Row] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[row["case"], row["contender"], row["seed"]] = row
    return list(rows.values())


def run(jobs: list[Job], path: Path, workers: int) -> list[Row]:
    """Do the runs that the file does not hold yet; give the rows of all of them."""
    done = {(r["case"], r["contender"], r["seed"], r["code"]) for r in read(path)}
    missing = [job for job in jobs if job.key() not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file, tqdm(total=len(jobs), initial=len(jobs) - len(missing), unit="run") as bar:
        for row in _execute_all(missing, workers):
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            bar.set_postfix_str(f"{row['case']} / {row['contender']}")
            bar.update()
    wanted = {job.key()[:3] for job in jobs}
    return [r for r in read(path) if (r["case"], r["contender"], r["seed"]) in wanted]


def _execute_all(jobs: list[Job], workers: int) -> Iterator[Row]:
    if workers == 1:
        yield from map(execute, jobs)
        return
    # Spawned, not forked: a forked torch can hang on locks held by the parent's threads.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
    ) as pool:
        for future in as_completed([pool.submit(execute, job) for job in jobs]):
            yield future.result()
