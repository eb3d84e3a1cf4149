"""What the record costs: time a step, bytes on disk, and how long the GradGuard tab takes to open on a very long run.

``python -m benchmarks.diagnostics`` rewrites the table between the markers in ``docs/reading-the-board.md``;
``--quick`` only prints. Opening needs playwright and a Chromium, and the distribution installed, so that TensorBoard
finds the tab.
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_gradguard.diagnostics import Journal, TensorBoardSink, wire
from lightning_gradguard.records import Window
from lightning_gradguard.statistics.weights import WeightScale

PAGE = Path(__file__).parents[1] / "docs" / "reading-the-board.md"
EVERY = 50
MOST_SECONDS, MOST_MICROSECONDS, MOST_BYTES = 3.0, 50.0, 0.5e6


def windows(count: int, layers: int, *, seed: int = 0) -> Iterator[Window]:
    """Yield the windows of a run of ``count`` times 50 steps; one spike of one layer, and one NaN, lie in it."""
    rng = np.random.default_rng(seed)
    names = tuple(f"blocks.{i // 6}.{part}" for i in range(layers) for part in [f"layer{i % 6}"])
    noise = rng.lognormal(0.0, 0.3, (64, layers))
    quiet = np.zeros(layers)
    for tick in range(count):
        peaks, bad = noise[tick % 64] * (1.0 + 1e-4 * (tick % 977)), quiet
        if tick == count // 3:
            peaks = peaks.copy()
            peaks[layers // 2] = 5000.0
        if tick == count // 2:
            bad = quiet.copy()
            bad[7] = 1.0
        norm = float(np.sqrt((peaks**2).sum()))
        yield Window(
            step=tick * EVERY + EVERY - 1,
            first_step=tick * EVERY,
            optimizer=0,
            tick=tick,
            norm_peak=norm,
            norm_before=norm,
            norm_after=norm,
            typical=31.0,
            limit=90.0,
            coefficient=1.0,
            lr_factor=1.0,
            clipped=0,
            skipped=0,
            incidents=0,
            loss=1.0,
            layers=names,
            layer_peaks=peaks,
            layer_nonfinite=bad,
            layer_weights=peaks,
            layer_updates=1e-3 * noise[tick % 64],
        )


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def compact_event(layers: int = 200, count: int = 400) -> tuple[float, float]:
    """Return microseconds a step and bytes a thousand steps of the layers' event alone, one in 50 steps."""
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            file_writer = writer._get_file_writer()
            empty = size(Path(folder))
            taken = []
            for window in windows(count, layers):
                begin = time.process_time()  # the writer's own thread included
                value = wire.value("gradguard/layers", wire.encode_layers(window), None)
                file_writer.add_summary(wire.Summary(value=[value]), window.tick)
                taken.append(time.process_time() - begin)
        written = size(Path(folder)) - empty
    return 1e6 * float(np.mean(taken[1:])) / EVERY, written / (count * EVERY / 1000)


def whole_window(layers: int = 200, count: int = 400) -> float:
    """Return microseconds a step of all that is written to TensorBoard and the journal, one window in 50 steps."""
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        board, journal = TensorBoardSink(writer, heatmap=False), Journal(folder)
        taken = []
        for window in windows(count, layers):
            begin = time.process_time()  # the writer's own thread included
            board.window(window)
            journal.window(window)
            taken.append(time.process_time() - begin)
        journal.close()
    return 1e6 * float(np.mean(taken[1:])) / EVERY


def weighing(layers: int = 200, width: int = 256, rounds: int = 40) -> tuple[float, float]:
    """Return microseconds a step of weights' norms and update ratios, and the share of a ``clip_grad_norm_``."""
    net = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    scale, parameters, taken, clipped = WeightScale(), dict(net.named_parameters()), [], []
    names = [str(i) for i in range(layers)]
    for _ in range(rounds):
        begin = time.perf_counter()
        scale.look(parameters)
        scale.look(parameters)
        scale.take(names)
        taken.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        nn.utils.clip_grad_norm_(net.parameters(), 1e9)
        clipped.append(time.perf_counter() - begin)
    # Once in a window of 50 steps; the least, since others use the machine.
    return 1e6 * min(taken) / EVERY, min(taken) / EVERY / min(clipped)


