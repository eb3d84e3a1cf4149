"""How an incident stands, and what was found, tried, kept and taken back, in words for a person.

These are the only words there are: console, text, report, notebook and tab all say them. They are told from an
incident's JSON, so that an incident of any version can be told, and by this package, since it runs without the guard.
"""

from __future__ import annotations

from .acts import act, acts, deed, treatment
from .advice import advice, last_good
from .finding import cause, evidence, findings, is_layer, named, opening, quantity, reason, suspect, the_rate_too
from .held import QUARTER, Held, held_back
from .page import tell
from .record import Record, dicts, number, outcomes
from .standing import STATES, improved, remedies, result, state, watched, why_stopped
from .trials import (
    LASTING,
    became,
    because,
    deeds,
    left,
    levels,
    on_trial,
    pending,
    summary,
    trial,
    tried,
    undone,
    would_have,
)
from .witness import ROWS
from .words import (
    SPENT,
    alike,
    cause_named,
    clean,
    count,
    done,
    fold,
    gains,
    level,
    optimizer_names,
    plain,
    repeated,
    short,
    tidy,
    too_high,
)

__all__ = [
    "LASTING",
    "QUARTER",
    "ROWS",
    "SPENT",
    "STATES",
    "Held",
    "Record",
    "act",
    "acts",
    "advice",
    "alike",
    "became",
    "because",
    "cause",
    "cause_named",
    "clean",
    "count",
    "deed",
    "deeds",
    "dicts",
    "done",
    "evidence",
    "findings",
    "fold",
    "gains",
    "held_back",
    "improved",
    "is_layer",
    "last_good",
    "left",
    "level",
    "levels",
    "named",
    "number",
    "on_trial",
    "opening",
    "optimizer_names",
    "outcomes",
    "pending",
    "plain",
    "quantity",
    "reason",
    "remedies",
    "repeated",
    "result",
    "short",
    "state",
    "summary",
    "suspect",
    "tell",
    "the_rate_too",
    "tidy",
    "too_high",
    "treatment",
    "trial",
    "tried",
    "undone",
    "watched",
    "why_stopped",
    "would_have",
]
