"""Let ``pytorch_lightning`` stand in for ``lightning.pytorch``, so that any test runs under the twin as it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

VARIABLE = "GRADGUARD_TESTS_TWIN"
"""Environment variable that asks for it; processes started by tests inherit it."""
TWINS = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}


class StandIn(MetaPathFinder, Loader):
    """Import the twin's module wherever one of ``lightning`` is asked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for what has a twin."""
        return ModuleSpec(fullname, self) if any(f"{fullname}.".startswith(f"{name}.") for name in TWINS) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the twin itself."""
        name = next(name for name in TWINS if f"{spec.name}.".startswith(f"{name}."))
        module = import_module(TWINS[name] + spec.name.removeprefix(name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is: it has been executed under its own name."""
        spec = module.__spec__
        assert spec is not None
        module.__spec__ = spec.loader_state


def stand_in() -> None:
    """Let the twin stand in from now on."""
    assert not any(name in sys.modules for name in TWINS), "lightning has been imported already"
    sys.meta_path.insert(0, StandIn())
