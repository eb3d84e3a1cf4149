"""Small words: numbers, counts, and names for what was done and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from .record import Record, number

DONE = {
    "skip": "skipped the step",
    "clip": "clipped the gradients",
    "backoff": "lowered the learning rate",
    "rollback": "rolled back to a good snapshot",
    "reinitialize": "repaired the layer",
    "initialize": "re-initialised all layers",
    "clear": "cleared the gradients before each backward pass",
    "tune": "tuned the optimizer",
    "regularize": "pulled the weights towards good ones",
    "augment": "augmented the batches",
    "swap-activation": "swapped an activation",
}
_CAUSES = {
    "batch": "the data of that step",
    "layer": "a bad layer",
    "start": "the initialisation as a whole, or the scale of what it meets",
    "learning rate": "updates that are too large: the learning rate",
    "optimizer": "the optimizer's state",
    "optimizer settings": "a number that the optimizer was given",
    "activation": "a function inside the network that turns finite numbers into inf or NaN",
    "loss": "the loss function, or what lies between the model's output and it",
    "stale gradients": "gradients that are not cleared after an update: zero_grad is not called",
    "machine": "a machine that computed the step wrongly",
    "new regime": "data, loss or task have changed for good",
    "unknown": "could not be told",
}
SPENT = "all that may be tried was tried"
_PLAINER = (
    (re.compile(r"\bfirst aid\b"), "skipping or clipping"),
    (re.compile(r"\bin a row were held\b"), "in a row were skipped"),
    (re.compile(r"\bthe budget is spent\b"), SPENT),
    (re.compile(r"\bredrawn\b"), "re-initialised"),
)
"""Words that only who wrote the guard knows, and those for which there is another one: journals have them still."""
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?e[+-]?\d+(?![\w.])")
_COUNT = re.compile(r"(?<![\w.,])\d{4,}(?![\w.]\w|\w)")


def clean(text: str) -> str:
    """Return text fit for one line of a terminal: control characters (escape sequences, newlines) made visible.

    >>> clean("conv\\x1b[31m1")
    'conv\\ufffd[31m1'
    """
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def short(value: float) -> str:
    """Return a measured value in three digits, everywhere alike.

    >>> [short(v) for v in (0.0133, 57.25, 14943.0, 1.5e10, 0.00062, float("inf"))]
    ['0.0133', '57.2', '14,900', '1.5e10', '6.2e-4', 'inf']
    """
    if math.isnan(value):
        return "NaN"
    if not math.isfinite(value):
        return "inf" if value > 0 else "-inf"
    rounded = float(f"{value:.3g}")
    if rounded == 0.0 or 1e-3 <= abs(rounded) < 1e6:
        return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:.3g}"
    mantissa, exponent = f"{rounded:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def level(value: float) -> str:
    """Return the level of a loss."""
    return "NaN or unknown" if math.isnan(value) else short(value)


def reach(low: float, high: float) -> str:
    """Return the lowest and the highest value of a row, as the page's ``lines.js`` says them.

    >>> reach(0.005, 6.0), reach(0.1, 0.1)
    ('0.005 to 6', '0.1')
    """
    return short(low) if short(low) == short(high) else f"{short(low)} to {short(high)}"


def too_high(began: float, now: float, most: float) -> str:
    """Return what the shade on the strip of the learning rate means, in as many characters as there is room for.

    The page's ``rate.js`` says the same.

    >>> [too_high(2.0, 2.24, most) for most in (99, 40, 30)]
    ['too high: bound raised from 2 to 2.24 by calm steps', 'too high: bound raised from 2 to 2.24', \
'bound raised from 2 to 2.24']
    >>> too_high(2.0, 2.0, 99)
    'too high: bound 2'
    >>> too_high(2.0, 0.5, 99)
    'too high: bound lowered from 2 to 0.5'
    """
    moved = "" if short(began) == short(now) else "raised" if now > began else "lowered"
    bound = f"bound {moved} from {short(began)} to {short(now)}" if moved else f"bound {short(began)}"
    by = " by calm steps" if moved == "raised" else ""
    ways = (f"too high: {bound}{by}", f"too high: {bound}", bound, "too high")
    return next((one for one in ways if len(one) <= most), "")


def tidy(text: str) -> str:
    """Return a sentence with the numbers in it written as :func:`short` writes them.

    >>> tidy("norm 1.49e+04 is 1.8e+05 x the typical 0.175")
    'norm 14,900 is 180,000 x the typical 0.175'
    >>> tidy("went back to step 1450. layers.1000 and conv2048 stay")
    'went back to step 1,450. layers.1000 and conv2048 stay'
    """
    return _COUNT.sub(lambda found: f"{int(found[0]):,}", _NUMBER.sub(lambda found: short(float(found[0])), text))


def plain(text: str) -> str:
    """Return a sentence of a decision in words that need no explanation.

    >>> plain("first aid is all that is left")
    'skipping or clipping is all that is left'
    """
    for pattern, words in _PLAINER:
        text = pattern.sub(words, text)
    return text


def fold(notices: Iterable[tuple[int, str]]) -> list[tuple[int, int, int, str]]:
    """Return what was said with its first and last step and how often, oldest first.

    What differs only in its numbers is said once, as it was said last.

    >>> fold([(20, "drift: 3 x"), (90, "drift: 4.5 x")])
    [(20, 90, 2, 'drift: 4.5 x')]
    """
    folded: dict[str, tuple[int, int, int, str]] = {}
    for step, message in notices:
        first, _, times, _ = folded.pop(alike(message), (step, step, 0, ""))
        folded[alike(message)] = (first, step, times + 1, message)
    return list(folded.values())


def alike(message: str) -> str:
    """Return a key under which sentences are the same that differ only in their numbers."""
    return re.sub(r"(?<![\w.])[+-]?\d[\d.,e+-]*", "#", message)


def repeated(first: int, last: int, times: int) -> str:
    """Return when something was said: ``step 90``, or ``4 times, steps 20 to 90``."""
    return f"step {last:,}" if times == 1 else f"{times:,} times, steps {first:,} to {last:,}"


def count(amount: int, noun: str) -> str:
    """Return ``1 step``, ``2 steps``, ``1,900 steps``."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def done(names: Sequence[str]) -> str:
    """Return what was done, in words: ``skipped the step, lowered the learning rate``."""
    return ", ".join(DONE.get(name, f"applied {clean(name)}") for name in names) or "nothing was changed"


