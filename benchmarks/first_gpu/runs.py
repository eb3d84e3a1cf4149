"""Whole runs: the example in each precision, compiled ones, strategies of one rank, and the tests that need a GPU."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.first_gpu.place import AT, Place
from lightning_gradguard import Guard
from tests.device.training import batches, network

ROOT = Path(__file__).parents[2]


def tests(place: Place) -> dict[str, Any]:
    """Run the tests of the late path and of snapshots that need a GPU, in a process of their own."""
    if not place.real:
        return {"left out": "they are skipped without a GPU, and all others are in the test suite"}
    files = ["tests/test_deferred_step.py", "tests/snapshots/test_store.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-k", "cuda or gpu", "-m", "slow or not slow", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    last = done.stdout.strip().splitlines()[-1:]
    return {"said": " ".join(last)} | ({"error": done.stdout[-2000:]} if done.returncode else {})


def example(place: Place) -> dict[str, Any]:
    """Tell, by precision of Lightning's, what became of the three runs of the example; in short form of the first steps of one."""
    from examples import inception_explosion as inception

    found: dict[str, Any] = {}
    for precision in ("32-true", "bf16-mixed", "16-mixed", "bf16-true"):
        if precision == "16-mixed" and not place.real:
            continue  # Lightning makes bf16 of it on a CPU.
        with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            short = [] if place.real else ["--max-steps", "4", "--batch-size", "64"]
            device = ["--accelerator", "gpu" if place.real else "cpu", "--log-dir", root]
            arguments = inception.parse(["--precision", precision, *device, *short])
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                results = [inception.train(run, arguments) for run in (inception.RUNS if place.real else ["guarded"])]
        found[precision] = {one.run: f"{one.accuracy:.3f}, {one.incidents} incidents, {one.blamed}" for one in results}
        if place.real and (problem := inception.shortfall(results)):
            found[precision]["problem"] = problem
        elif results[-1].incidents == 0:
            found[precision]["problem"] = "the guarded run saw nothing"
    return found


def compiled(place: Place) -> dict[str, Any]:
    """Tell whether a compiled model with CUDA graphs trains under the guard, with and without accumulation."""
    if not place.real:
        return {"left out": "there are no CUDA graphs to be simulated"}
    found = {}
    for accumulate in (1, 2):
        module = network().cuda()
        run = torch.compile(module, mode="reduce-overhead")
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=True)
        guard = Guard(module)
        for step, (inputs, targets) in enumerate(batches(AT * accumulate + 20)):
            torch.compiler.cudagraph_mark_step_begin()
            loss = nn.functional.mse_loss(run(inputs.cuda()), targets.cuda()) / accumulate
            loss.backward()
            if (step + 1) % accumulate == 0:
                guard.before_step(optimizer, loss=loss.detach().clone())
                optimizer.step()
                optimizer.zero_grad()
        finite = all(bool(p.isfinite().all()) for p in module.parameters())
        found[f"accumulating {accumulate}"] = {"finite": finite, "incidents": len(guard.incidents)}
    return found


def one_rank(place: Place) -> dict[str, Any]:
    """Tell whether DDP of one rank trains under the guard, with NCCL where there is a GPU."""
    from lightning.pytorch.strategies import DDPStrategy

    from tests.builders import Net, mlp

    strategy = DDPStrategy(process_group_backend="nccl" if place.real else "gloo")
    return _alone(place, Net(mlp(), partial(torch.optim.AdamW, lr=1e-3)), strategy)


def one_sharded_rank(place: Place) -> dict[str, Any]:
    """Tell the same of FSDP2, whose calm steps are judged late as well."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    from tests.builders import mlp
    from tests.strategies.fsdp_scenarios import Sharded

    backend = "nccl" if place.real else "gloo"
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, process_group_backend=backend)
    return _alone(place, Sharded(mlp(), partial(torch.optim.AdamW, lr=1e-3)), strategy)


def _alone(place: Place, module: Any, strategy: Any) -> dict[str, Any]:
    from lightning_gradguard import GradGuard
    from tests.builders import loader, regression, spoil, trainer

    guard = GradGuard(journal=False)
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"accelerator": "gpu"} if place.real else {}
        fit = trainer(root, strategy=strategy, callbacks=[guard], use_distributed_sampler=False, **options)
        fit.fit(module, loader(spoil(regression(AT + 10, size=32), AT)))
    torch.distributed.destroy_process_group()
    finite = all(bool(p.isfinite().all()) for p in module.parameters())
    return {"finite": finite, "incidents": [one.step for one in guard.incidents]}
