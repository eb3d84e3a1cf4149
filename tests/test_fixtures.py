"""What an earlier version of the package left on a disk can still be read: see ``tests/fixtures/make.py``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradguard import GradGuard, Guard, GuardError
from lightning_gradguard.checkpoint import VERSION
from lightning_gradguard.cli import main
from lightning_gradguard.diagnostics.journal_reader import read_journal
from tests.builders import SAFELY, loader, mlp, regression, same, through_a_file, trainer
from tests.fixtures.make import CHECKPOINT, HUGE, JOURNAL, NAN, STEPS, module


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(CHECKPOINT, weights_only=True)
    return loaded


@pytest.fixture
def state(checkpoint: dict[str, Any]) -> Any:
    (found,) = checkpoint["callbacks"].values()
    return found


def test_the_journal_is_read() -> None:
    journal = read_journal(JOURNAL)
    assert journal.sessions == 1 and journal.unreadable == 0
    assert journal.windows[0].first_step == 0 and journal.windows[-1].step == STEPS - 1
    assert journal.windows[-1].layers == ("network.0", "network.1", "network.3")
    first, second = journal.incidents
    assert (first.step, first.form, first.culprit, first.remedies) == (NAN, "non-finite", "batch", ("skip",))
    assert first.helped and second.closed is None
    assert (second.step, second.form, second.remedies) == (HUGE[0], "sudden", ("skip", "rollback", "backoff"))


def test_the_journal_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(JOURNAL), "--no-html", "--no-color"]) == 0
    shown = capsys.readouterr().out
    assert f"Incident 1 at step {NAN}: non-finite, the batch" in shown
    assert f"Incident 2 at step {HUGE[0]}: sudden" in shown


def test_of_the_older_state_the_incidents_are_kept_and_all_else_is_learned_anew(state: Any) -> None:
    """A version that cannot load it has to refuse it with one sentence before training, and this test with it."""
    assert state["version"] == 1 and state["lanes"] and state["incidents"][1]["closed"] is None
    guard = Guard(module())
    with pytest.warns(RuntimeWarning, match="older version") as caught:
        guard.load_state_dict(state)
    assert len(caught) == 1
    assert [(i.step, i.alarms, i.trials) for i in guard.incidents] == [(NAN, 1, ()), (HUGE[0], len(HUGE), ())]
    assert guard.incidents[0].helped and guard.incidents[1].closed == HUGE[-1], "nobody is left to close it"
    assert guard.state_dict()["lanes"] == {} and guard.state_dict()["version"] == VERSION


def test_what_was_migrated_needs_no_migration_again(state: Any) -> None:
    first, second = Guard(module()), Guard(module())
    with pytest.warns(RuntimeWarning, match="older version"):
        first.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second.load_state_dict(through_a_file(first.state_dict()))
    assert same(second.state_dict(), first.state_dict())


@pytest.mark.parametrize(
    "incidents", [None, 3, [None], [{}], [{"actions": 3}], [{"actions": [{}]}], {"0": {}}], ids=str
)
def test_an_older_state_that_was_altered_is_refused_too(incidents: Any, state: Any) -> None:
    guard = Guard(module())
    with pytest.warns(RuntimeWarning), pytest.raises(GuardError, match="saved state cannot be used"):
        guard.load_state_dict({**state, "incidents": incidents}, strict=True)
    assert guard.incidents == ()


def test_the_run_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    watcher, learner = GradGuard(journal=False), module()
    run = trainer(tmp_path, callbacks=[watcher], max_epochs=2)
    with pytest.warns(RuntimeWarning, match="older version"):
        run.fit(learner, loader(regression(STEPS, seed=2)), ckpt_path=CHECKPOINT, **SAFELY)
    assert run.global_step == 2 * STEPS
    assert [i.step for i in watcher.incidents][:2] == [NAN, HUGE[0]]


def test_what_does_not_fit_is_refused_and_changes_nothing(state: Any) -> None:
    guard = Guard(mlp())
    before = guard.state_dict()
    with pytest.raises(Exception, match="saved state cannot be used"):
        guard.load_state_dict({**state, "version": 99}, strict=True)
    assert same(guard.state_dict(), before)