def long_run(folder: Path, layers: int, steps: int = 10**6) -> tuple[int, int]:
    """Write the log of a run of a million steps; return the bytes for TensorBoard and of the journal."""
    board_folder, journal_folder = folder / "board", folder / "journal"
    journal = Journal(journal_folder)
    with SummaryWriter(str(board_folder)) as writer:
        board = TensorBoardSink(writer, heatmap=False)
        for window in windows(steps // EVERY, layers):
            board.window(window)
            journal.window(window)
        board.close()
    journal.close()
    return size(board_folder), size(journal_folder)


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """Run TensorBoard on the loopback and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=1):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def opening(logdir: Path, chromium: str, rounds: int = 3) -> float:
    """Return the seconds from the click on the tab to the whole run in sight; the median of fresh servers, which have
    decoded nothing."""
    from playwright.sync_api import sync_playwright

    taken = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(rounds):
            with tensorboard(logdir) as address:
                _await_data(address)
                # TensorBoard's own page is the same for every tab: it is not what is measured.
                page = browser.new_page(viewport={"width": 1400, "height": 900})
                page.goto(f"{address}/#scalars")
                header = page.get_by_role("tab", name="GradGuard")
                header.wait_for(timeout=60_000)
                page.wait_for_timeout(3000)
                begin = time.perf_counter()
                header.click()
                page.frame_locator("iframe").locator("[data-loaded][data-sampled='false']").wait_for(timeout=60_000)
                taken.append(time.perf_counter() - begin)
                page.close()
        browser.close()
    return median(taken)


def _await_data(address: str) -> None:
    """Wait until TensorBoard has read the log, however long. The tab is not asked: it would remember."""
    last, calm = b"", 0
    asked = f"{address}/data/plugin/scalars/scalars?run=board&tag=gradguard/1_log10_norm_peak"
    while calm < 4:
        told = b""
        # A server that has not found the run yet says that there is none.
        with suppress(urllib.error.HTTPError), urllib.request.urlopen(asked, timeout=60) as response:
            told = response.read()
        calm = calm + 1 if told == last and told else 0
        last = told
        time.sleep(0.5)


def verdict(value: float, most: float) -> str:
    """Say whether a bar was held."""
    return "held" if value <= most else "**missed**"


def table(chromium: str | None) -> str:
    """Measure everything; return it as Markdown."""
    time_of_event, bytes_of_event = compact_event()
    rows = [
        (
            "the layers' event, 200 layers",
            f"{time_of_event:.0f} µs a step",
            f"50 µs: {verdict(time_of_event, MOST_MICROSECONDS)}",
        ),
        (
            "the same on disk",
            f"{bytes_of_event / 1e6:.3f} MB per 1,000 steps",
            f"0.5 MB: {verdict(bytes_of_event, MOST_BYTES)}",
        ),
        ("all that is written, 200 layers", f"{whole_window():.0f} µs a step", ""),
    ]
    micro, share = weighing()
    told = f"{micro:.0f} µs a step, {100 * share:.1f} % of a `clip_grad_norm_`"
    rows.append(("weight norms and update-to-weight ratios, 200 layers of 256 x 256", told, ""))
    for layers in (200, 1000):
        with tempfile.TemporaryDirectory() as folder:
            board, journal = long_run(Path(folder), layers)
            rows.append(
                (
                    f"a run of 1,000,000 steps, {layers:,} layers",
                    f"{board / 1e6:.1f} MB for TensorBoard, {journal / 1e6:.1f} MB journal",
                    "",
                )
            )
            if layers == 1000 and chromium is not None:
                seconds = opening(Path(folder), chromium)
                rows.append(
                    ("the tab opens on it, whole, in", f"{seconds:.1f} s", f"3 s: {verdict(seconds, MOST_SECONDS)}")
                )
    lines = ["| what | measured | bar |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="print the table and leave the page as it is")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    options = parser.parse_args()
    measured = table(options.chromium)
    print(measured)
    if not options.quick:
        text = PAGE.read_text(encoding="utf-8")
        place = re.compile(r"(<!-- measured -->\n).*(<!-- end -->)", re.DOTALL)
        PAGE.write_text(place.sub(lambda found: f"{found[1]}{measured}\n{found[2]}", text), encoding="utf-8")


if __name__ == "__main__":
    main()
