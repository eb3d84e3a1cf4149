"""Run every test behind a cell of the compatibility matrix, under both twins, and write the table from what passed.

A file of tests is one step. With ``--state FILE`` each is noted there, so that a run that was cut off goes on where it
was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.compatibility.matrix import ROOT, TABLE, Matrix, files
from tests.twin import VARIABLE


def examine(file: Path, *, twin: bool) -> dict[str, Any]:
    """Run the tests of one file in a process of its own; return pytest's exit status, and its cells."""
    with tempfile.TemporaryDirectory() as directory:
        into = Path(directory) / "cells.json"
        asked = {VARIABLE: "1"} if twin else {}
        kept = {key: value for key, value in os.environ.items() if key != VARIABLE}
        command = [sys.executable, "-m", "tests.compatibility", "--file", str(file), "--into", str(into)]
        done = subprocess.run(command, cwd=ROOT, env={**kept, **asked}, check=False)
        cells = json.loads(into.read_text(encoding="utf-8")) if into.exists() else []
        return {"status": done.returncode, "cells": cells}


def _one(file: Path, into: Path) -> int:
    matrix = Matrix(twin=bool(os.environ.get(VARIABLE)))
    status = int(pytest.main(["-q", "-m", "slow or not slow", str(file)], plugins=[matrix]))
    into.write_text(json.dumps(matrix.saved()), encoding="utf-8")
    return status


def main() -> int:
    """Return 1 if a test failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility", description=__doc__)
    parser.add_argument("--state", type=Path, help="what has been run so far")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.file is not None:
        return _one(options.file, options.into)
    state: dict[str, Any] = {}
    if options.state is not None and options.state.exists():
        state = json.loads(options.state.read_text(encoding="utf-8"))
    twins = [False, True] if find_spec("pytorch_lightning") is not None else [False]
    matrix, bad = Matrix(), False
    for twin in twins:
        for file in files():
            key = f"{file.relative_to(ROOT).as_posix()}{' under the twin' if twin else ''}"
            if key not in state:
                state[key] = examine(file, twin=twin)
                if options.state is not None:
                    options.state.write_text(json.dumps(state), encoding="utf-8")
            matrix.take(state[key]["cells"], twin=twin)
            # 5: there was no test to run under the twin.
            bad = bad or state[key]["status"] not in (0, 5)
    import lightning

    versions = f"torch {torch.__version__}, lightning {lightning.__version__}, Python {platform.python_version()}"
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(matrix.table(versions), encoding="utf-8")
    print(f"wrote {TABLE.relative_to(ROOT)}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
