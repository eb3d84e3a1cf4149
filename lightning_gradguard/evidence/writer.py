"""Writing a bundle: in the background, whole or not at all, and readable by its owner only."""

from __future__ import annotations

import glob
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700


class TooLargeError(OSError):
    """A file would be larger than it may be; the message says by how much."""


def write_whole(path: Path, content: Any, *, most: int | None = None) -> None:
    """Save ``content`` so that at no moment half of it can be found under the name of ``path``.

    What a process of this machine had half written when it was killed is removed first.

    Raises:
        TooLargeError: It takes more than ``most`` bytes; nothing is left behind then either.
        OSError: The disk is full, or the directory cannot be written; nothing is left behind then.
    """
    _private_directory(path.parent)
    _sweep(path.parent)
    half = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.half")
    try:
        with open(os.open(half, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, PRIVATE_FILE), "wb") as file:
            torch.save(content, file)
            file.flush()
            if most is not None and (size := file.tell()) > most:
                raise TooLargeError(f"the file would have had {size:,} bytes, and may have {most:,}")
            # A name that is there after a crash of the machine must not stand for an empty file.
            os.fsync(file.fileno())
        half.replace(path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sweep(directory: Path) -> None:
    if os.name != "posix":
        return  # Elsewhere a process cannot be asked whether it lives without a signal that it would feel.
    # Other machines may write into the same directory, and nobody here knows their processes.
    for half in directory.glob(f".*.{glob.escape(platform.node())}.*.half"):
        owner = half.name.split(".")[-2]
        if owner.isdigit() and not _alive(int(owner)):
            half.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # It is somebody else's, or this system cannot tell.
    return True


def _private_directory(directory: Path) -> None:
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)


def _sync_directory(directory: Path) -> None:
    try:
        opened = os.open(directory, os.O_RDONLY)
    except OSError:
        return  # Windows has no such thing.
    try:
        os.fsync(opened)
    except OSError:
        return
    finally:
        os.close(opened)


class Writer:
    """Do work that may wait for a disk in threads of its own, and tell of what fails in the training thread.

    Args:
        failed: Told the error of what failed, in the thread that asks :meth:`wait` or :meth:`tell`.
    """

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self._failed = failed
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work; a process that ends waits for it."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # A full disk costs the bundle and not the run.
                self._errors.append(error)

        thread = threading.Thread(target=guarded, name="gradguard-evidence", daemon=False)
        self._threads.append(thread)
        thread.start()

    @property
    def busy(self) -> bool:
        """Whether any work is still being done."""
        return any(thread.is_alive() for thread in self._threads)

    def tell(self) -> None:
        """Tell of what has failed so far."""
        while self._errors:
            self._failed(self._errors.pop(0))

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for all work; return whether it is done."""
        for thread in self._threads:
            thread.join(seconds)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self.tell()
        return not self._threads

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy begins with: it has nothing to wait for."""
        return {"_failed": self._failed, "_threads": [], "_errors": []}
