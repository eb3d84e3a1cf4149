"""One line per incident on the console, through the standard ``logging`` module."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.diagnostics.sink import Event, Sink
from lightning_gradguard.records import Incident
from lightning_gradguard_tensorboard.telling import alike, repeated, tidy

logger = logging.getLogger("lightning_gradguard")


class Console(Sink):
    """Log incidents to the logger ``lightning_gradguard``, as warnings: who sees one open sees how it ends.

    What was found, tried, kept and taken back is told with the end; a treatment that is taken back before it, as soon
    as that is known. A progress bar of tqdm's makes room for the line.

    An incident that goes on speaks again only when it has news (another remedy, another suspect) or when its count of
    alarms has doubled, so that a thousand bad steps are ten lines.
    """

    def __init__(self) -> None:
        self._told: dict[int, tuple[object, ...]] = {}
        self._found: dict[int, set[tuple[str, str]]] = {}
        self._open: dict[int, Incident] = {}
        self._noticed: dict[str, tuple[int, int]] = {}
        if not logger.hasHandlers():
            # Where nobody has set logging up, Python would print warnings only, and drop that all is well again.
            logger.addHandler(logging.StreamHandler())
            logger.setLevel(logging.INFO)

    def incident(self, incident: Incident, event: Event) -> None:
        """Log one line about an incident."""
        if event == "closed":
            told = _told(wording.result(incident), self._last_words(incident))
            for known in (self._told, self._found, self._open):
                known.pop(incident.number, None)
            with _between_bars():
                logger.warning(
                    "GradGuard: incident %s closed%s: %s", f"{incident.number:,}", _at(incident.closed), told
                )
            return
        self._open[incident.number] = incident
        tried = (incident.trials, wording.on_trial(incident), wording.would_have(incident))
        news = (incident.remedies, incident.culprit, incident.form, incident.alarms.bit_length(), tried)
        if event == "acted" and self._told.get(incident.number) == news:
            return
        self._told[incident.number] = news
        line = f"{wording.opening(incident)}; {wording.acts(incident)}"
        if event == "acted":
            # The opening tells the first step; where a long incident has come to is news.
            now = f"step {incident.actions[-1].step:,}, " if incident.actions else ""
            line += f" ({now}{wording.count(incident.alarms, 'alarming step')} so far)"
        with _between_bars():
            logger.warning("GradGuard: %s", _told(line, self._new_findings(incident)))

    def _new_findings(self, incident: Incident) -> list[tuple[str, str]]:
        """Return what has not been said of an incident under way; its cause is told when it is over."""
        known = self._found.setdefault(incident.number, set())
        new = [found for found in wording.findings(incident) if found not in known and found[0] != "cause"]
        known.update(new)
        return new

    def _last_words(self, incident: Incident) -> list[tuple[str, str]]:
        """Return what was found, a trial as it was told before: the actions that told why may not be kept any more."""
        said = {_trial(text): text for name, text in self._found.get(incident.number, ()) if name == "tried"}
        found = wording.findings(incident)
        return [(name, said.get(_trial(text), text) if name == "tried" else text) for name, text in found]

    def close(self) -> None:
        """Log of each incident that is open at the end of the run how it stands."""
        for incident in self._open.values():
            told = _told(wording.result(incident), self._last_words(incident))
            with _between_bars():
                logger.warning("GradGuard: incident %s at the end of the run: %s", f"{incident.number:,}", told)
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


def _between_bars() -> AbstractContextManager[Any]:
    """Return a block in which tqdm's progress bars are out of the way, where there are any.

    A line would land at the end of one.
    """
    make_room = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "external_write_mode", nullcontext)
    found: AbstractContextManager[Any] = make_room()
    return found


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step:,}"


def _trial(text: str) -> str:
    """Return which trial is told of, by what comes before its end."""
    return text.partition(": ")[0]


def _told(line: str, findings: Iterable[tuple[str, str]]) -> str:
    return "; ".join([line, *(f"{name}: {text}" for name, text in findings)])
