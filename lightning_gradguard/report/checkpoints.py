"""The checkpoints below a directory, and which of them are to be trusted."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lightning_gradguard.diagnostics import read_journal
from lightning_gradguard.evidence.checkpoints import Listed, list_checkpoints
from lightning_gradguard.records import CheckpointRecord
from lightning_gradguard.report.story import find_journals


def checkpoints(directory: Path) -> list[Listed]:
    """Return the checkpoints below a directory, oldest first, each with a journal's newest verdict or its own mark."""
    told: list[CheckpointRecord] = []
    for journal in find_journals(directory, lambda error: None):
        with suppress(OSError):  # What cannot be read costs its verdicts, and the marks inside are still there.
            told += read_journal(journal).checkpoints
    return list_checkpoints(directory, told)
