"""What happens to one of four ranks under DDP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.strategies.ddp_scenarios import ADAM, backing_off, corrupt_on, healthy, nan_on, without_that_batch

SCENARIOS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "plain": partial(healthy, guarded=False, norm=False, optimizer=ADAM),
    "guarded": partial(healthy, guarded=True, norm=False, optimizer=ADAM),
    "NaN": partial(nan_on, 2, False),
    "never seen": partial(without_that_batch, False),
    "corrupt": partial(corrupt_on, 3),
    "backing off": backing_off,
}
