"""Single steps: whether they wait, are bit-identical, are skipped; what they cost, and what a snapshot does."""

from __future__ import annotations

import math
import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import overhead_gpu
from benchmarks.first_gpu.place import AT, Place
from benchmarks.overhead_waits import as_a_device
from lightning_gradguard import SnapshotStore
from lightning_gradguard.snapshots.snapshot import forget, restore
from lightning_gradguard.statistics.collectives import Collectives
from tests.device.training import batches, network


def calm(place: Place) -> dict[str, Any]:
    """Tell, by optimizer, whether calm steps wait for nothing and end bit-identical to unguarded ones."""
    found: dict[str, Any] = {}
    for kind, optimizer in place.optimizers.items():
        guarded, plain, waits = place.loop(optimizer), place.loop(optimizer, guarded=False), 0
        for step, (inputs, targets) in enumerate(batches(100)):
            strict = step >= AT and not _waited_for(guarded, step)
            try:
                guarded.step(inputs, targets, strict=strict)
            except RuntimeError as error:
                if not strict:
                    raise
                waits += 1
                found.setdefault("first wait", f"{kind}: {error}"[:300])
                guarded.optimizer.step()
            plain.step(inputs, targets)
        same = all(map(torch.equal, guarded.weights, plain.weights))
        found[kind] = {"left": guarded.left, "waits": waits, "identical": same, "incidents": len(guarded.incidents)}
    return found


def _waited_for(loop: Any, step: int) -> bool:
    """Return whether the host waits for a step by design: at a snapshot, and where the layers are measured."""
    look = loop.track.treatment.signal.next_look
    return loop.track.snapshots.due(step) or step == look or 2 * (step - 1) == look


def skipped(place: Place) -> dict[str, Any]:
    """Tell, by optimizer, what became of a NaN in a calm run."""
    found = {}
    for kind, optimizer in place.optimizers.items():
        loop = place.loop(optimizer)
        for step, (inputs, targets) in enumerate(batches(AT + 15)):
            if step == AT:
                inputs[0, 0] = math.nan
            loop.step(inputs, targets)
        finite = all(bool(w.isfinite().all()) for w in loop.weights)
        found[kind] = {"finite": finite, "incidents": [list(map(str, one)) for one in loop.incidents]}
    return found


def back(place: Place) -> dict[str, Any]:
    """Tell, by optimizer, whether it goes on after its state was removed and restored."""
    found = {}
    for kind, optimizer in place.optimizers.items():
        loop = place.loop(optimizer, guarded=False)
        made = list(batches(4))
        loop.step(*made[0])
        parameters, store = dict(loop.module.named_parameters()), SnapshotStore()
        store.take(1, parameters, {}, loop.optimizer)
        forget(loop.optimizer, next(iter(parameters.values())))
        assert store.latest is not None
        restore(store.latest, parameters, {}, loop.optimizer)
        loop.step(*made[1])
        found[kind] = all(bool(w.isfinite().all()) for w in loop.weights)
    return found


def snapshot(place: Place) -> dict[str, Any]:
    """Return how long a snapshot takes to be begun and to have arrived, by itself and beside other work."""
    module = overhead_gpu.Language() if place.real else network()
    loop = place.loop(partial(torch.optim.AdamW, lr=1e-6, fused=True), module, guarded=False)
    for p in loop.module.parameters():
        p.grad = torch.zeros_like(p)
    loop.optimizer.step()
    parameters, buffers, store = (
        dict(loop.module.named_parameters()),
        dict(loop.module.named_buffers()),
        SnapshotStore(),
    )
    store.plan(parameters, buffers, loop.optimizer, Collectives())
    found: dict[str, Any] = {}
    for way in ("by itself", "beside"):
        taken, arrived = [], []
        for step in range(6):
            place.wait()
            start = time.perf_counter()
            if way == "beside":
                store.begin(step, parameters, loop.optimizer)
            store.take(step, parameters, buffers, loop.optimizer)
            taken.append(time.perf_counter() - start)
            kept = store.latest  # waits for it
            arrived.append(time.perf_counter() - start)
        # The first ones make the memory that the others are written over.
        found |= {f"taken {way}, ms": 1e3 * statistics.median(taken[3:])}
        found |= {f"arrived {way}, ms": 1e3 * statistics.median(arrived[3:])}
    assert kept is not None
    leaves = torch.utils._pytree.tree_leaves((kept.parameters, kept.optimizer_state))
    return {"bytes": sum(t.nbytes for t in leaves if isinstance(t, Tensor)), "keeping": store.keeping.name, **found}


def overhead(place: Place) -> dict[str, Any]:
    """Return what the guard adds to a real step, beside clipping: medians of interleaved rounds."""
    if place.real:
        kinds = [
            (n + (", fused" if f else ""), b, f)
            for n, b in reversed(overhead_gpu.MODELS.items())
            for f in (True, False)
        ]
        return {n: overhead_gpu.measure(b, device="cuda", fused=f, rounds=3, steps=60) for n, b, f in kinds}

    def tiny(device: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        tokens = torch.randint(32, (4, 9))
        return overhead_gpu.Language(16, 1, 2, 32, 8), (tokens[:, :-1], tokens[:, 1:].flatten())

    with as_a_device():
        return {"tiny": overhead_gpu.measure(tiny, device="cpu", fused=True, rounds=2, steps=15)}
