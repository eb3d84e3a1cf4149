"""The command ``lightning-gradguard``, with ``report``, ``follow``, ``replay`` and ``checkpoints``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_gradguard import __version__
from lightning_gradguard.replay import command as replaying
from lightning_gradguard.report import RunStory, find_journals, follow, read_stories, render_page, render_text
from lightning_gradguard.report.checkpoints import checkpoints

PAGE_NAME = "gradguard-report.html"
COMPLETE, NOTHING, INCOMPLETE = 0, 1, 3
_STATUS = f"""exit status: {COMPLETE} all was read and shown; {NOTHING} there was nothing to show, or the page could
not be written; 2 wrong usage; {INCOMPLETE} shown, but parts of a journal could not be read (the output says which)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        return _run(_parser().parse_args(arguments))
    except BrokenPipeError:
        # Whoever read has seen enough (``| head``). What Python flushes at its end must find an open file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOTHING


def _run(options: argparse.Namespace) -> int:
    if options.command == "replay":
        return replaying.run(options)
    if options.command == "checkpoints":
        return list_of_checkpoints(options.run_dir)
    color = not options.no_color and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if options.command == "follow":
        return watch(options.run_dir, every=options.every, color=color)
    return report(options.run_dir, options.html, page=not options.no_html, color=color)


def watch(run_dir: Path, *, every: float = 2.0, color: bool = True, rounds: int | None = None) -> int:
    """Print the story of the runs below ``run_dir`` whenever a journal grows; return the exit status."""
    # A pipe gets one text below the other; a terminal keeps one place.
    terminal = sys.stdout.isatty()
    if terminal:
        _print("\x1b[2J")
    try:
        follow(
            run_dir,
            lambda text: _print(_in_place(text, shutil.get_terminal_size().lines) if terminal else text),
            every=every,
            color=color,
            rounds=rounds,
            width=lambda: shutil.get_terminal_size().columns if terminal else None,
        )
    except KeyboardInterrupt:
        _print("\n")
    return COMPLETE


def _in_place(text: str, rows: int) -> str:
    """Return what writes a text over the one before, without an empty screen between them, which would flicker.

    Of a text that is too long for the terminal the end is shown: the newest run is there.
    """
    lines = text.splitlines()[1 - rows :] if rows > 1 else []
    return "\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J"


def report(run_dir: Path, html: Path | None = None, *, page: bool = True, color: bool = True) -> int:
    """Print the story of every journal below ``run_dir`` and write a page; return the exit status."""
    closed: list[OSError] = []
    paths = find_journals(run_dir, closed.append)
    for error in closed:
        _complain(f"cannot look into {error.filename}: {error.strerror}")
    if not paths:
        if not closed:
            told = "a guarded run writes it into its log directory, one without a logger at its first incident"
            _complain(f"no gradguard.jsonl below {run_dir}; {told}")
        return NOTHING
    stories = [story for path in paths for story in read_stories(path, run_dir)]
    _print("\n".join(render_text(story, color=color) for story in stories))
    target = html or (run_dir if run_dir.is_dir() else run_dir.parent) / PAGE_NAME
    if page and not _write(target, stories):
        return NOTHING
    if any(story.contents.incidents for story in stories):
        _name_checkpoint(run_dir if run_dir.is_dir() else run_dir.parent)
    if all(story.contents.empty for story in stories):
        return NOTHING
    damaged = closed or any(story.contents.unreadable or story.contents.empty for story in stories)
    return INCOMPLETE if damaged else COMPLETE


def _name_checkpoint(directory: Path) -> None:
    """Print which of the checkpoints below a directory is the newest that is to be trusted, if there is one."""
    if trusted := [one for one in checkpoints(directory) if one.healthy and one.step is not None]:
        _print(f"checkpoint: {trusted[-1].path}, of step {trusted[-1].step:,}, is the newest that is healthy\n")


def list_of_checkpoints(directory: Path) -> int:
    """Print the checkpoints below a directory with the verdict on each; return the exit status."""
    found = checkpoints(directory)
    if not found:
        _complain(f"no checkpoint below {directory}")
        return NOTHING
    _print("".join(f"{one}\n" for one in found))
    return COMPLETE


def _write(target: Path, stories: Sequence[RunStory]) -> bool:
    try:
        # A lone surrogate in a name cannot be encoded; it must not cost the page.
        target.write_text(render_page(stories), encoding="utf-8", errors="replace")
    except OSError as error:
        _complain(f"cannot write {target}: {error.strerror or error}")
        return False
    _print(f"page: {target}\n")
    return True


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def _complain(sentence: str) -> None:
    print(f"lightning-gradguard: {sentence}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-gradguard", description="What GradGuard saw and did in a run.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    command = commands.add_parser(
        "report", help="print the story of a run and write it as one HTML page", epilog=_STATUS
    )
    command.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="directory to search for journals, or one journal"
    )
    command.add_argument(
        "--html", type=Path, metavar="FILE", help=f"where to write the page (default: RUN_DIR/{PAGE_NAME})"
    )
    command.add_argument("--no-html", action="store_true", help="write no page")
    follower = commands.add_parser("follow", help="tell the story of a run that is under way, again and again")
    follower.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="directory to search for journals, or one journal"
    )
    follower.add_argument(
        "--every", type=_seconds, default=2.0, metavar="SECONDS", help="how often to look (default: 2)"
    )
    replaying.add_to(commands)
    lister = commands.add_parser(
        "checkpoints", help="list the checkpoints of a run, and which of them are to be trusted"
    )
    lister.add_argument("run_dir", type=Path, metavar="DIR", help="directory to search for checkpoints and journals")
    for one in (command, follower):
        one.add_argument(
            "--no-color", action="store_true", help="plain text; NO_COLOR in the environment does the same"
        )
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be at least 0.1 seconds, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
