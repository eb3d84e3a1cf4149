"""What remedies have done: one act, one word, whoever tells it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .record import Record, actions_of, applied, texts
from .words import DONE, clean, done, plain, tidy

_REPAIRS = {
    "restored from": "restored the layer",
    "rescaled": "rescaled the layer",
    "divided by": "rescaled the layer",
    "redrawn": "re-initialised the layer",
    "set to zero": "set stray weights of the layer to zero",
}
"""What a repair is called by what the remedy says that it did."""
_COULD = {
    "skip": "skip the step",
    "clip": "clip the gradients",
    "backoff": "lower the learning rate",
    "rollback": "roll back",
    "reinitialize": "repair the layer",
    "initialize": "re-initialise all layers",
    "clear": "clear the gradients before each backward pass",
    "tune": "tune the optimizer",
    "regularize": "pull the weights towards good ones",
    "augment": "augment the batches",
    "swap-activation": "swap an activation",
}
_SAID_BY_THE_ACT = re.compile(r"^(?:held|skipped) the step(?:: | (?=on the device)|$)")


def treatment(names: Sequence[str], outcomes: Iterable[Record] = ()) -> str:
    """Return what was done as one: ``rolled back to a good snapshot and lowered the learning rate``."""
    made = _acts(names, list(outcomes)) or [done(())]
    return f"{', '.join(made[:-1])} and {made[-1]}" if made[1:] else made[0]


def acts(record: Record, but: Iterable[str] = ()) -> str:
    """Return all that was done in an incident, each act once: ``skipped the step, restored the layer``.

    Args:
        record: The incident.
        but: Names of remedies to leave out.
    """
    made = [one for action in actions_of(record) for one in applied(action) if one.get("remedy") not in set(but)]
    names = list(dict.fromkeys(str(one.get("remedy")) for one in made))
    return ", ".join(_acts(names, made)) or "nothing was changed"


def act(outcome: Record) -> str:
    """Return what one remedy did, or could not do: ``restored the layer``, ``could not roll back``."""
    name = str(outcome.get("remedy"))
    if outcome.get("applied") is False:
        return f"could not {_COULD.get(name, f'apply {clean(name)}')}"
    return _acts([name], [outcome])[0]


def detail(outcome: Record) -> str:
    """Return what a remedy tells of its act, but for the act itself, which :func:`act` tells."""
    if _to_the_start(outcome):
        return ""
    told = _SAID_BY_THE_ACT.sub("", str(outcome.get("detail") or ""))
    return tidy(plain(re.sub(r"^learning rate (?=\d)", "to ", told)))


def deed(outcome: Record) -> str:
    """Return an act with what is told of it: ``skipped the step: nothing was updated``."""
    told = detail(outcome)
    return act(outcome) + (f": {told}" if told else "")


def _acts(names: Iterable[str], outcomes: Sequence[Record]) -> list[str]:
    return [_named(name, [one for one in outcomes if one.get("remedy") == name]) for name in names]


def _named(name: str, outcomes: Sequence[Record]) -> str:
    if name == "reinitialize":
        return _repair(outcomes)
    if name == "rollback" and outcomes and all(map(_to_the_start, outcomes)):
        return "rolled back to the start"
    return done((name,))


def _to_the_start(outcome: Record) -> bool:
    return outcome.get("back_to") == 0 or outcome.get("detail") == "went back to step 0"


def _repair(outcomes: Sequence[Record]) -> str:
    said = " ".join(str(outcome.get("detail")) for outcome in outcomes)
    kinds = list(dict.fromkeys(words for key, words in _REPAIRS.items() if key in said))
    told = kinds[0] if len(kinds) == 1 else DONE["reinitialize"]
    many = any(len(texts(outcome.get("layers"))) > 1 for outcome in outcomes)
    return told.replace("the layer", "the layers") if many else told
