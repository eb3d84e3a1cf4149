"""Lightning's two names: ``lightning.pytorch`` and ``pytorch_lightning`` are one code, published twice.

This file alone knows both. A class can be a callback of both, and neither is imported for the other's sake.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

NAMES = ("lightning.pytorch", "pytorch_lightning")


def callbacks() -> tuple[type, ...]:
    """Return the class ``Callback`` of every twin that is loaded; import one where none is."""
    # One that is still being imported has no such class yet.
    found = [kind for name in NAMES if (kind := getattr(sys.modules.get(name), "Callback", None)) is not None]
    if not found:
        try:
            found = [import_module(NAMES[0]).Callback]
        except ModuleNotFoundError:
            found = [import_module(NAMES[1]).Callback]
    return tuple(dict.fromkeys(found))


def adopt(kind: type) -> None:
    """Make a callback of one twin a callback of every twin that is loaded: ``isinstance`` then holds in both."""
    if missing := tuple(base for base in callbacks() if not issubclass(kind, base)):
        kind.__bases__ = (*kind.__bases__, *missing)


def part(owner: object, path: str) -> Any:
    """Return what ``path`` names in the twin that ``owner`` (a Trainer) is of: ``loggers.TensorBoardLogger``."""
    roots = [base.__module__ for base in type(owner).__mro__]
    loaded = [name for name in NAMES if name in sys.modules]
    name = next((n for n in loaded if any(r == n or r.startswith(f"{n}.") for r in roots)), loaded[0])
    module, _, wanted = f"{name}.{path}".rpartition(".")
    return getattr(import_module(module), wanted)
