"""Treatments and what became of them, on the report's page, on the terminal and in the guard's own lines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradguard import Guard
from lightning_gradguard.diagnostics import Journal, wording
from lightning_gradguard.diagnostics.recorder import Recorder
from lightning_gradguard.records import Incident, to_json
from lightning_gradguard.report import RunStory, read_story, render_page, render_text
from lightning_gradguard_tensorboard import telling
from tests.builders import mlp, regression
from tests.diagnostics.examples import HOSTILE, incident, window
from tests.diagnostics.test_wording import (
    ALL_TAKEN_BACK,
    ANEW,
    CALM,
    FIRST_AID,
    KEPT,
    KEPT_AT_ONCE,
    OLD,
    REDRAWN,
    SECOND_KEPT,
    TAKEN_BACK,
    WATCHED,
    case,
)
from tests.report.test_page import Balance

KEPT_ONLY = case(REDRAWN, trials=(dataclasses.replace(KEPT, trouble=0.2),), helped=True)


def story(folder: Path, *incidents: Incident) -> RunStory:
    journal = Journal(folder)
    for tick in range(10):
        journal.window(window(tick))
    for one in incidents:
        journal.incident(one, "opened" if one.closed is None else "closed")
    journal.close()
    return read_story(journal.path, folder.parent)


@pytest.mark.parametrize(
    ("one", "level", "word", "words"),
    [
        (CALM, "good", "Calm again", "no alarm for 209 steps since"),
        (WATCHED, "warning", "No more alarms", "nothing was changed, only watched; no alarm for"),
        (ANEW, "good", "Learned anew", "have changed for good, and what is healthy was learned anew"),
        (KEPT_ONLY, "warning", "Treated", "The run has ended, and no loss shows that what was done made it better."),
        (KEPT_AT_ONCE, "good", "Recovered", "no alarm for 207 steps since"),
        (SECOND_KEPT, "good", "Recovered", "no alarm for 143 steps since"),
        (
            ALL_TAKEN_BACK,
            "bad",
            "Not healed",
            "nothing that was tried helped, and it was taken back; left to try: only skipping",
        ),
        (case(REDRAWN, trials=(TAKEN_BACK,), helped=False), "bad", "Not healed", "and it was taken back."),
    ],
)
def test_the_verdict_says_no_more_than_was_measured(
    tmp_path: Path, one: Incident, level: str, word: str, words: str
) -> None:
    told = story(tmp_path / "run", one)
    assert told.headline.level == level and words in told.headline.text
    page = render_page([told])
    assert f"<strong>{word}</strong>" in page
    if one not in (KEPT_AT_ONCE, SECOND_KEPT):
        assert "helped" not in page.replace("nothing that was tried helped", "").split("</style>")[1]


def test_the_page_has_a_table_of_treatments(tmp_path: Path) -> None:
    page = render_page([story(tmp_path / "run", ALL_TAKEN_BACK)])
    assert Balance(page).open == []
    assert "<th>Loss before</th><th>In the trouble</th><th>At the end</th>" in page
    assert (
        "<tr><td>Step 42: repaired the layer</td><td>a bad layer</td><td>0.25</td><td>6.12</td><td>6.5</td>"
        "<td>Taken back at step 106, the loss was no better than in the trouble.</td></tr>" in page
    )
    assert "<strong>Left to try:</strong> Only skipping and clipping: the run goes on as you wrote it." in page
    assert '<article class="bad"' in page and 'class="dot bad"' in page


@pytest.mark.parametrize(("one", "kind"), [(CALM, "good"), (ANEW, "good"), (case(FIRST_AID, closed=None), "bad")])
def test_each_state_has_the_colour_that_it_has_in_the_tab(tmp_path: Path, one: Incident, kind: str) -> None:
    page = render_page([story(tmp_path / "run", one)])
    assert f'<article class="{kind}"' in page and f'class="dot {kind}"' in page


def test_the_terminal_tells_the_same(tmp_path: Path) -> None:
    text = render_text(story(tmp_path / "run", SECOND_KEPT))
    assert "cause: updates that are too large: the learning rate" in text
    assert "tried: repaired the layer at step 42: taken back at step 106" in text
    assert "tried: rolled back to a good snapshot and lowered the learning rate at step 106: kept" in text
    assert "only watched: would have skipped the step; then" in render_text(story(tmp_path / "other", WATCHED))


def test_losses_of_any_sign_have_bars_of_their_own(tmp_path: Path) -> None:
    def bars(folder: Path, losses: list[float]) -> str:
        journal = Journal(folder)
        for tick, loss in enumerate(losses):
            journal.window(window(tick, loss_low=loss, loss_high=loss, loss_mean=loss))
        journal.close()
        (line,) = [one for one in render_text(read_story(journal.path, tmp_path)).splitlines() if " loss" in one[:14]]
        return " ".join(line.split())

    assert bars(tmp_path / "below", [0.0, -1.0, -2.0, -3.5]) == "loss, linear █▆▄▁ -3.5 to 0"
    assert bars(tmp_path / "above", [100.0, 1.0]) == "log10 loss █▁ 0.0 to 2.0"


def test_a_norm_of_zero_does_not_press_the_others_together(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run")
    for tick, norm in enumerate([0.0, 1.0, 100.0]):
        journal.window(window(tick, norm_peak=norm))
    journal.close()
    assert "▁▁█  0.0 to 2.0" in render_text(read_story(journal.path, tmp_path))


def test_the_guards_own_lines(tmp_path: Path) -> None:
    recorder = Recorder([], 50)
    recorder.incidents = [CALM, dataclasses.replace(SECOND_KEPT, number=2)]
    lines = recorder.report().splitlines()
    assert lines[0].endswith("skipped the step: calm again after 21 steps, only skipped")
    assert lines[1] == "  cause: only step 40 (batch 7) was bad; skipping it was enough"
    assert lines[2].startswith("incident 2 at step 40: sudden, first in conv2 (the norm leapt)")
    assert [line.split(":")[0] for line in lines[3:]] == ["  cause", "  tried", "  tried"]


OPEN = case(FIRST_AID, REDRAWN, closed=None)


@pytest.mark.parametrize(
    "one",
    [CALM, ANEW, WATCHED, KEPT_ONLY, KEPT_AT_ONCE, SECOND_KEPT, ALL_TAKEN_BACK, OPEN, incident(closed=52, helped=True)],
)
def test_tensorboards_tab_says_the_same(one: Incident) -> None:
    told = telling.tell(to_json(one))
    assert told["state"] == wording.state(one)
    ours = [text for name, text in wording.findings(one, trials=False)]
    assert [finding["text"] for finding in told["findings"]] == ours
    shown = [f"{t['treatment']}: {t['became']} ({t['levels']})" for t in told["trials"]]
    assert shown == [wording.trial(record, one) for record in one.trials]


def test_an_old_journal_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "gradguard.jsonl"
    entries: list[dict[str, Any]] = [
        {"event": "start", "version": 1, "time": 0.0},
        {"event": "closed", "incident": OLD},
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    told = read_story(path, tmp_path)
    assert told.contents.unreadable == 0 and told.headline.level == "warning"
    assert "Calm again after 12 steps, helped." in render_page([told])
    assert "calm again after 12 steps, helped" in render_text(told)


def test_hostile_words_do_no_harm(tmp_path: Path) -> None:
    record = dataclasses.replace(TAKEN_BACK, cause=HOSTILE, treatment=(HOSTILE,), outcome=HOSTILE)
    told = story(tmp_path / "run", incident(closed=52, helped=False, trials=(record,)))
    page = render_page([told])
    assert Balance(page).open == [] and "<script" not in page
    assert all(line.isprintable() for line in render_text(told).splitlines())


def test_an_incident_under_way_has_its_trials_and_the_suspects_of_the_look() -> None:
    """A run whose second layer is far too large from the start: what the look at the first step found counts."""
    torch.manual_seed(1)
    model = mlp()
    with torch.no_grad():
        model[2].weight.mul_(1e5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    guard = Guard(model)
    for x, y in regression(80):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        guard.before_step(optimizer, loss=loss)
        optimizer.step()
    guard.close()
    (one,) = guard.incidents
    assert one.culprit == "2" and one.helped and wording.state(one) == "helped"
    assert "cause: layer 2\n  tried: rescaled the layer at step" in guard.report()
