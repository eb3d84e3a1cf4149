"""``last-healthy.ckpt``: the last checkpoint that nothing speaks against, safe from rotation.

It is a second name of the same file, so it takes no room before the first name is rotated away. A checkpoint is healthy
once the step that was computed from its weights has raised no alarm: weights are often poisoned before it shows.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

NAME = "last-healthy.ckpt"
_CANDIDATE, _CONFIRMED = ".gradguard-candidate", ".gradguard-healthy"


class HealthyCopy:
    """Keep the last healthy checkpoint of each directory under a hidden name, and show it once there is trouble.

    A run without trouble leaves nothing behind.
    """

    def __init__(self) -> None:
        self._directories: dict[Path, None] = {}
        self._shown = False

    def saved(self, path: Path) -> None:
        """Note a checkpoint that was saved while all was well."""
        candidate = path.parent / _CANDIDATE
        _remove(candidate)
        with suppress(OSError):  # A file system that is full, or remote: the checkpoint itself is there.
            _second_name(path, candidate)
        self._directories[path.parent] = None

    def judged(self, *, healthy: bool) -> None:
        """Take in whether the step after it was fine."""
        for directory in self._directories:
            candidate = directory / _CANDIDATE
            if not candidate.exists():
                continue
            if healthy:
                _replace(candidate, directory / (NAME if self._shown else _CONFIRMED))
            else:
                _remove(candidate)

    def show(self) -> None:
        """Show the copies under their visible name from now on."""
        self._shown = True
        for directory in self._directories:
            if (directory / _CONFIRMED).exists():
                _replace(directory / _CONFIRMED, directory / NAME)

    def close(self) -> None:
        """Leave no hidden names behind."""
        for directory in self._directories:
            _remove(directory / _CANDIDATE)
            _remove(directory / _CONFIRMED)
        self._directories.clear()
        self._shown = False


def _replace(path: Path, target: Path) -> None:
    if target.is_dir():
        _remove(target)
    path.replace(target)


def _second_name(path: Path, other: Path) -> None:
    """Give a checkpoint a second name; copy it where the file system knows none."""
    real = path.resolve()
    if real.is_dir():
        # The parts of a sharded last.ckpt are written anew in place.
        if not path.name.startswith("last"):
            shutil.copytree(real, other, copy_function=os.link)
    elif real.is_file():
        try:
            os.link(real, other)
        except OSError:
            shutil.copyfile(real, other)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
