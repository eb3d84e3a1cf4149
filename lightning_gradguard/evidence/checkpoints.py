"""Checkpoints and their verdicts: the mark inside, and what is known of those below a directory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_gradguard.records import CheckpointRecord

MARK_KEY = "gradguard"
"""Key of the mark in a checkpoint."""
UNMARKED = "it carries no mark: it was saved without GradGuard, or cannot be read safely"


def mark(record: CheckpointRecord) -> dict[str, Any]:
    """Return the entry of a checkpoint that tells the verdict on it."""
    return {"healthy": record.healthy, "step": record.step, "reason": record.reason, "incident": record.incident}


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

    def __str__(self) -> str:
        """Return it in a line."""
        word = {True: "healthy", False: "SUSPECT", None: "unknown"}[self.healthy]
        step = "" if self.step is None else f"step {self.step:,}"
        why = f"  {self.reason}" if self.reason else ""
        return f"{word:8} {step:14} {self.path}{why}{' (said later)' if self.later else ''}"


def list_checkpoints(directory: Path, told: Iterable[CheckpointRecord] = ()) -> list[Listed]:
    """Return the checkpoints below a directory, oldest first; a journal's newest verdict counts more than the mark.

    Args:
        directory: Where to look.
        told: The verdicts of journals, oldest first.
    """
    known = {(Path(one.path).name, one.step): one for one in told}
    paths = (
        p for p in directory.rglob("*.ckpt") if p.is_file() or any((p / n).exists() for n in (".metadata", "meta.pt"))
    )
    found = [_listed(path, known) for path in paths]
    return sorted(found, key=lambda one: (one.step is None, one.step or 0, str(one.path)))


def _listed(path: Path, known: dict[tuple[str, int], CheckpointRecord]) -> Listed:
    inside = read_mark(path)
    healthy, step = (None, None) if inside is None else (inside.get("healthy"), inside.get("step"))
    # One that was saved without a mark (weights only) is known by its name.
    said = [one for (name, at), one in known.items() if name == path.name and step in (None, at)]
    if said:
        newest = said[-1]
        later = isinstance(healthy, bool) and healthy != newest.healthy
        return Listed(path, newest.healthy, newest.step, newest.reason, later)
    if inside is None or not isinstance(healthy, bool):
        return Listed(path, None, None, UNMARKED)
    return Listed(path, healthy, step if isinstance(step, int) else None, str(inside.get("reason", "")))


def read_mark(path: Path) -> dict[str, Any] | None:
    """Return the mark in a checkpoint, or None; tensors stay on disk, and nothing is executed."""
    file = path / "meta.pt" if path.is_dir() else path
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # Whatever is in it, a listing goes on.
        return None
    inside = found.get(MARK_KEY) if isinstance(found, dict) else None
    return inside if isinstance(inside, dict) else None
