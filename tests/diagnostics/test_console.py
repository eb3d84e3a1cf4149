import dataclasses
import logging
import sys

import pytest

from lightning_gradguard.diagnostics import Console
from lightning_gradguard.diagnostics.console import LONGEST, fitting
from lightning_gradguard.diagnostics.wording import number, result
from lightning_gradguard.records import Outcome
from tests.diagnostics.examples import HOSTILE, incident, window


def test_an_incident_is_one_line_when_it_opens_and_one_when_it_closes(caplog):
    caplog.set_level(logging.INFO, "lightning_gradguard")
    case = incident(step=1900)
    console = Console()
    console.incident(case, "opened")
    console.incident(dataclasses.replace(case, closed=1912, helped=True), "closed")
    console.incident(dataclasses.replace(case, closed=1912, helped=False), "closed")
    assert caplog.messages == [
        "GradGuard: incident 1 at step 1,900: non-finite, first in conv2 (forward gain 57 x); skipped the step",
        "GradGuard: incident 1 closed at step 1,912: calm again after 12 steps, helped",
        "GradGuard: incident 1 closed at step 1,912: given up after 12 steps, did not help",
    ]
    assert {r.levelname for r in caplog.records} == {"WARNING"}, "who sees one open sees how it ends"


def test_an_incident_that_is_open_at_the_end_of_the_run_has_a_last_line(caplog):
    caplog.set_level(logging.INFO, "lightning_gradguard")
    console = Console()
    console.incident(incident(number=1), "opened")
    console.incident(dataclasses.replace(incident(number=1), closed=1912), "closed")
    console.incident(incident(number=2, alarms=3), "opened")
    console.close()
    console.close()
    last = [message for message in caplog.messages if "end of the run" in message]
    assert last == ["GradGuard: incident 2 at the end of the run: still open after 3 alarming steps"]


def test_a_thousand_bad_steps_are_few_lines_but_a_new_remedy_is_told(caplog):
    caplog.set_level(logging.INFO, "lightning_gradguard")  # whatever other tests have left behind
    console = Console()
    console.incident(incident(), "opened")
    for alarms in range(2, 1000):
        console.incident(incident(alarms=alarms), "acted")
    assert len(caplog.messages) <= 10
    action = incident().actions[0]
    more = dataclasses.replace(action, outcomes=(*action.outcomes, Outcome("backoff", True, "halved")))
    console.incident(incident(alarms=1000, actions=(more,)), "acted")
    assert caplog.messages[-1] == (
        "GradGuard: incident 1, step 40: 1,000 alarming steps so far; on trial: lowered the learning rate at step 40"
    )


def test_an_optimizer_is_named_by_its_modules_where_there_are_several(caplog):
    caplog.set_level(logging.INFO, "lightning_gradguard")
    console = Console()
    console.window(window(layers=("generator.0", "generator.2")))
    console.incident(incident(), "opened")
    console.window(window(optimizer=1, layers=("critic.0",)))
    console.incident(dataclasses.replace(incident(number=2), optimizer=1), "opened")
    console.incident(dataclasses.replace(incident(), closed=60), "closed")
    # Of one that has not been heard of no more is known than its number.
    console.incident(dataclasses.replace(incident(number=3), optimizer=2), "opened")
    told = [message.partition(": incident")[0] for message in caplog.messages]
    assert told == ["GradGuard", "GradGuard (critic)", "GradGuard (generator)", "GradGuard (optimizer 2)"]


def test_a_line_has_a_limit_and_says_where_the_rest_is():
    findings = [("tried", f"rolled back at step {n}: taken back (loss before the trouble 0.04)") for n in range(9)]
    assert fitting("GradGuard", findings[:1]) == f"GradGuard; tried: {findings[0][1]}"
    shorter = fitting("GradGuard: incident 1", findings[:5])
    assert len(shorter) <= LONGEST and shorter.count("taken back") == 5 and "loss" not in shorter
    line = fitting("GradGuard: incident 1", findings)
    assert len(line) <= LONGEST and line.endswith("…; more in the journal") and "rolled back at step 3" in line
    assert len(fitting("y " * 450, findings)) <= LONGEST


def test_hostile_names_cannot_write_to_the_terminal(caplog):
    caplog.set_level(logging.INFO, "lightning_gradguard")
    console = Console()
    console.incident(incident(layer=HOSTILE), "opened")
    console.notice(3, HOSTILE)
    assert all(message.isprintable() for message in caplog.messages)


def test_nobody_blamed_and_nothing_done():
    bare = incident(blame=(), actions=())
    assert bare.culprit is None and result(bare) == "still open after 1 alarming step"
    assert [number(x) for x in (57.0, 1.5e10, 0.0, float("nan"), 12345.0)] == ["57", "1.5e10", "0", "NaN", "12,300"]


def test_a_line_lands_between_progress_bars_not_at_the_end_of_one(capsys):
    tqdm = pytest.importorskip("tqdm").tqdm
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("lightning_gradguard").addHandler(handler)
    with tqdm(total=10, file=sys.stderr, ncols=60) as bar:
        bar.update(3)
        bar.refresh()
        capsys.readouterr()
        Console().incident(incident(), "opened")
    logging.getLogger("lightning_gradguard").removeHandler(handler)
    before, line, after = capsys.readouterr().err.partition("GradGuard: incident 1")
    assert line and before.endswith("\r") and not before.strip(), before
    assert "30%" in after.partition("\n")[2]
