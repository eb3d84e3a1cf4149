"""The story of a run that is under way, told anew in a terminal whenever its journal grows."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lightning_gradguard.report.story import RunStory, find_journals, read_stories
from lightning_gradguard.report.terminal import brief

OVER = "The run has ended.\n"
Stamp = tuple[tuple[str, int, int], ...]


def follow(
    run_dir: Path,
    draw: Callable[[str], None],
    *,
    every: float = 2.0,
    color: bool = True,
    rounds: int | None = None,
    width: Callable[[], int | None] = lambda: None,
) -> None:
    """Draw the newest story of the runs below a directory, again whenever one of their journals has grown.

    Return once a run that has grown meanwhile has ended.

    Args:
        run_dir: Directory to search for journals, or one journal.
        draw: Called with the whole text to show.
        every: Seconds between two looks.
        color: Whether to use ANSI colours.
        rounds: Looks after which to stop; None for no end.
        width: Tells the columns of the terminal, beyond which lines are broken.
    """
    told: Stamp | None = None
    for number, (now, stories) in enumerate(_stories(run_dir), start=1):
        if now != told:
            known = stories()
            ended = told is not None and bool(known) and known[-1].contents.heard.ended
            told = now
            text = "\n".join(brief(story, color=color, width=width()) for story in known)
            draw((text or f"Waiting for a journal below {run_dir} ...\n") + (OVER if ended else ""))
            if ended:
                return
        if rounds is not None and number >= rounds:
            return
        time.sleep(every)


def _stories(run_dir: Path) -> Iterator[tuple[Stamp, Callable[[], list[RunStory]]]]:
    while True:
        paths = find_journals(run_dir)
        stamps = tuple((str(path), found.st_size, found.st_mtime_ns) for path in paths if (found := _stat(path)))
        # The newest last, where a terminal that is too low still shows it.
        ordered = [Path(name) for name, _, _ in sorted(stamps, key=lambda stamp: stamp[2])]
        yield stamps, partial(_read, ordered, run_dir)


def _read(paths: list[Path], run_dir: Path) -> list[RunStory]:
    return [story for path in paths for story in read_stories(path, run_dir)]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
