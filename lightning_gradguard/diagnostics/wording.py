"""Sentences for a person, shared by the console, TensorBoard's text and the report."""

from __future__ import annotations

import html
import math
import re

from lightning_gradguard.records import Blame, Incident

_DONE = {
    "skip": "skipped the step",
    "clip": "clipped the gradients",
    "backoff": "lowered the learning rate",
    "rollback": "rolled back to a good snapshot",
    "reinitialize": "re-initialised the layer",
    "regularize": "pulled the weights towards good ones",
    "augment": "augmented the batches",
    "swap-activation": "swapped an activation",
}


def clean(text: str) -> str:
    """Return text fit for one line of a terminal: control characters (escape sequences, newlines) made visible.

    >>> clean("conv\\x1b[31m1")
    'conv\\ufffd[31m1'
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no table cell, no HTML.

    >>> markdown("a|b_<i>")
    'a\\\\|b\\\\_&lt;i&gt;'
    """
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", html.escape(clean(text), quote=False))


def number(value: float) -> str:
    """Return a measured value in few characters: ``57``, ``0.013``, ``1.5e+10``, ``inf``."""
    if not math.isfinite(value):
        return repr(float(value))
    return f"{value:,.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def count(amount: int, noun: str) -> str:
    """Return ``1 step``, ``2 steps``, ``1,900 steps``."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def gains(blame: Blame) -> str:
    """Return what was measured of a suspect, such as ``forward gain 57 x``; empty where nothing was."""
    measured = (
        ("forward gain", blame.forward_gain),
        ("backward gain", blame.backward_gain),
        ("weights", blame.weight_ratio),
    )
    return ", ".join(f"{name} {number(value)} x" for name, value in measured if value is not None)


def suspect(incident: Incident) -> str:
    """Return ``first in conv4 (forward gain 57 x)``, or an empty string where nobody is blamed."""
    if not incident.blame:
        return ""
    first = incident.blame[0]
    name = "the batch" if first.layer == "batch" else f"first in {clean(first.layer) or 'the root module'}"
    evidence = gains(first)
    return f"{name} ({evidence})" if evidence else name


def done(remedies: tuple[str, ...]) -> str:
    """Return what was done, in words: ``skipped the step, lowered the learning rate``."""
    return ", ".join(_DONE.get(name, f"applied {clean(name)}") for name in remedies) or "nothing was changed"


def result(incident: Incident) -> str:
    """Return how an incident ended: ``calm again after 12 steps, helped``."""
    if incident.closed is None:
        return f"still open after {count(incident.alarms, 'alarming step')}"
    after = count(max(incident.closed - incident.step, 0), "step")
    if incident.helped:
        return f"calm again after {after}, helped"
    return f"given up after {after}, did not help" if incident.helped is False else f"ended after {after}"


def opening(incident: Incident) -> str:
    """Return the sentence that opens an incident: when, which form, where."""
    where = suspect(incident)
    return f"incident {incident.number:,} at step {incident.step:,}: {incident.form}" + (f", {where}" if where else "")
