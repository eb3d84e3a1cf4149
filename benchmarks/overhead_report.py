"""Write what ``benchmarks.overhead`` measured: a page, its plots and its data."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.overhead_gpu import table as gpu_table

CLIP, LOWER, ONE_SYNC, GUARD = (
    "clip_grad_norm_",
    "torch._foreach_norm alone",
    "foreach norm + one transfer",
    "GradGuard",
)
BAR, IMPORT_BAR, RECORD_BAR = 0.6, 50.0, 20e6


def machine() -> str:
    """Name the machine by what matters for these numbers."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = models[0] if models else platform.processor() or "unknown CPU"
    cores = len(models) or 1
    software = f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    return f'{cores}-core {platform.machine()} virtual machine, CPU model "{cpu}"; {software}'


def counted(results: dict[str, Any]) -> str:
    """Name the model whose waits are shown: the second has tensors enough to tell one wait a tensor from a few."""
    return list(results["models"])[1]


def table(results: dict[str, Any]) -> str:
    """Return the ratios to clipping as a Markdown table, the guard and its parts last."""
    models = results["models"]
    names = list(next(iter(models.values()))["ratio"])
    rows = [n for n in names if not n.startswith(GUARD)] + [n for n in names if n.startswith(GUARD)]
    name = counted(results)
    waited = models[name]["waits"]
    lines = ["| | " + " | ".join(models) + f" | waits for a GPU a step ({name}) |", "|---" * (len(models) + 2) + "|"]
    for name in rows:
        cells = [f"{m['ratio'][name]:.3f}" if ":" in name else f"{m['ratio'][name]:.2f}" for m in models.values()]
        shown = f"**{name}**" if name == GUARD else f"`{name}`" if name == CLIP else name
        cells.append(f"{waited[name]:,}" if name in waited else "")
        lines.append(f"| {shown} | " + " | ".join(f"**{c}**" if name == GUARD else c for c in cells) + " |")
    lines.append(
        "| `clip_grad_norm_`, ms | " + " | ".join(f"{m['milliseconds'][CLIP]:.1f}" for m in models.values()) + " | |"
    )
    return "\n".join(lines)


def judgement(results: dict[str, Any]) -> str:
    """Say of each bar whether it was met, how close to the lower bound that is, and why it was missed where it was."""
    lines = []
    for name, model in results["models"].items():
        ratio, (low, high), lower = model["ratio"][GUARD], model["quartiles"][GUARD], model["ratio"][LOWER]
        met = "met" if ratio <= BAR else "**missed**"
        lines.append(
            f"- {name}: {ratio:.2f} (quartiles of the rounds {low:.2f} to {high:.2f}), bar {BAR}: {met}. One pass over "
            f"the gradients takes {lower:.2f}, so {(ratio - lower):.2f} is ours: "
            f"snapshots {model['ratio'][GUARD + ': snapshots']:.3f}, "
            f"windows {model['ratio'][GUARD + ': windows']:.3f}, reading `.grad`, judging and bookkeeping the rest."
        )
    took = results["import_ms"]
    lines.append(f"- import: {took:.0f} ms, bar {IMPORT_BAR:.0f} ms: {'met' if took <= IMPORT_BAR else '**missed**'}.")
    if any(m["ratio"][GUARD] > BAR for m in results["models"].values()):
        lines.append(
            "\nWhere the bar was missed: after a pass over the gradients the caches hold nothing of Python's, so some "
            "0.2 to 0.3 ms of interpreter work a step remain, whatever the model; they weigh most where clipping "
            "itself takes little. With many small tensors, asking each parameter for `.grad` and reading its norm add "
            "about a tenth; clipping does the same. Several calm steps could be judged at a time, in warm caches; a "
            "drift would be reported later by as many, so they are not."
        )
    return "\n".join(lines)


