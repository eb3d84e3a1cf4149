"""Processes that are there to be killed: forked from a server that has imported torch and Lightning once."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

WAIT = 60.0
"""Seconds after which a process counts as hanging; the longest of them works for about three."""


def context() -> ForkServerContext:
    """Return the context whose server is shared by all tests of a session."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.faults.victims"])
    return found


@contextlib.contextmanager
def started(target: Callable[..., None], *arguments: Any) -> Iterator[ForkServerProcess]:
    """Start a process; whatever happens it is gone afterwards."""
    process = context().Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def ended(process: ForkServerProcess, wait: float = WAIT) -> int:
    """Return the exit code of a process, which must end by itself."""
    process.join(wait)
    assert process.exitcode is not None, f"it hangs: no end after {wait} s"
    return process.exitcode


def run(target: Callable[..., None], *arguments: Any) -> int:
    """Run to the end in a process of its own; return the exit code."""
    with started(target, *arguments) as process:
        return ended(process)


def kill_after(process: ForkServerProcess, marks: Any, mark: str, count: int, delay: float) -> bool:
    """Send SIGKILL ``delay`` seconds after the process has sent ``mark`` so often; return whether it was still at
    work."""
    try:
        while count:
            count -= marks.recv() == mark
    except EOFError:
        return False
    time.sleep(delay)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL
