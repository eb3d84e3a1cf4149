"""Register the markers that these tests use, and leave them out where torch is too old for the contenders."""

from __future__ import annotations

import pytest
import torch

# The contenders call torch.nn.utils.get_total_norm, which torch has since 2.6; the package itself runs on older ones.
collect_ignore_glob = [] if hasattr(torch.nn.utils, "get_total_norm") else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Make ``-m "not slow"`` known."""
    config.addinivalue_line("markers", "slow: trains whole cases; minutes")
