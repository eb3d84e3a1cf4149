"""The story of one or several runs as one HTML page: no script, no network, fit for a ticket or a mail.

Every name and sentence from a journal is escaped here, at the one place where text becomes HTML.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from importlib import resources
from string import Template

from lightning_gradguard.diagnostics import wording
from lightning_gradguard.records import Action, Incident, Suspect
from lightning_gradguard.report.chart import draw_chart
from lightning_gradguard.report.story import RunStory
from lightning_gradguard_tensorboard import colours
from lightning_gradguard_tensorboard.telling import STATES, tidy

MOST_SHOWN = 200


def render_page(stories: Sequence[RunStory], *, title: str = "GradGuard report") -> str:
    """Return the whole page as text, to be written as UTF-8."""
    template = Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    sections = "\n".join(_run(story) for story in stories)
    light, dark = (_properties(theme) for theme in ("light", "dark"))
    return template.substitute(title=text(title), light=light, dark=dark, legend=_legend(), runs=sections)


def _properties(theme: colours.Theme) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.sheet(theme).items())


def text(words: str) -> str:
    """Return text as HTML shows it, with nothing in it that HTML would act on."""
    return html.escape(wording.clean(words))


def commands(words: str) -> str:
    """Return text as HTML, what stands between backticks set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(words))


def _run(story: RunStory) -> str:
    head = story.headline
    parts = [
        f"<h2>{text(story.name)}</h2>",
        f'<p class="verdict {head.level}"><strong>{text(head.word)}</strong> {text(head.text)}</p>',
        answers(head.answers),
    ]
    for optimizer, run in story.optimizers.items():
        if len(story.optimizers) > 1:
            parts.append(f"<h3>Optimizer of <code>{text(story.names[optimizer])}</code></h3>")
        records = [record for record in story.records if record["optimizer"] == optimizer]
        parts.append(f"<figure>{draw_chart(run, records)}</figure>")
    newest = story.contents.incidents[::-1]
    if newest:
        parts.append("<h3>Incidents, newest first</h3>" + "".join(_incident(i) for i in newest[:MOST_SHOWN]))
    if len(newest) > MOST_SHOWN:
        parts.append(f"<p>… and {wording.count(len(newest) - MOST_SHOWN, 'earlier incident')}.</p>")
    parts.append(_list("Notes", [f"{when}: {said}" for when, said in story.notes[-MOST_SHOWN:]], "notes"))
    parts.append(_list("Not shown", list(story.missing), "missing"))
    return f"<section>{''.join(parts)}</section>"


def answers(told: Sequence[tuple[str, str]]) -> str:
    """Return the answers to the questions as a list of terms; nothing where nothing has happened."""
    terms = "".join(f"<div><dt>{text(question)}</dt><dd>{commands(answer)}</dd></div>" for question, answer in told)
    return f'<dl class="answers">{terms}</dl>' if terms else ""


def _incident(incident: Incident) -> str:
    level = STATES[wording.state(incident)][0]
    batch = f", batch {incident.batch:,}" if incident.batch is not None else ""
    culprit = incident.where("<code>{}</code>", text)
    result = wording.result(incident)
    return (
        f'<article class="{level}" id="incident-{incident.optimizer}-{incident.number}-{incident.step}">'
        f"<h4><span>{incident.number}</span> {text(incident.form)} at step {incident.step:,}{batch}{culprit}</h4>"
        f"<p>{text(_sentence(wording.deeds(incident)))} {text(_sentence(result))}</p>"
        f"{_findings(incident)}{_trials(incident)}{_suspects(incident)}{_actions(incident)}</article>"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _findings(incident: Incident) -> str:
    told = wording.findings(incident, trials=False)
    return "".join(
        f"<p><strong>{text(name.capitalize())}:</strong> {text(_sentence(found))}</p>" for name, found in told
    )


def _trials(incident: Incident) -> str:
    header = ("Tried", "For", "Loss before", "In the trouble", "At the end", "What became of it")
    rows = [
        (
            f"Step {t.opened:,}: {text(wording.tried(t, incident))}",
            text(wording.cause_named(t.cause)),
            *(text(wording.level(value)) for value in (t.before, t.trouble, t.after)),
            text(_sentence(wording.became(t, incident))),
        )
        for t in incident.trials
    ]
    return _table(header, rows)


def _suspects(incident: Incident) -> str:
    rows = [(_suspect(b), text(wording.gains(b) or "–"), text(tidy(b.reason))) for b in incident.blame]
    return _table(("Suspect", "Measured", "Why"), rows)


def _suspect(blame: Suspect) -> str:
    return f"<code>{text(wording.named(blame))}</code>" if blame.is_module else text(wording.named(blame))


def _actions(incident: Incident) -> str:
    rows = [(f"{a.step:,}", _evidence(a), _deeds(a)) for a in incident.actions]
    hidden = incident.alarms - len(incident.actions)
    note = f"<p>{wording.count(hidden, 'alarming step')} in between not kept.</p>" if hidden > 0 and rows else ""
    return _table(("Step", "Evidence", "What was done"), rows) + note


def _evidence(action: Action) -> str:
    return f"{text(action.verdict.form)}, {text(wording.evidence(action))}; {text(wording.reason(action))}"


def _deeds(action: Action) -> str:
    if not action.outcomes:
        return text(wording.undone(action))
    return "<br>".join(text(wording.deed(outcome)) for outcome in action.outcomes)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the cells are HTML already."""
    if not rows:
        return ""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(title: str, sentences: Sequence[str], kind: str) -> str:
    if not sentences:
        return ""
    items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
    return f'<div class="{kind}"><h3>{title}</h3><ul>{items}</ul></div>'


def _legend() -> str:
    return "".join(
        '<span><svg viewBox="0 0 12 12">'
        f'<rect class="frame" width="12" height="12" fill="rgb({r},{g},{b})"/></svg> {text}</span>'
        for text, (r, g, b) in colours.legend()
    )
