"""A pytest plugin that puts a callback into every Trainer: the guard, one that does nothing, or none."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.trainer.connectors import callback_connector

from lightning_gradguard.callback import from_environment

VARIABLE = "GRADGUARD_SUITE"


class Nothing(Callback):
    """Do nothing, but be there, and have a state."""

    def state_dict(self) -> dict[str, Any]:
        """Return a state, as the guard has one."""
        return {"nothing": 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""


CALLBACKS = {"guard": from_environment, "nothing": lambda: [Nothing()], "none": list}


def pytest_configure() -> None:
    """Let Lightning load it as it loads callbacks of entry points."""
    load, own = callback_connector._load_external_callbacks, CALLBACKS[os.environ[VARIABLE]]

    def with_ours(group: str) -> list[Any]:
        # What is installed besides must not come in twice.
        return [c for c in load(group) if type(c).__name__ != "GradGuard"] + list(own())

    callback_connector._load_external_callbacks = with_ours
