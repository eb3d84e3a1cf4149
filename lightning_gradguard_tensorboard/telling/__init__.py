"""How an incident stands, and what was found, tried, kept and taken back, in words for a person.

These are the only words there are: console, text, report, notebook and tab all say them. They are told from an
incident's JSON, so that an incident of any version can be told, and by this package, since it runs without the guard.
"""

from __future__ import annotations

from .finding import cause, evidence, findings, opening, reason, suspect
from .page import tell
from .record import Record, dicts, number, outcomes
from .standing import STATES, improved, remedies, result, state, watched, why_stopped
from .trials import became, left, levels, on_trial, pending, summary, treatment, trial, tried, undone, would_have
from .words import cause_named, clean, count, done, gains, level, optimizer_names, short, tidy

__all__ = [
    "STATES",
    "Record",
    "became",
    "cause",
    "cause_named",
    "clean",
    "count",
    "dicts",
    "done",
    "evidence",
    "findings",
    "gains",
    "improved",
    "left",
    "level",
    "levels",
    "number",
    "on_trial",
    "opening",
    "optimizer_names",
    "outcomes",
    "pending",
    "reason",
    "remedies",
    "result",
    "short",
    "state",
    "summary",
    "suspect",
    "tell",
    "tidy",
    "treatment",
    "trial",
    "tried",
    "undone",
    "watched",
    "why_stopped",
    "would_have",
]
