"""Do the runs of a set by a stranger: ``python benchmarks/strangers/harness.py SET [names] --out FILE.jsonl``.

Every run has a process (forked from a clean server that has only imported the libraries) and a temporary folder of its
own. The first two sets have a command of their own, since their authors wrote one.
"""

import argparse
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

from sets import SETS

os.environ["OMP_NUM_THREADS"] = "1"
HERE = Path(__file__).resolve().parent
GUARDED = {"guard", "twinguard", "watch"}


def cases(folder):
    # The third set has helpers of its own; those of the others are the same.
    sys.path[:0] = [str(HERE / folder), str(HERE)]
    import sick

    out = {f.__name__: ("sick", False, f) for f in sick.RUNS}
    with contextlib.suppress(ImportError):
        import healthy

        out.update({f.__name__: ("healthy", f.__name__ in healthy.REGIME, f) for f in healthy.RUNS})
    return out


def one(folder, name, seed, contender, path):
    import torch
    from lightning.pytorch import Trainer

    log = (HERE / folder / "logs" / f"{name}-{seed}-{contender}.txt") if contender in GUARDED else None
    with tempfile.TemporaryDirectory() as tmp:
        os.chdir(tmp)
        fd = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        warnings.simplefilter("default" if log else "ignore")
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(seed)
        kind, regime, build = cases(folder)[name]
        run = build(seed, twin=contender.startswith("twin")) if kind == "sick" else build(seed)
        kwargs = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "default_root_dir": tmp,
            "max_epochs": -1,
            **run.trainer,
        }
        guard = None
        if contender == "clip":
            if run.module.automatic_optimization:
                kwargs["gradient_clip_val"] = 1.0
            else:
                run.module.clip = 1.0
        if contender in GUARDED:
            from lightning_gradguard import GradGuard

            guard = GradGuard(mode="watch") if contender == "watch" else GradGuard()
            kwargs["callbacks"] = [*kwargs.get("callbacks", []), guard]
        torch.manual_seed(seed + 1)
        error, steps, start = None, None, time.time()
        try:
            trainer = Trainer(**kwargs)
            trainer.fit(run.module, run.train, **run.fit)
            steps = trainer.global_step
        except Exception as e:
            error = f"{type(e).__name__}: {e}"[:500]
        seconds = time.time() - start
        h = hashlib.sha256()
        for k, v in run.module.state_dict().items():
            h.update(k.encode() + v.detach().cpu().contiguous().numpy().tobytes())
        try:
            score = float(run.score(run.module))
        except Exception as e:
            score, error = math.nan, f"score: {e}"
        row = {
            "name": name,
            "kind": kind,
            "regime": regime,
            "seed": seed,
            "contender": contender,
            "score": score,
            "trivial": run.trivial,
            "steps": steps,
            "error": error,
            "hash": h.hexdigest()[:16],
            "seconds": round(seconds, 1),
        }
        if guard is not None:
            row["incidents"] = [
                {
                    "step": i.step,
                    "form": str(i.form),
                    "culprit": str(i.culprit),
                    "remedies": [str(r) for r in i.remedies],
                    "trials": [[str(t.cause), str(t.treatment), t.opened, t.closed, str(t.outcome)] for t in i.trials],
                }
                for i in guard.incidents
            ]
            for j in Path(tmp).rglob("gradguard.jsonl"):
                run_dir = HERE / folder / "logs" / f"{name}-{seed}-{contender}"
                run_dir.mkdir(exist_ok=True)
                (run_dir / j.name).write_text(j.read_text())
        with open(path, "a") as f:
            f.write(json.dumps(row) + "\n")
        os.chdir("/")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("set", choices=SETS[2:])
    p.add_argument("names", nargs="*")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    p.add_argument("--contenders", nargs="+", default=["none", "twin", "clip", "guard"])
    p.add_argument("--out", default="out.jsonl")
    p.add_argument("--processes", type=int, default=1)
    a = p.parse_args()
    (HERE / a.set / "logs").mkdir(exist_ok=True)
    out = str(Path(a.out).resolve())
    ctx = multiprocessing.get_context("forkserver")
    ctx.set_forkserver_preload(["torch", "lightning.pytorch", "sklearn.datasets", "torch._dynamo"])
    todo = [
        (n, s, c)
        for n, (kind, _, _) in cases(a.set).items()
        if not a.names or n in a.names or kind in a.names
        for s in a.seeds
        for c in a.contenders
        if kind == "sick" or c in ("none", "guard", "watch")
    ]
    live = []
    for job in todo:
        while len(live) >= a.processes:
            live[0].join(0.05)
            live = [q for q in live if q.is_alive()]
        q = ctx.Process(target=one, args=(a.set, *job, out))
        q.start()
        live.append(q)
    for q in live:
        q.join()


if __name__ == "__main__":
    main()