def page(results: dict[str, Any], quick: bool) -> str:
    """Return ``performance.md``."""
    tensors = results["models"][counted(results)]["tensors"]
    first = ", ".join(f"{name} {m['first_steps'][0]:.0f}" for name, m in results["models"].items())
    warning = "\n> A `--quick` run: enough to see that it works, too little to quote.\n" if quick else ""
    return f"""# Performance

What `GradGuard()` costs on the healthy path. This page, its plots and `performance.json` are written by
`OMP_NUM_THREADS=1 python -m benchmarks.overhead`.
{warning}
Machine: {results["machine"]}. One thread, {results["rounds"]} rounds of 100 steps. The machine was shared, so time on a
core is counted (of all threads of the process, without what others took), and only ratios mean something.

## One step, as a ratio to `torch.nn.utils.clip_grad_norm_`

{table(results)}

All contenders take turns in random order within one process; a number is the median over the rounds of a round's median
step. The guard runs as it does in a training run: all detectors, TensorBoard and journal every 50 steps, a snapshot of
parameters and Adam's moments every 100; what windows and snapshots cost is added at these intervals. What ends an epoch
(one picture, held to 1 % of the time) is not in it. `torch._foreach_norm alone` is one read of the gradients, which are
handed to it in a list: the least that can be asked of anything that knows their norms. `clip_grad_norm_` reads them
twice and writes them once.

The last column counts how often one step would make the host wait for a GPU, for a model of {tensors} tensors: numbers
read from a tensor are counted as they are dispatched, copies to the host as they are called for. The guard is counted
as it runs on a GPU once the run is calm.

{judgement(results)}

The first five steps also measure weights and updates; the very first one attaches the guard and takes the first
snapshot (once in a run: {first} times a clip).

## Scale

![Cost against the number of tensors](images/overhead-tensors.png)

![Cost against the number of elements](images/overhead-elements.png)

A plain step (no snapshot, no window), log-log. Left-hand ends flatten (constant overhead), right-hand ends grow in
proportion; a bend that all curves share is the machine's (a cache that has become too small), not the guard's. Measured
up to {results["largest"] / 1e6:,.0f} M elements (`--largest`; a size is left out where parameters and gradients would
take more than three quarters of the memory at hand).

## Import

`import lightning_gradguard` after `import lightning.pytorch`: {results["import_ms"]:.0f} ms, the median of
{results["imports"]} fresh processes that find bytecode, as an installer leaves it. The very first import from a
checkout compiles the source as well: {results["first_import_ms"]:.0f} ms.

## Record

{record_section(results["record"])}

## GPU

{gpu_section(results)}
"""


def record_section(record: dict[str, int]) -> str:
    """Say what a long run leaves on disk, and whether that is within what is promised."""
    board, journal = record["board_bytes"], record["journal_bytes"]
    met = "held" if max(board, journal) <= RECORD_BAR else "**missed**"
    return (
        f"A healthy run of {record['steps']:,} steps with {record['layers']:,} layers, windows of 50 steps, leaves "
        f"{board / 1e6:.1f} MB for TensorBoard and {journal / 1e6:.1f} MB of journal; at most "
        f"{RECORD_BAR / 1e6:.0f} MB each is promised: {met}. "
        "As a run goes on its windows are merged, so neither grows in proportion to it."
    )


NO_GPU = """**No GPU was measured**: none was at hand. `python -m benchmarks.overhead` trains a ResNet-50 and a GPT of
124 M parameters in bf16 wherever torch finds one, and puts the table here; the aim is 1.01 x an unguarded step, and no
more than `gradient_clip_val=1.0`. `python -m benchmarks.first_gpu` goes through all that is done there, in nine
minutes; without a GPU it does so in short form on a simulated one, in the test suite too."""
HOW_GPU = """What is done there: once a run is calm (32 accepted steps, no incident) the host does not wait for the step
at hand. It knows the largest norm that may pass beforehand, and the device compares, clips and skips. On fused
optimizers that is free (`found_inf`, `grad_scale`); on others it takes the pass that a clip takes, and a bad step
becomes one without a gradient, in which momentum and weight decay go on. Norms, loss and the batch's largest elements
come back through pinned memory and an event when the next step is judged. The host waits in the first steps, once in
100 for a snapshot, during an incident, with several processes once in 8 to average their losses, and where a detector
or remedy of your own does not say `deferrable = True`. `tests/test_deferred_step.py` counts what would wait (nothing,
on the calm path) with the CPU in the device's part, and runs under `torch.cuda.set_sync_debug_mode("error")` where
there is a GPU."""


def gpu_section(results: dict[str, Any]) -> str:
    """Say what was measured on a GPU, or that none was, and what the guard does there."""
    gpu = results.get("gpu")
    measured = (
        f"{gpu['card']}, bf16 autocast, AdamW; ratios to an unguarded step.\n\n{gpu_table(gpu)}" if gpu else NO_GPU
    )
    return f"{measured}\n\n{HOW_GPU}"


def plot_scale(points: list[dict[str, Any]], axis: str, label: str, path: Path) -> None:
    """Draw milliseconds of a plain step; the guard should run above its lower bound by a constant factor."""
    figure, axes = plt.subplots(figsize=(7, 4.2), constrained_layout=True)
    styles = {LOWER: ("#888888", "--"), ONE_SYNC: ("#bbbbbb", ":"), CLIP: ("#1f77b4", "-"), GUARD: ("#d62728", "-")}
    for name, (color, line) in styles.items():
        values = [p["milliseconds"][name] for p in points]
        axes.loglog([p[axis] for p in points], values, line, color=color, marker="o", markersize=3, label=name)
    axes.set(xlabel=label, ylabel="milliseconds a step")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def write_report(results: dict[str, Any], folder: Path, *, quick: bool) -> None:
    """Write page, plots and data into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "performance.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot_scale(results["tensors"], "tensors", "tensors of 1,024 elements", folder / "images" / "overhead-tensors.png")
    plot_scale(results["elements"], "elements", "elements, in 64 tensors", folder / "images" / "overhead-elements.png")
    (folder / "performance.md").write_text(page(results, quick), encoding="utf-8")
