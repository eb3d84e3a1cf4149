"""Checkpoints and their verdicts: the mark inside, and a ``last-healthy.ckpt`` that rotation leaves alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

KEY = "gradguard"
"""Key of the mark in a checkpoint."""
HEALTHY_NAME = "last-healthy.ckpt"
_CANDIDATE = ".last-healthy.candidate"


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of a checkpoint when it is saved.

    Args:
        healthy: Whether nothing speaks against its weights.
        step: The step.
        reason: One sentence; empty where it is healthy.
        incident: Number of the incident, or None.
    """

    healthy: bool
    step: int
    reason: str = ""
    incident: int | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as a checkpoint holds it."""
        return {"healthy": self.healthy, "step": self.step, "reason": self.reason, "incident": self.incident}


class HealthyCopy:
    """Let the last healthy checkpoint of a directory stand beside the others, as a second name of the same file.

    A checkpoint is healthy once the step that was computed from its weights has raised no alarm: weights are often poisoned before it
    shows. Until then it waits under a hidden name, in case it is rotated away.
    """

    def __init__(self) -> None:
        self._waiting: list[Path] = []

    def saved(self, path: Path) -> None:
        """Note a checkpoint that was saved while all was well."""
        candidate = path.parent / _CANDIDATE
        _remove(candidate)
        if _second_name(path, candidate) and candidate not in self._waiting:
            self._waiting.append(candidate)

    def judged(self, *, healthy: bool) -> None:
        """Take in whether the step after it was fine."""
        for candidate in self._waiting:
            if healthy and candidate.exists():
                target = candidate.with_name(HEALTHY_NAME)
                if target.is_dir():
                    _remove(target)
                candidate.replace(target)
            else:
                _remove(candidate)
        self._waiting.clear()


def _second_name(path: Path, other: Path) -> bool:
    """Give a checkpoint a second name, which costs no memory; copy it where the file system knows none."""
    real = path.resolve()
    if real.is_dir():
        # The parts of a sharded last.ckpt are written anew in place.
        if path.name.startswith("last"):
            return False
        shutil.copytree(real, other, copy_function=os.link)
        return True
    if not real.is_file():
        return False
    try:
        os.link(real, other)
    except OSError:
        shutil.copyfile(real, other)
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Listed:
    """A checkpoint on disk and what is known of it.

    Args:
        path: The checkpoint.
        healthy: The verdict, or None where nobody has given one.
        step: The step, or None.
        reason: Why.
        later: Whether the verdict was given after it was saved.
    """

    path: Path
    healthy: bool | None
    step: int | None
    reason: str
    later: bool = False


def list_checkpoints(directory: Path, told: Iterable[dict[str, Any]] = ()) -> list[Listed]:
    """Return the checkpoints below a directory, oldest first; the newest verdict of the journal's counts before the mark inside.

    Args:
        directory: Where to look.
        told: The ``checkpoint`` lines of journals, oldest first.
    """
    known = {Path(str(line.get("path", ""))).name: line for line in told}
    paths = [
        p for p in directory.rglob("*.ckpt") if p.is_file() or (p / ".metadata").exists() or (p / "meta.pt").exists()
    ]
    found = [_listed(path, known.get(path.name)) for path in paths]
    return sorted(found, key=lambda one: (one.step is None, one.step or 0, str(one.path)))


def _listed(path: Path, line: dict[str, Any] | None) -> Listed:
    mark = read_mark(path)
    if line is not None and isinstance(line.get("healthy"), bool) and line.get("step") == (mark or line).get("step"):
        later = mark is not None and mark.get("healthy") != line["healthy"]
        return Listed(path, line["healthy"], _whole(line.get("step")), str(line.get("reason", "")), later)
    if mark is None or not isinstance(mark.get("healthy"), bool):
        return Listed(path, None, None, "it carries no mark: it was saved without GradGuard, or cannot be read safely")
    return Listed(path, mark["healthy"], _whole(mark.get("step")), str(mark.get("reason", "")))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def read_mark(path: Path) -> dict[str, Any] | None:
    """Return the mark in a checkpoint, or None; tensors stay on disk, and nothing is executed."""
    file = path / "meta.pt" if path.is_dir() else path
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # Whatever is in it, a listing goes on.
        return None
    mark = found.get(KEY) if isinstance(found, dict) else None
    return mark if isinstance(mark, dict) else None
