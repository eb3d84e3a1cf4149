"""Where the record of a run goes: TensorBoard, the console, a journal on disk. Each is a :class:`Sink`."""

import importlib
from typing import TYPE_CHECKING, Any

from lightning_gradguard.diagnostics.console import Console
from lightning_gradguard.diagnostics.journal import Journal
from lightning_gradguard.diagnostics.metrics import MetricsSink
from lightning_gradguard.diagnostics.scalars import scalars
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.diagnostics.tags import pinned_link

if TYPE_CHECKING:
    from lightning_gradguard.diagnostics.alerts import AlertSink
    from lightning_gradguard.diagnostics.journal_reader import (
        JournalContents,
        Notice,
        Problem,
        read_journal,
        read_runs,
    )
    from lightning_gradguard.diagnostics.tensorboard import TensorBoardSink
    from lightning_gradguard.diagnostics.webhook import Webhook

__all__ = [
    "AlertSink",
    "Console",
    "Event",
    "Journal",
    "JournalContents",
    "MetricsSink",
    "Notice",
    "Problem",
    "Sink",
    "TensorBoardSink",
    "Webhook",
    "pinned_link",
    "read_journal",
    "read_runs",
    "scalars",
]


# TensorBoard's protocol buffers take longer to import than all the rest, a run that starts reads no journal, and few
# send webhooks.
_LATE = {"TensorBoardSink": "tensorboard", "Webhook": "webhook", "AlertSink": "alerts"} | dict.fromkeys(
    ("JournalContents", "Notice", "Problem", "read_journal", "read_runs"), "journal_reader"
)


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
