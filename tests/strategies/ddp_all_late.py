"""All scenarios of DDP that have a guard, with the CPU in a GPU's part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tests.strategies import ddp_scenarios as ddp
from tests.strategies.ddp_on_a_device import recorded


def late(scenario: Callable[[int, Path], dict[str, Any]]) -> Callable[[int, Path], dict[str, Any]]:
    """Return the scenario with its collectives in their order, in each of its runs."""

    def told(rank: int, root: Path) -> dict[str, Any]:
        made: list[Any] = []
        run = ddp.run

        def running(module: Any, batches: Any, at: Path, guard: Any, **options: Any) -> dict[str, Any]:
            made.append(recorded(guard))
            return run(module, batches, at, guard, **options)

        with mock.patch.object(ddp, "run", running):
            ended = scenario(rank, root)
        left = sum(one["left"] for one in made)
        return ended | {"collectives": [one["collectives"] for one in made], "left": left}

    return told


SCENARIOS = {
    name: late(scenario) for name, scenario in ddp.SCENARIOS.items() if not name.startswith(("plain", "never seen"))
}
