"""One line per incident on the console, through the standard ``logging`` module."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.records import Incident, Window
from lightning_gradguard_tensorboard.telling import LASTING, alike, optimizer_names, repeated, tidy

logger = logging.getLogger("lightning_gradguard")

LONGEST = 280
"""Characters of a line about an incident; what does not fit is in the journal, and in the report made of it."""
_MORE = "; more in the journal"


class Console(Sink):
    """Log incidents to the logger ``lightning_gradguard``, as warnings: who sees one open sees how it ends.

    A line tells what is new since the last line of the same incident, in at most :data:`LONGEST` characters: a
    treatment that is taken back as soon as that is known, and the end with what has not been said. Where there are
    several optimizers, each is named by the modules that it trains. A progress bar of tqdm's makes room for the line.

    An incident that goes on speaks again only when it has news (another remedy, another suspect) or when its count of
    alarms has doubled, so that a thousand bad steps are ten lines.
    """

    def __init__(self) -> None:
        self._told: dict[int, tuple[object, ...]] = {}
        self._done: dict[int, tuple[str, ...]] = {}
        self._found: dict[int, set[tuple[str, str]]] = {}
        self._open: dict[int, Incident] = {}
        self._noticed: dict[str, tuple[int, int]] = {}
        self._layers: dict[int, Sequence[str]] = {}
        if not logger.hasHandlers():
            # Where nobody has set logging up, Python would print warnings only, and drop that all is well again.
            logger.addHandler(logging.StreamHandler())
            logger.setLevel(logging.INFO)

    def window(self, window: Window) -> None:
        """Learn which optimizers there are, and what they train."""
        self._layers[window.optimizer] = window.layers

    def incident(self, incident: Incident, event: Event) -> None:
        """Log one line about an incident."""
        number = f"incident {incident.number:,}"
        if event == "closed":
            at = "" if incident.closed is None else f" at step {incident.closed:,}"
            self._say(incident, f"{number} closed{at}: {wording.result(incident)}", over=True)
            for known in (self._told, self._done, self._found, self._open):
                known.pop(incident.number, None)
            return
        self._open[incident.number] = incident
        tried = (incident.trials, wording.on_trial(incident), wording.would_have(incident))
        news = (incident.remedies, incident.culprit, incident.form, incident.alarms.bit_length(), tried)
        before = self._told.get(incident.number)
        if event == "acted" and before == news:
            return
        self._told[incident.number] = news
        said, on_trial = self._done.get(incident.number, ()), LASTING if tried[1] else ()
        self._done[incident.number] = incident.remedies
        if before is None:
            # A treatment on trial is told as one.
            line = f"{wording.opening(incident)}; {wording.acts(incident, on_trial)}"
            line += f" ({wording.count(incident.alarms, 'alarming step')} so far)" if event == "acted" else ""
        else:
            # The line before has told the first step, and what was done: where a long incident has come to is news.
            now = f", step {incident.actions[-1].step:,}" if incident.actions else ""
            line = f"{number}{now}: {wording.count(incident.alarms, 'alarming step')} so far"
            told = {*said, *on_trial}
            line += f"; {wording.acts(incident, told)}" if set(incident.remedies) - told else ""
            line += incident.where() if before[1] != incident.culprit else ""
        self._say(incident, line)

    def _say(self, incident: Incident, line: str, *, over: bool = False) -> None:
        """Log a line with what has been found since the last one; the cause is told when it is over."""
        known = self._found.setdefault(incident.number, set())
        found = [(name, text) for name, text in wording.findings(incident) if over or name != "cause"]
        new = [(name, text) for name, text in found if (name, _told_by(name, text)) not in known]
        known.update((name, _told_by(name, text)) for name, text in found)
        with _between_bars():
            logger.warning("%s", fitting(f"{self._who(incident.optimizer)}: {line}", new))

    def _who(self, optimizer: int) -> str:
        """Return who speaks: of several optimizers which one."""
        indices = sorted(self._layers.keys() | {optimizer})
        if len(indices) == 1 and not optimizer:
            return "GradGuard"
        names = optimizer_names([self._layers.get(index, ()) for index in indices])
        name = names[indices.index(optimizer)] if optimizer in self._layers else f"optimizer {optimizer}"
        return f"GradGuard ({wording.clean(name)})"

    def close(self) -> None:
        """Log of each incident that is open at the end of the run how it stands."""
        for incident in self._open.values():
            line = f"incident {incident.number:,} at the end of the run: {wording.result(incident)}"
            self._say(incident, line, over=True)
        self._open.clear()

    def notice(self, step: int, message: str) -> None:
        """Log one sentence that asks for no remedy; one that repeats itself only as often as its count doubles."""
        first, times = self._noticed.get(alike(message), (step, 0))
        self._noticed[alike(message)] = first, times + 1
        if times & (times + 1):
            return
        again = f" ({repeated(first, step, times + 1)})" if times else ""
        with _between_bars():
            logger.info("GradGuard: at step %s: %s%s", f"{step:,}", tidy(wording.clean(message)), again)


def fitting(line: str, findings: Iterable[tuple[str, str]]) -> str:
    """Return a line with its findings: as they are if they fit, else shorter, else as many as fit, the last one cut.

    What a witness has seen goes before what was done is cut.

    >>> fitting("incident 1", [("cause", "the loss"), ("tried", "this " * 90)])[-42:]
    'this this this this …; more in the journal'
    """
    found = list(findings)
    for kept in (found, [one for one in found if one[0] != "witness"]):
        for shorten in (str, _without_numbers, _without_reasons):
            whole = "; ".join([line, *(f"{name}: {shorten(text)}" for name, text in kept)])
            if len(whole) <= LONGEST:
                return whole
    room = LONGEST - len(_MORE)
    if len(whole) <= room:
        return whole + _MORE
    cut = whole[: room - 2].rpartition(" ")[0]
    return f"{cut.rpartition(' (')[0] if cut.count('(') > cut.count(')') else cut} …{_MORE}"


def _without_numbers(text: str) -> str:
    """Return a finding without what stands in brackets at its end."""
    return text.rpartition(" (")[0] if text.endswith(")") and " (" in text else text


def _without_reasons(text: str) -> str:
    """Return of a trial only what became of it, and when."""
    tried, became, why = _without_numbers(text).replace(" to a good snapshot", "").partition(": ")
    return tried + became + why.partition(", ")[0]


def _between_bars() -> AbstractContextManager[Any]:
    """Return a block in which tqdm's progress bars are out of the way, where there are any.

    A line would land at the end of one.
    """
    make_room = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "external_write_mode", nullcontext)
    found: AbstractContextManager[Any] = make_room()
    return found


def _told_by(name: str, text: str) -> str:
    """Return by what a finding is known again: a trial by what comes before its end, since that may change."""
    return text.partition(": ")[0] if name == "tried" else text
