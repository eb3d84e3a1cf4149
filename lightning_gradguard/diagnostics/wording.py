"""Sentences for a person, shared by the console, TensorBoard's text and the report.

The words themselves are those of the tab (:mod:`lightning_gradguard_tensorboard.telling`), which tells incidents of
every version from their JSON; here they are said of records.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Literal, cast

from lightning_gradguard.records import Action, Incident, Outcome, Suspect, TrialRecord, to_json
from lightning_gradguard_tensorboard import telling
from lightning_gradguard_tensorboard.telling import cause_named as cause_named
from lightning_gradguard_tensorboard.telling import clean as clean
from lightning_gradguard_tensorboard.telling import count as count
from lightning_gradguard_tensorboard.telling import done as done
from lightning_gradguard_tensorboard.telling import level as level
from lightning_gradguard_tensorboard.telling import short as number

State = Literal["open", "stopped", "helped", "kept", "calm", "watched", "anew", "failed"]
__all__ = ["cause_named", "clean", "count", "done", "level", "number"]


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no table cell, no HTML.

    >>> markdown("a|b_<i>")
    'a\\\\|b\\\\_&lt;i&gt;'
    """
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(clean(text), quote=False))


def gains(blame: Suspect) -> str:
    """Return what was measured of a suspect, such as ``forward gain 57 x``; empty where nothing was."""
    return telling.gains(to_json(blame))


def suspect(incident: Incident) -> str:
    """Return ``first in conv4 (forward gain 57 x)``, or an empty string where nobody is blamed."""
    return telling.suspect(to_json(incident))


def opening(incident: Incident) -> str:
    """Return the sentence that opens an incident: when, which form, where."""
    return telling.opening(to_json(incident))


def result(incident: Incident) -> str:
    """Return how an incident ended: ``calm again after 12 steps, helped``."""
    return telling.result(to_json(incident))


def state(incident: Incident) -> State:
    """Return how an incident stands, a key of ``telling.STATES``."""
    return cast(State, telling.state(to_json(incident)))


def improved(trial: TrialRecord, incident: Incident) -> bool:
    """Return whether a treatment was kept, and the loss was the better for it."""
    return telling.improved(to_json(trial), to_json(incident))


def cause(incident: Incident) -> str:
    """Return what was found to be at fault; empty if unsaid."""
    return telling.cause(to_json(incident))


def findings(incident: Incident, *, trials: bool = True) -> Iterable[tuple[str, str]]:
    """Return what is known of cause and treatment, as it is told: ``("cause", "the learning rate")``, and so on.

    Args:
        incident: The incident.
        trials: Whether to tell of the treatments one by one, which a table tells better.
    """
    return list(telling.findings(to_json(incident), trials=trials))


def trial(record: TrialRecord, incident: Incident) -> str:
    """Return what was tried, what became of it and why."""
    return telling.trial(to_json(record), to_json(incident))


def tried(record: TrialRecord, incident: Incident) -> str:
    """Return a treatment in words, a repair by what it came to: ``restored the layer``."""
    return telling.tried(to_json(record), to_json(incident))


def acts(incident: Incident, but: Iterable[str] = ()) -> str:
    """Return all that was done, each act once, but for some remedies: ``skipped the step, restored the layer``."""
    return telling.acts(to_json(incident), but)


def deed(outcome: Outcome) -> str:
    """Return what a remedy did, with what it tells of it: ``skipped the step: nothing was updated``."""
    return telling.deed(to_json(outcome))


def deeds(incident: Incident) -> str:
    """Return all that was done, treatments with what became of them."""
    return telling.deeds(to_json(incident))


def became(record: TrialRecord, incident: Incident) -> str:
    """Return what became of a treatment, and why."""
    return telling.became(to_json(record), to_json(incident))


def levels(record: TrialRecord, incident: Incident | None = None) -> str:
    """Return the levels of the loss: ``loss before the trouble 0.04, in it 6.1, at the end 6``."""
    return telling.levels(to_json(record), None if incident is None else to_json(incident))


def named(blame: Suspect) -> str:
    """Return a suspect as a person calls it: ``conv4``, ``the batch of rank 1, sample 5``."""
    return telling.named(to_json(blame))


def on_trial(incident: Incident) -> str:
    """Return the treatment that is still on trial in an open incident; else nothing."""
    return telling.on_trial(to_json(incident))


def would_have(incident: Incident) -> str:
    """Return what would have been done where nothing was; else nothing."""
    return telling.would_have(to_json(incident))


def undone(action: Action) -> str:
    """Return what is said of an action whose decision changed nothing: what it would have done, and why."""
    return telling.undone(to_json(action))


def evidence(action: Action) -> str:
    """Return what was measured, and what it was compared with: ``norm 310 against a limit of 3.7 (84 x)``."""
    return telling.evidence(to_json(action))


def reason(action: Action) -> str:
    """Return the sentence that a detector gave with its verdict."""
    return telling.reason(to_json(action))
