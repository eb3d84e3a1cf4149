"""The rooms of the package and what they import: ``python -m tests.architecture`` draws it from the code."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import lightning_gradguard

ROOT = Path(lightning_gradguard.__file__).parent
PACKAGE = "lightning_gradguard"

# The river. A room may import from strictly lower ranks, and within itself; rooms of one rank are siblings.
RIVER = (
    ("errors", "checks", "records", "layers", "history", "twins", "optimizer_wrappers", "stale_gradients", "arriving"),
    ("statistics", "learning_rate"),
    ("detectors", "snapshots", "diagnostics", "device_gate", "witnesses"),
    ("attribution", "evidence"),
    ("policy",),
    ("remedies",),
    ("treatment", "defaults"),
    ("parts",),
    ("optimizer_track",),
    ("track_state",),
    ("checkpoint", "tracks"),
    ("step",),
    ("deferred_step",),
    ("guarded_step", "session"),
    ("guard",),
    ("report",),
    ("trainer",),
    ("callback",),
)
RANKS = {room: rank for rank, rooms in enumerate(RIVER) for room in rooms}


def imports(file: Path) -> Iterator[str]:
    """Yield the full name of each module imported anywhere in a file."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the direction"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module: str) -> str:
    """``lightning_gradguard.detectors.spike`` -> ``detectors``."""
    return module.split(".")[1]


def inner() -> list[tuple[Path, str, str]]:
    """Every import inside the package: the file, its part, the part it imports."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        path = file.relative_to(ROOT)
        own = path.parts[0].removesuffix(".py")
        found += [(path, own, part(m)) for m in imports(file) if m.startswith(PACKAGE + ".")]
    return found


def drawn() -> str:
    """Draw the river from what the files import: the lowest rank first; each imports from those before it."""
    uses: dict[str, set[str]] = {}
    for _, own, target in inner():
        if own in RANKS and target in RANKS and target != own:
            uses.setdefault(own, set()).add(target)
    depth: dict[str, int] = {}

    def deep(room: str) -> int:
        if room not in depth:
            depth[room] = 1 + max(map(deep, uses.get(room, ())), default=-1)
        return depth[room]

    lines: dict[int, list[str]] = {}
    for room in sorted(RANKS):
        lines.setdefault(deep(room), []).append(room)
    whole = " ← ".join(", ".join(lines[level]) for level in sorted(lines))
    return "\n  ".join(textwrap.wrap(whole, 116, break_on_hyphens=False))


if __name__ == "__main__":
    print(drawn())
