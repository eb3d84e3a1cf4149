"""The versions of the software that computed a step, and the commit of the user's repository."""

from __future__ import annotations

import inspect
import platform
import subprocess
import sys
from pathlib import Path

import torch

NAMED = ("numpy", "lightning", "transformers", "accelerate", "torchvision")
PATIENCE = 5.0
"""Seconds that git is given to answer."""


def versions() -> dict[str, str]:
    """Return the versions of Python, torch, CUDA and of what else is loaded."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "platform": platform.platform()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    # Lightning has a twin of another name.
    for name in (*NAMED, *(name for name in list(sys.modules) if name.endswith("_lightning"))):
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            found[name] = version
    return found


def source_directory(kind: type) -> Path | None:
    """Return the directory that a class was read from, or None where it was typed in."""
    try:
        return Path(inspect.getfile(kind)).resolve().parent
    except (TypeError, OSError):
        return None


def commit_of(directory: Path | None) -> str:
    """Return the commit of the repository around a directory, with a ``+`` where files differ; empty without one."""
    if directory is None:
        return ""
    try:
        head = _git(directory, "rev-parse", "HEAD")
        changed = _git(directory, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")


def _git(directory: Path, *arguments: str) -> str:
    told = ["git", "-C", str(directory), *arguments]
    return subprocess.run(told, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.strip()
