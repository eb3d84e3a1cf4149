"""The first half hour on a GPU: from what tells most to what tells least, in under nine minutes on one H100.

``python -m benchmarks.first_gpu --out first_gpu.json`` prints a table as it goes, and writes what it has after each part, so that
nothing is lost if the machine goes back early. Without a GPU, or with ``--short``, the same parts run in short form on a device that
is simulated (``tests/device``): their times then mean nothing, but all else does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import platform
import random
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import overhead_gpu
from benchmarks.overhead_waits import as_a_device
from lightning_gradguard import Guard, SnapshotStore
from lightning_gradguard.snapshots.snapshot import forget, restore
from tests.device import simulated
from tests.device.training import OPTIMIZERS, batches, network

BUDGET = 9 * 60.0
"""Seconds after which no further part begins."""
AT = 60
"""Step of the bad batch: long after the first snapshots, in the middle of a calm run."""
BAR = 1.01
"""Times the unguarded step that a guarded one may take."""


class Place:
    """Where things are measured: a real GPU, or the simulated one.

    Args:
        real: Whether there is a GPU.
    """

    def __init__(self, *, real: bool) -> None:
        self.real = real
        self.device = "cuda:0" if real else "simulated cuda:0"

    def loop(self, optimizer: Any, module: nn.Module | None = None, **options: Any) -> Any:
        """Return a training loop there."""
        if self.real:
            return RealLoop(module or network(), optimizer, **options)
        from tests.device.training import Loop

        return Loop(module or network(), optimizer, **options)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Let the device be there inside the block."""
        with contextlib.nullcontext() if self.real else simulated.simulated():
            yield

    def wait(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.real:
            torch.cuda.synchronize()


class RealLoop:
    """The loop of ``tests.device.training``, on a real GPU."""

    def __init__(self, module: nn.Module, optimizer: Any, *, guarded: bool = True, **options: Any) -> None:
        self.module = module.cuda()
        self.optimizer = optimizer(self.module.parameters())
        self.guard, self.guarded, self.left = Guard(self.module, **options), guarded, 0
        if guarded:
            self.track = self.guard.attach(self.optimizer)

    def step(self, inputs: Tensor, targets: Tensor, by: float = 1.0, *, strict: bool = False) -> None:
        inputs, targets = inputs.cuda(), targets.cuda()
        self.optimizer.zero_grad()
        loss = nn.functional.mse_loss(self.module(inputs), targets) * by
        loss.backward()
        if self.guarded:
            torch.cuda.set_sync_debug_mode("error" if strict else "default")
            try:
                self.guard.before_step(self.optimizer, loss=loss.detach(), batch=(inputs, targets))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            self.left += self.track.gate.waiting
        self.optimizer.step()

    @property
    def weights(self) -> list[Tensor]:
        return [p.detach().cpu() for p in self.module.parameters()]

    @property
    def incidents(self) -> list[tuple[int, str, tuple[str, ...]]]:
        return [(one.step, one.form, one.remedies) for one in self.guard.incidents]


# -- the parts, from what tells most to what tells least ---------------------------------------------------------------


def machine(place: Place) -> dict[str, Any]:
    """Return what the numbers were measured on."""
    card = torch.cuda.get_device_name() if place.real else "simulated"
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = {"card": card, "torch": torch.__version__, "python": platform.python_version(), "host GiB": host / 2**30}
    if place.real:
        found |= {"driver": torch.version.cuda, "card GiB": torch.cuda.get_device_properties(0).total_memory / 2**30}
    return found


def calm(place: Place) -> dict[str, Any]:
    """Tell, by optimizer, whether calm steps wait for nothing and end bit-identical to unguarded ones."""
    found: dict[str, Any] = {}
    for kind, optimizer in OPTIMIZERS.items():
        guarded, plain, waits = place.loop(optimizer), place.loop(optimizer, guarded=False), 0
        for step, (inputs, targets) in enumerate(batches(100)):
            strict = step >= AT and not guarded.track.snapshots.due(step)
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


def held(place: Place) -> dict[str, Any]:
    """Tell, by optimizer, what became of a NaN in a calm run."""
    found = {}
    for kind, optimizer in OPTIMIZERS.items():
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
    for kind, optimizer in OPTIMIZERS.items():
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
    """Return how long a snapshot takes to be begun, and to have arrived."""
    module = overhead_gpu.Language() if place.real else network()
    loop = place.loop(partial(torch.optim.AdamW, lr=1e-6, fused=True), module, guarded=False)
    for p in loop.module.parameters():
        p.grad = torch.zeros_like(p)
    loop.optimizer.step()
    parameters, store, taken, arrived = dict(loop.module.named_parameters()), SnapshotStore(), [], []
    for step in range(5):
        place.wait()
        start = time.perf_counter()
        store.take(step, parameters, dict(loop.module.named_buffers()), loop.optimizer)
        taken.append(time.perf_counter() - start)
        kept = store.latest  # waits for it
        arrived.append(time.perf_counter() - start)
    assert kept is not None
    size = sum(
        t.nbytes
        for t in torch.utils._pytree.tree_leaves((kept.parameters, kept.optimizer_state))
        if hasattr(t, "nbytes")
    )
    # The first two make the memory that the others are written over.
    return {
        "bytes": size,
        "taken ms": 1e3 * statistics.median(taken[2:]),
        "arrived ms": 1e3 * statistics.median(arrived[2:]),
    }


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


def precisions(place: Place) -> dict[str, Any]:
    """Tell, by precision of Lightning's, whether a NaN in mid-run is survived."""
    from lightning_gradguard import GradGuard
    from tests.builders import Net, loader, mlp, regression, spoil, trainer

    found: dict[str, Any] = {}
    for precision in ("32-true", "bf16-mixed", "16-mixed", "bf16-true"):
        if precision == "16-mixed" and not place.real:
            continue  # Lightning makes bf16 of it on a CPU.
        guard, module = GradGuard(journal=False), Net(mlp(norm=True), partial(torch.optim.AdamW, lr=1e-3))
        made = spoil(regression(AT + 20, size=32), AT)
        if precision == "bf16-true":
            made = [(x.bfloat16(), y.bfloat16()) for x, y in made]
        with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"accelerator": "gpu"} if place.real else {}
            trainer(root, precision=precision, callbacks=[guard], **options).fit(module, loader(made))
        finite = all(bool(p.isfinite().all()) for p in module.parameters())
        found[precision] = {"finite": finite, "incidents": [one.step for one in guard.incidents]}
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

    from lightning_gradguard import GradGuard
    from tests.builders import Net, loader, mlp, regression, spoil, trainer

    guard, module = GradGuard(journal=False), Net(mlp(), partial(torch.optim.AdamW, lr=1e-3))
    strategy = DDPStrategy(process_group_backend="nccl" if place.real else "gloo")
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"accelerator": "gpu"} if place.real else {}
        fit = trainer(root, strategy=strategy, callbacks=[guard], use_distributed_sampler=False, **options)
        fit.fit(module, loader(spoil(regression(AT + 10, size=32), AT)))
    torch.distributed.destroy_process_group()
    finite = all(bool(p.isfinite().all()) for p in module.parameters())
    return {"finite": finite, "incidents": [one.step for one in guard.incidents]}


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "machine": machine,
    "calm": calm,
    "held": held,
    "back": back,
    "overhead": overhead,
    "snapshot": snapshot,
    "precisions": precisions,
    "one rank": one_rank,
    "compiled": compiled,
}
ON_THE_DEVICE = frozenset({"calm", "held", "back", "snapshot"})
"""Parts for which the device has to be there; the others bring their own."""


