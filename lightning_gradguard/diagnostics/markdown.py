"""An incident as Markdown, for TensorBoard's text dashboard.

When, which form, which layer, what was tried, kept and taken back.

Names come from the user's model: everything that is not ours goes through :func:`~.wording.markdown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.records import Action, Incident, Suspect
from lightning_gradguard_tensorboard.telling import tidy

SUSPECTS = 5


def incident_markdown(incident: Incident, earlier: Iterable[Incident] = ()) -> str:
    """Return the whole story of one incident, followed by one line for each earlier one.

    TensorBoard's slow loader keeps ten texts a tag, drawn at random but for the last; so the last one tells of all.

    Args:
        incident: The incident to tell.
        earlier: Incidents to list below it, newest first.
    """
    culprit = incident.where("**{}**", wording.markdown)
    parts = [
        f"## Incident {incident.number}: {incident.form} at step {incident.step:,}{culprit}",
        f"**Result:** {wording.result(incident)}. **Done:** {wording.markdown(wording.acts(incident))}.",
        _findings(incident),
        _trials(incident),
        _facts(incident),
        _suspects(incident.blame[:SUSPECTS]),
        _actions(incident),
        _history(earlier),
    ]
    return "\n\n".join(part for part in parts if part)


def _facts(incident: Incident) -> str:
    facts = [wording.count(incident.alarms, "alarming step")]
    if incident.batch is not None:
        facts.append(f"batch {incident.batch:,}")
    if incident.optimizer:
        facts.append(f"optimizer {incident.optimizer}")
    return ", ".join(facts) + "."


def _findings(incident: Incident) -> str:
    told = wording.findings(incident, trials=False)
    return " ".join(f"**{name.capitalize()}:** {wording.markdown(text)}." for name, text in told)


def _trials(incident: Incident) -> str:
    header = ("treatment", "for", "loss before", "in the trouble", "at the end", "what became of it")
    rows = [
        (
            f"**step {t.opened:,}**: {wording.markdown(wording.tried(t, incident))}",
            wording.markdown(wording.cause_named(t.cause)),
            *(wording.level(value) for value in (t.before, t.trouble, t.after)),
            wording.markdown(wording.became(t, incident)),
        )
        for t in incident.trials
    ]
    return _table("What was tried", header, rows)


def _suspects(blame: tuple[Suspect, ...]) -> str:
    rows = [
        (wording.markdown(wording.named(b)), wording.gains(b) or "–", wording.markdown(tidy(b.reason))) for b in blame
    ]
    return _table("Suspects", ("who", "measured", "why"), rows)


def _actions(incident: Incident) -> str:
    # The step has no column of its own: TensorBoard breaks a narrow one in the middle of a number.
    rows = [(f"**step {action.step:,}**: {_evidence(action)}", _deeds(action)) for action in incident.actions]
    return _table("What happened", ("evidence", "what was done"), rows)


def _evidence(action: Action) -> str:
    return f"{action.verdict.form}, {wording.evidence(action)}; {wording.markdown(wording.reason(action))}"


def _deeds(action: Action) -> str:
    if not action.outcomes:
        return wording.markdown(wording.undone(action)) or "–"
    return "; ".join(wording.markdown(wording.deed(outcome)) for outcome in action.outcomes)


def _history(earlier: Iterable[Incident]) -> str:
    rows = [
        (
            f"{i.number:,}",
            f"{i.step:,}",
            i.form,
            wording.markdown(i.culprit or "–"),
            wording.markdown(wording.acts(i)),
            wording.result(i),
        )
        for i in earlier
    ]
    return _table("Earlier incidents", ("incident", "step", "form", "first in", "done", "result"), rows)


def _table(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [header, tuple("---" for _ in header), *rows]
    return f"### {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
