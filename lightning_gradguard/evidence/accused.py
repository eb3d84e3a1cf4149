"""Batches that an earlier run has accused. One idea: where they come again, their steps are not made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_gradguard.diagnostics.journal import FILE_NAME
from lightning_gradguard.diagnostics.journal_reader import read_journal
from lightning_gradguard.evidence.bundle import SUFFIX, BundleError, read_bundle
from lightning_gradguard.evidence.digest import digest_of
from lightning_gradguard.records import BATCH, AccusedBatch
from lightning_gradguard.statistics.collectives import Collectives, Own


def accused_batches(path: str | os.PathLike[str]) -> tuple[AccusedBatch, ...]:
    """Return the batches that a journal, a bundle, or all of them below a directory accuse, each once, in their order.

    Raises:
        ValueError: There is nothing at the path, or no journal or bundle that can be read.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"skip_batches must be a path, not {type(path).__name__}")
    path = Path(path)
    if path.is_dir():
        files = sorted((*path.rglob(FILE_NAME), *path.rglob(f"*{SUFFIX}")))
    elif path.is_file():
        files = [path]
    else:
        raise ValueError(f"skip_batches must be a journal, a bundle or a directory of them; there is nothing at {path}")
    found: dict[tuple[int, int], AccusedBatch] = {}
    for file in files:
        for batch in _of_bundle(file) if file.name.endswith(SUFFIX) else read_journal(file).accused:
            found.setdefault((batch.epoch, batch.batch_index), batch)
    return tuple(found[at] for at in sorted(found))


def _of_bundle(path: Path) -> tuple[AccusedBatch, ...]:
    try:
        bundle = read_bundle(path)
    except BundleError as error:
        raise ValueError(f"skip_batches: {error}") from error
    last = bundle.passes[-1] if bundle.passes else None
    if last is None or last.batch_index is None or last.batch is None or not bundle.suspects:
        return ()
    worst = bundle.suspects[0]
    if worst.get("layer") != BATCH:
        return ()
    digest, reason = digest_of(last.loaded), str(worst.get("reason", ""))
    return (AccusedBatch(bundle.step, bundle.epoch, last.batch_index, digest, bundle.rank, reason),)


class AccusedBatches:
    """Know accused batches again, by their place in the run and by what is in them.

    Args:
        path: A journal, a bundle, or a directory of them.
        warn: Told a sentence where a batch does not come again as it was.

    Attributes:
        now: Why the step at hand is not to be made; empty where it is.

    Raises:
        ValueError: There is nothing at the path, or nothing that can be read.
    """

    def __init__(self, path: str | os.PathLike[str], warn: Callable[[str], None]) -> None:
        self._known = {(batch.epoch, batch.batch_index): batch for batch in accused_batches(path)}
        self._warn = warn
        self.now = ""
        self._used = False
        if not self._known:
            warn(f"skip_batches: no batch is accused in {path}")

    def before_forward(self, epoch: int | None, batch_index: int | None, batch: Any, collectives: Collectives) -> None:
        """Look whether a batch is one of them; what was said of the batches of a step holds until the next begins.

        All processes must ask at the same point; they come to the same answer.
        """
        if self._used:
            self.now, self._used = "", False
        self.now = self._again(epoch, batch_index, batch, collectives) or self.now

    def take(self) -> str:
        """Return why the step at hand is not to be made; each optimizer that steps with the batch is told."""
        self._used = True
        return self.now

    def _again(self, epoch: int | None, batch_index: int | None, batch: Any, collectives: Collectives) -> str:
        known = self._known.get((epoch, batch_index)) if epoch is not None and batch_index is not None else None
        if known is None:
            return ""
        mine = collectives.rank == known.seen_by
        same = Own(mine and digest_of(batch) == known.digest).told(collectives)
        if any(same):
            return f"batch {batch_index} of epoch {epoch} was accused before ({known.reason or 'no reason is known'})"
        self._warn(
            f"batch {batch_index} of epoch {epoch} is not the one that was accused, and its step is made: "
            "the order of the data or their augmentation has changed"
        )
        return ""
