"""The story of a run inside a notebook, which strips scripts and style sheets.

All styles are inline, the picture is static SVG.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_gradguard import checks
from lightning_gradguard.report.chart import draw_chart
from lightning_gradguard.report.page import commands, text
from lightning_gradguard.report.story import RunStory, find_journals, read_stories
from lightning_gradguard.report.terminal import render_text
from lightning_gradguard_tensorboard import colours

HOW = (
    "Dark line: the largest norm of each window, in its healthy band below its limit (dashed). Diamonds: NaN or inf. "
    "Circles: incidents. Spans over the loss: treatments on trial, green where they were kept, red where they were "
    "taken back. Actions: tall bars are skipped steps, short ones clipped, triangles where the learning rate was "
    "lowered, arrows rollbacks. Learning rate: what is shaded is too high, the dashed line has worked. Rows below it: "
    "what may move before the gradient. Layers: orange is above their own running median, blue below, magenta NaN or "
    "inf; a circle beside a layer's name is the incident that blames it."
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Stories below a directory, that a notebook displays as pictures, and a terminal as text."""

    stories: tuple[RunStory, ...]
    place: str

    def _repr_html_(self) -> str:
        return "".join(map(fragment, self.stories)) or f"<p>No journal was found in {text(self.place)}.</p>"

    def __repr__(self) -> str:
        """Return the stories as text."""
        return "\n".join(map(render_text, self.stories)).rstrip() or f"no journal was found in {self.place}"


def show(run_dir: str | os.PathLike[str]) -> Shown:
    """Return the story of every run below a directory, drawn where a notebook's cell ends with it.

    Args:
        run_dir: Directory to search for journals (``gradguard.jsonl``), or one journal.

    Example:
        >>> import lightning_gradguard
        >>> lightning_gradguard.show("no_such_run")
        no journal was found in no_such_run
    """
    place = checks.path("run_dir", run_dir)
    return Shown(tuple(story for path in find_journals(place) for story in read_stories(path, place)), str(place))


def fragment(story: RunStory) -> str:
    """Return one story as a piece of HTML: the verdict, the answers, and a chart of each optimizer."""
    sheet, head = colours.sheet("light"), story.headline
    colour = sheet.get(head.level, sheet["quiet"])
    ground = sheet.get(f"{head.level}-ground", sheet["field"])
    parts = [
        f'<p style="padding:10px 14px;border-radius:8px;background:{ground};color:{sheet["ink"]}">'
        f'<b style="color:{colour}">{text(head.word)}</b> {text(head.text)}</p>',
        _answers(head.answers),
    ]
    for optimizer, run in story.optimizers.items():
        if len(story.optimizers) > 1:
            parts.append(f"<p><b>{text(story.names[optimizer])}</b></p>")
        records = [record for record in story.records if record["optimizer"] == optimizer]
        parts.append(draw_chart(run, records))
    if story.optimizers:
        parts.append(f'<small style="color:{sheet["quiet"]}">{HOW}</small>')
    # The picture is drawn in the light theme's colours, on its ground.
    style = f"background:{sheet['ground']};color:{sheet['ink']};padding:8px;max-width:1080px"
    return f'<div style="{style}">{"".join(parts)}</div>'


def _answers(answers: Sequence[tuple[str, str]]) -> str:
    if not answers:
        return ""
    cells = "".join(
        f'<td style="text-align:left;vertical-align:top;padding:0 14px 0 0">'
        f'<small style="color:{colours.sheet("light")["quiet"]}">{text(question)}</small><br>{commands(answer)}</td>'
        for question, answer in answers
    )
    return f"<table><tr>{cells}</tr></table>"
