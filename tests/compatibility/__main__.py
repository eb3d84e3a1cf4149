"""Run every test behind a cell of the compatibility matrix, under both twins, and write the table from what passed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.compatibility.matrix import ROOT, TABLE, Matrix, files
from tests.twin import VARIABLE


def main() -> int:
    """Return pytest's exit status; an argument is where a run under the twin leaves its outcomes."""
    matrix = Matrix(twin=bool(os.environ.get(VARIABLE)))
    status = int(pytest.main(["-q", "-m", "slow or not slow", *map(str, files())], plugins=[matrix]))
    if matrix.twin:
        Path(sys.argv[1]).write_text(json.dumps(matrix.outcomes()), encoding="utf-8")
        return status
    if find_spec("pytorch_lightning") is not None:
        status = status or _under_the_twin(matrix)
    import lightning

    versions = f"torch {torch.__version__}, lightning {lightning.__version__}, Python {platform.python_version()}"
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(matrix.table(versions), encoding="utf-8")
    print(f"wrote {TABLE.relative_to(ROOT)}")
    return status


def _under_the_twin(matrix: Matrix) -> int:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "outcomes.json"
        command = [sys.executable, "-m", "tests.compatibility", str(file)]
        done = subprocess.run(command, env={**os.environ, VARIABLE: "1"}, check=False)
        if file.exists():
            matrix.join(json.loads(file.read_text(encoding="utf-8")))
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