def cause_named(name: str) -> str:
    """Return a cause in words, one that this version does not know as it is."""
    return _CAUSES.get(name, clean(name))


def gains(blame: Record) -> str:
    """Return what was measured of a suspect, such as ``forward gain 57 x``; empty where nothing was."""
    broken = blame.get("broken") is True
    measured = (
        ("forward gain", blame.get("forward_gain")),
        ("backward gain", blame.get("backward_gain")),
        ("weights", None if broken else blame.get("weight_ratio")),
    )
    told = [f"{name} {short(number(value))} x" for name, value in measured if value is not None]
    told = [f"{one} their usual size" if one.startswith("weights") else one for one in told]
    return ", ".join([*told, "weights that are not finite"] if broken else told)


def optimizer_names(layers: Sequence[Sequence[str]]) -> list[str]:
    """Name each optimizer by the module that all its layers have in common, or else by what they are in.

    By number where that says nothing.

    >>> optimizer_names([["generator.0", "generator.2"], ["critic.0"]])
    ['generator', 'critic']
    >>> optimizer_names([["a.0", "b.0"], []])
    ['a, b', 'optimizer 1']
    """
    names = []
    for index, own in enumerate(layers):
        paths = [name.split(".") for name in own]
        same = 0
        while paths and all(same < len(path) - 1 and path[same] == paths[0][same] for path in paths):
            same += 1
        tops = list(dict.fromkeys(path[0] for path in paths))
        named = ".".join(paths[0][:same]) if same else ", ".join(tops[:2]) + (", ..." if tops[2:] else "")
        names.append(named or f"optimizer {index}")
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names)]
