"""Register the markers that these tests use."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Make ``-m "not slow"`` known."""
    config.addinivalue_line("markers", "slow: trains whole cases; minutes")
