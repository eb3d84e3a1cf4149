"""Real processes over gloo: each runs every scenario of a module, and leaves what it ended with in a file.

One group of processes serves a whole test module: importing torch twice costs more than all scenarios together. Run as
``python -m tests.strategies.launch MODULE DIRECTORY`` with the environment of ``torchrun``.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
Result = dict[str, Any]


def group(module: str, directory: Path, *, size: int = 2, timeout: float = 270.0) -> list[dict[str, Result]]:
    """Run all of ``SCENARIOS`` in ``tests.strategies.<module>`` on some processes; return what each rank ended with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    shared |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    shared |= {"GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(size)}
    command = [sys.executable, "-m", "tests.strategies.launch", module, str(directory)]
    started = []
    for rank in range(size):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = open(directory / f"{rank}.log", "w")  # noqa: SIM115, it belongs to the process
        started.append(subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        _wait(started, timeout)
    finally:
        for process in started:
            process.kill()
            process.wait()
    logs = "\n".join((directory / f"{rank}.log").read_text()[-4000:] for rank in range(size))
    assert all(process.returncode == 0 for process in started), logs
    return [torch.load(directory / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _wait(started: list[subprocess.Popen[bytes]], timeout: float) -> None:
    """Wait for all, but not for one whose partner has died: it may be waiting for that one for ever."""
    end = time.monotonic() + timeout
    while time.monotonic() < end and any(p.poll() is None for p in started):
        if any(p.poll() for p in started):
            time.sleep(1.0)
            return
        time.sleep(0.1)


def main(module: str, directory: Path) -> None:
    """Run the scenarios one after another, in this one of the processes."""
    torch.set_num_threads(1)
    rank, found = int(os.environ["RANK"]), {}
    for name, scenario in importlib.import_module(f"tests.strategies.{module}").SCENARIOS.items():
        begun = time.monotonic()
        torch.manual_seed(0)
        found[name] = scenario(rank, directory)
        print(f"{name}: {time.monotonic() - begun:.1f} s", flush=True)
    torch.save(found, directory / f"{rank}.pt")


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except BaseException:
        traceback.print_exc()
        # A process group that waits for the other rank would keep this one alive.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
