"""Run every test behind a cell of the compatibility matrix, and write the table from what passed."""

from __future__ import annotations

import platform
import sys

import lightning
import pytest
import torch

from tests.compatibility.matrix import ROOT, TABLE, Matrix, files


def main() -> int:
    """Return pytest's exit status."""
    matrix = Matrix()
    status = pytest.main(["-q", "-m", "slow or not slow", *map(str, files())], plugins=[matrix])
    versions = f"torch {torch.__version__}, lightning {lightning.__version__}, Python {platform.python_version()}"
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(matrix.table(versions), encoding="utf-8")
    print(f"wrote {TABLE.relative_to(ROOT)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
