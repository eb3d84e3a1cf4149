"""A calm step is a walk through the house: no room is entered more than three times.

A *room* is a folder or file at the top of the package. It is *entered* when one of its functions is called from another
room, or from outside: from the last function of the package that is still running, whatever lies between. Reading a
value there is no visit, be it a field, an attribute or a property.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

import lightning_gradguard
from lightning_gradguard import Guard
from tests.builders import mlp, regression

ROOT = Path(lightning_gradguard.__file__).parent
MOST = 3


def room_of(code: CodeType) -> str | None:
    file = Path(code.co_filename)
    return file.relative_to(ROOT).parts[0].removesuffix(".py") if file.is_relative_to(ROOT) else None


def properties() -> set[CodeType]:
    found = set()
    for module in pkgutil.walk_packages(lightning_gradguard.__path__, "lightning_gradguard."):
        if module.name.partition(".")[2].partition(".")[0] == "integrations":
            continue  # Those need what an extra brings.
        for _, kind in inspect.getmembers(import_module(module.name), inspect.isclass):
            values = vars(kind).values()
            found |= {value.fget.__code__ for value in values if isinstance(value, property) and value.fget}
    return found


class Walk:
    """Note who enters which room, while it is installed with ``sys.setprofile``."""

    def __init__(self) -> None:
        self.entered: list[tuple[str | None, str, str]] = []
        self._inside: list[str | None] = [None]
        self._properties = properties()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            here, room = self._inside[-1], room_of(frame.f_code)
            if room is not None and room != here and frame.f_code not in self._properties:
                self.entered.append((here, room, frame.f_code.co_name))
            self._inside.append(here if room is None else room)
        elif event == "return" and len(self._inside) > 1:
            self._inside.pop()

    def most(self) -> dict[str, int]:
        """Return the rooms that are entered too often."""
        return {room: n for room, n in Counter(room for _, room, _ in self.entered).items() if n > MOST}


def calm_step(install: Callable[[Any], None], walk: Walk) -> Guard:
    """Train a network that is well, and walk along with one whole step of the host's: judged, made, and over."""
    network = mlp(norm=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    guard = Guard(network)
    for index, batch in enumerate(regression(126)):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(batch[0]), batch[1])
        loss.backward()
        last = index == 125
        if last:
            install(walk)
        guard.before_step(optimizer, loss=loss, batch=batch, batch_index=index)
        optimizer.step()
        guard.after_step()
        if last:
            install(None)
    return guard


def test_a_calm_step_enters_no_room_more_than_three_times() -> None:
    walk = Walk()
    before = sys.getprofile()
    guard = calm_step(lambda profile: sys.setprofile(profile or before), walk)
    assert guard.incidents == ()
    assert {"guard", "step", "statistics", "detectors", "remedies", "diagnostics"} <= {
        room for _, room, _ in walk.entered
    }
    assert walk.most() == {}, walk.entered


def test_who_goes_back_and_forth_is_counted() -> None:
    walk = Walk()
    guard = Guard(mlp())
    before = sys.getprofile()
    sys.setprofile(walk)
    for _ in range(4):
        guard.after_step()
        guard.incidents  # noqa: B018 - a value that is read
    sys.setprofile(before)
    assert walk.most() == {"guard": 4, "tracks": 4}
