"""What an earlier version of the package left on a disk can still be read: see ``tests/fixtures/make.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gradguard import GradGuard, Guard
from lightning_gradguard.cli import main
from lightning_gradguard.diagnostics.journal_reader import read_journal
from tests.builders import SAFELY, loader, mlp, regression, same, trainer
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


def test_the_state_of_the_guard_is_loaded(state: Any) -> None:
    """A version that cannot load it has to refuse it with one sentence before training, and this test with it."""
    guard = Guard(module())
    guard.load_state_dict(state)
    assert [(i.step, i.alarms) for i in guard.incidents] == [(NAN, 1), (HUGE[0], len(HUGE))]
    assert same(guard.state_dict(), state)


def test_the_run_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    watcher, learner = GradGuard(journal=False), module()
    run = trainer(tmp_path, callbacks=[watcher], max_epochs=2)
    run.fit(learner, loader(regression(STEPS, seed=2)), ckpt_path=CHECKPOINT, **SAFELY)
    assert run.global_step == 2 * STEPS
    assert [i.step for i in watcher.incidents][:2] == [NAN, HUGE[0]]


def test_what_does_not_fit_is_refused_and_changes_nothing(state: Any) -> None:
    guard = Guard(mlp())
    before = guard.state_dict()
    with pytest.raises(Exception, match="saved state cannot be used"):
        guard.load_state_dict({**state, "version": 0})
    assert same(guard.state_dict(), before)