def verdicts(found: dict[str, Any]) -> list[str]:
    """Return in words what is not as it should be; nothing where all is."""
    wrong = [f"{part}: {result['error']}" for part, result in found.items() if "error" in result]
    for kind, one in found.get("calm", {}).items():
        if isinstance(one, dict) and (one["waits"] or not one["identical"] or one["incidents"]):
            wrong.append(f"calm, {kind}: {one}")
    for part in ("held", "precisions"):
        for kind, one in found.get(part, {}).items():
            if isinstance(one, dict) and not (one["finite"] and one["incidents"]):
                wrong.append(f"{part}, {kind}: {one}")
    wrong += [f"back, {kind}: it does not go on" for kind, well in found.get("back", {}).items() if well is False]
    for name, one in found.get("overhead", {}).items() if found.get("machine", {}).get("card") != "simulated" else ():
        if isinstance(one, dict) and (ratio := one["ratio"][overhead_gpu.GUARDED]) > BAR:
            wrong.append(f"overhead, {name}: a guarded step takes {ratio:.3f} times an unguarded one")
    return wrong


def run(
    place: Place, out: Path | None = None, *, budget: float = BUDGET, told: Callable[[str], object] = print
) -> dict[str, Any]:
    """Go through the parts until the time is up; return, print and write what was found."""
    begun, found = time.monotonic(), {}
    for name, part in PARTS.items():
        if time.monotonic() - begun > budget:
            found[name] = {"left out": "the time was up"}
            continue
        start = time.monotonic()
        random.seed(0)
        try:
            with place.at_work() if name in ON_THE_DEVICE else contextlib.nullcontext():
                found[name] = part(place)
        except Exception as error:  # the next part tells something else
            lines = io.StringIO()
            traceback.print_exc(file=lines)
            found[name] = {"error": repr(error), "traceback": lines.getvalue()[-4000:]}
        told(f"{name} ({time.monotonic() - start:.1f} s)")
        told("\n".join(f"    {key}: {value}" for key, value in found[name].items()))
        if out is not None:
            out.write_text(json.dumps(found, indent=1, default=str))
    wrong = verdicts(found)
    told("\n".join(["", *(wrong or ["all as it should be"])]))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    parser.add_argument("--short", action="store_true", help="on the simulated device, though there is a GPU")
    arguments = parser.parse_args(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    place = Place(real=torch.cuda.is_available() and not arguments.short)
    return 1 if verdicts(run(place, arguments.out)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
