"""What every test shares: one thread, one seed, and a quiet Lightning."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

settings.register_profile(
    "house", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that lets the browser tests take the documentation's pictures."""
    parser.addoption(
        "--pictures", action="store_true", help="write the screenshots of the browser tests to docs/images"
    )


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest) -> Path | None:
    """Where screenshots go, or None: a test run leaves the checkout as it is unless it is told otherwise."""
    return Path(__file__).parents[1] / "docs" / "images" if request.config.getoption("--pictures") else None


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Debian's chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _same_conditions() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.disable(logging.NOTSET)
    with warnings.catch_warnings():
        # Lightning's advice on workers and loggers; what the guard itself warns of is checked where it matters.
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*num_workers.*")
        yield


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Lightning's launcher writes ranks and a port into the environment, which a later script takes for its own."""
    with mock.patch.dict(os.environ):
        yield
