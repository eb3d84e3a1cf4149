"""What every test shares: one thread, one seed, and a quiet Lightning."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "house", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


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
