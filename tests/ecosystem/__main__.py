"""Train a model of each library, healthy and sick, and write the table of docs/compatibility.md from what passed.

As it is, it trains with the libraries that are installed beside it. With ``--environments DIR`` each library is given
an environment of its own in that folder, since some want what others do not bear; what this environment has already
(torch above all) is used there and not installed again. A library that cannot be installed is skipped by name.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.compatibility.matrix import CROSS, NOT_RUN, ROOT, TICK
from tests.ecosystem.libraries import LIBRARIES

TABLE = ROOT / "docs" / "compatibility" / "ecosystem.md"
TESTS = "tests/ecosystem/test_libraries.py"
KINDS = ("test_a_healthy_run_ends_bit_identical", "test_a_sick_run_is_rescued")
ABSENT = "not installed"
ASK = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
Row = tuple[str, str, str]
"""Version, and what came of the healthy and of the sick run."""


def environment(root: Path, name: str) -> Path | None:
    """Return the interpreter of an environment with the library in it; None if it cannot be installed."""
    where = root / name
    python = where / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(where)], check=True)
        # What is there already need not be installed; where the library wants another version, its own comes first.
        site = next(where.glob("lib/python*/site-packages"))
        (site / "base.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--quiet", *LIBRARIES[name].requirement.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{name} is skipped, as it cannot be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        return None
    return python


def examine(python: Path, name: str) -> Row:
    """Return the row of a library that may be installed."""
    asked = subprocess.run([str(python), "-c", ASK, name], capture_output=True, text=True)
    if asked.returncode:
        return (ABSENT, NOT_RUN, NOT_RUN)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "outcomes.xml"
        tests = [f"{TESTS}::{kind}[{name}]" for kind in KINDS]
        command = [str(python), "-m", "pytest", "-q", "-m", "ecosystem", f"--junitxml={file}", *tests]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        cases = {case.get("name", ""): case for case in ET.parse(file).iter("testcase")} if file.exists() else {}
    marks = [_mark(cases.get(f"{kind}[{name}]")) for kind in KINDS]
    if CROSS in marks:
        print(done.stdout)
    return (asked.stdout.strip(), marks[0], marks[1])


def _mark(case: ET.Element | None) -> str:
    kinds = {"error"} if case is None else {child.tag for child in case}
    return CROSS if kinds & {"failure", "error"} else NOT_RUN if "skipped" in kinds else TICK


def table(rows: dict[str, Row]) -> str:
    """Return the table as Markdown."""
    lines = [f"| {name} | {' | '.join(row)} | {LIBRARIES[name].trouble} |" for name, row in rows.items()]
    return "\n".join(["| library | version | healthy | sick | its trouble |", "|---|---|---|---|---|", *lines, ""])


def known(text: str) -> dict[str, Row]:
    """Return the rows of a table."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    return {name: (version, healthy, sick) for name, version, healthy, sick, *_ in cells}


def main() -> int:
    """Return 1 if a test failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.ecosystem", description=__doc__)
    parser.add_argument("names", nargs="*", help="libraries; by default all", metavar="LIBRARY")
    parser.add_argument("--environments", type=Path, help="a folder for an environment of each library")
    parser.add_argument("--check", action="store_true", help="leave the table as it is")
    options = parser.parse_args()
    if unknown := set(options.names) - set(LIBRARIES):
        parser.error(f"the libraries are {', '.join(LIBRARIES)}, not {', '.join(sorted(unknown))}")
    before = known(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    rows: dict[str, Row] = {}
    for name in options.names or LIBRARIES:
        root: Path | None = options.environments
        python = environment(root.absolute(), name) if root is not None else Path(sys.executable)
        rows[name] = (ABSENT, NOT_RUN, NOT_RUN) if python is None else examine(python, name)
        print(name, *rows[name], flush=True)
    if not options.check:
        # What could not be tried this time keeps what is known of it.
        tried = {name: row for name, row in rows.items() if row[0] != ABSENT or name not in before}
        merged = {name: row for name in LIBRARIES if (row := {**before, **tried}.get(name))}
        TABLE.write_text(table(merged), encoding="utf-8")
        print(f"wrote {TABLE.relative_to(ROOT)}")
    # As a test runner closes: what was not installed was skipped.
    marks = [mark for row in rows.values() for mark in row[1:]]
    print(f"{marks.count(TICK)} passed, {marks.count(CROSS)} failed, {marks.count(NOT_RUN)} skipped")
    return int(CROSS in marks)


if __name__ == "__main__":
    sys.exit(main())
