"""The checkpoints below a directory, and which of them are to be trusted."""

from __future__ import annotations

from pathlib import Path

from lightning_gradguard.diagnostics import read_journal
from lightning_gradguard.evidence.checkpoints import Listed, list_checkpoints
from lightning_gradguard.report.story import find_journals


def checkpoints(directory: Path) -> list[Listed]:
    """Return the checkpoints below a directory, oldest first, each with its verdict: the newest in a journal there, or the mark inside."""
    told = [
        record
        for journal in find_journals(directory, lambda error: None)
        for record in read_journal(journal).checkpoints
    ]
    return list_checkpoints(directory, told)
