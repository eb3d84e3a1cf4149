"""python benchmarks/strangers/first/run.py [names] --seeds 0 1 --contenders none clip guard --out FILE.jsonl
--processes 1"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
import traceback
import warnings

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning.pytorch as pl  # noqa: E402
import torch  # noqa: E402

from first import healthy, sick  # noqa: E402, F401
from first.common import RUNS  # noqa: E402


def digest(module):
    h = hashlib.sha256()
    for k, v in sorted(module.state_dict().items()):
        h.update(k.encode() + v.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


def one(name, seed, contender, logs):
    """contender: none, clip, guard, twin, or twin-guard."""
    spec = RUNS[name]
    torch.set_num_threads(1)
    pl.seed_everything(seed, verbose=False)
    record = {"name": name, "kind": spec["kind"], "regime": spec["regime"], "seed": seed, "contender": contender}
    b = spec["build"](seed, twin=contender.startswith("twin"))
    kwargs = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
        "deterministic": True,
        **b.kwargs,
    }
    if "max_steps" in kwargs:
        kwargs["max_epochs"] = -1
    guard = None
    if contender == "clip":
        if b.module.automatic_optimization:
            kwargs["gradient_clip_val"] = 1.0
        else:
            b.module.clip = 1.0
    if contender.endswith("guard"):
        from lightning_gradguard import GradGuard

        guard = GradGuard()
        kwargs["callbacks"] = [guard]
    pl.seed_everything(seed + 1, verbose=False)
    trainer = pl.Trainer(**kwargs)
    error, start = None, time.perf_counter()
    try:
        trainer.fit(b.module, b.loaders, **b.fit)
    except Exception as e:  # a stopped run is scored as it stands
        traceback.print_exc()
        error = f"{type(e).__name__}: {str(e)[:200]}"
    record["seconds"] = round(time.perf_counter() - start, 2)
    score = b.score(b.module)
    record.update(
        score=score if math.isfinite(score) else None,
        trivial=b.trivial,
        steps=trainer.global_step,
        error=error,
        weights=digest(b.module),
    )
    if guard is not None:
        record["incidents"] = [
            {
                "step": i.step,
                "form": str(i.form),
                "culprit": str(i.culprit),
                "remedies": [str(r) for r in i.remedies],
                "trials": [[str(t.cause), str(t.treatment), t.opened, t.closed, str(t.outcome)] for t in i.trials],
            }
            for i in guard.incidents
        ]
        for k, p in enumerate(pathlib.Path(".").rglob("gradguard.jsonl")):
            shutil.copy(p, logs / f"{name}-{seed}-{contender}.journal{k or ''}.jsonl")
    return record


def child(job, logs, out):
    name, seed, contender = job
    tmp = tempfile.mkdtemp(prefix="run-")
    os.chdir(tmp)
    fd = os.open(logs / f"{name}-{seed}-{contender}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1), os.dup2(fd, 2)
    warnings.filterwarnings("ignore", ".*(num_workers|does not have many workers|GPU available|LeafSpec|isinstance).*")
    try:
        record = one(name, seed, contender, logs)
    except Exception as e:
        traceback.print_exc()
        record = {"name": name, "seed": seed, "contender": contender, "error": "BUILD " + repr(e)[:300], "score": None}
    sys.stdout.flush()
    with open(out, "a") as f:
        f.write(json.dumps(record) + "\n")
    shutil.rmtree(tmp, ignore_errors=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("names", nargs="*")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    p.add_argument("--contenders", nargs="+", default=["none", "clip", "guard"])
    p.add_argument("--out", default=str(HERE / "results.jsonl"))
    p.add_argument("--processes", type=int, default=1)
    a = p.parse_args()
    out = pathlib.Path(a.out).resolve()
    logs = HERE / "logs"
    logs.mkdir(exist_ok=True)
    names = [n for n in RUNS if not a.names or any(n.startswith(q) for q in a.names)]
    jobs = [
        (n, s, c)
        for n in names
        for s in a.seeds
        for c in a.contenders
        if not (c == "twin" and RUNS[n]["kind"] == "healthy")
    ]
    running = set()
    for job in jobs:
        if len(running) >= a.processes:
            running.discard(os.wait()[0])
        pid = os.fork()
        if pid == 0:
            child(job, logs, out)
            os._exit(0)
        running.add(pid)
    while running:
        running.discard(os.wait()[0])


if __name__ == "__main__":
    main()
