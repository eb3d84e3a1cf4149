"""Where the record of a run goes: TensorBoard, the console, a journal on disk. Each is a :class:`Sink`."""

from lightning_gradguard.diagnostics.console import Console
from lightning_gradguard.diagnostics.journal import Journal
from lightning_gradguard.diagnostics.journal_reader import JournalContents, Notice, Problem, read_journal
from lightning_gradguard.diagnostics.metrics import MetricsSink
from lightning_gradguard.diagnostics.scalars import scalars
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.diagnostics.tags import pinned_link
from lightning_gradguard.diagnostics.tensorboard import TensorBoardSink

__all__ = [
    "Console",
    "Event",
    "Journal",
    "JournalContents",
    "MetricsSink",
    "Notice",
    "Problem",
    "Sink",
    "TensorBoardSink",
    "pinned_link",
    "read_journal",
    "scalars",
]
