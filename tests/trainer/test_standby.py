"""A guard that the environment asked for gives way to one that the user has passed."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_gradguard import GradGuard
from lightning_gradguard.callback import from_environment
from lightning_gradguard.trainer.standby import asked_for
from tests.builders import trainer


def guards(*standing_by: bool) -> list[GradGuard]:
    made = [GradGuard() for _ in standing_by]
    for guard, on in zip(made, standing_by, strict=True):
        guard.standby.on = on
    return made


def test_on_standby_its_key_is_another_so_that_both_fit_into_one_trainer() -> None:
    first, second = guards(True, False)
    assert first.state_key != second.state_key
    first.standby.on = False
    assert first.state_key == second.state_key


def test_it_leaves_where_there_is_another_and_stays_where_there_is_none(tmp_path: Path) -> None:
    waiting, other = guards(True, False)
    run = trainer(tmp_path, callbacks=[waiting, other])
    assert waiting.standby.gives_way(run, waiting, GradGuard)
    assert waiting not in run.callbacks and other in run.callbacks  # type: ignore[attr-defined]
    alone = trainer(tmp_path, callbacks=[waiting])
    assert not waiting.standby.gives_way(alone, waiting, GradGuard) and not waiting.standby.on


@pytest.mark.parametrize(
    ("said", "means"),
    [("1", True), ("on", True), ("YES", True), (" true ", True), ("", False), ("0", False), ("No", False)],
)
def test_the_environment_says_yes_or_no(said: str, means: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GRADGUARD", said)
    assert asked_for() is means


def test_what_the_environment_says_besides_is_refused_as_a_trainer_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GRADGUARD", "maybe")
    known = "must be one of 1, true, on, yes, 0, false, off, no or empty, got 'maybe'"
    with pytest.raises(ValueError, match=f"LIGHTNING_GRADGUARD {known}"):
        from_environment()


def test_two_that_stay_are_refused(tmp_path: Path) -> None:
    first, second = guards(False, False)
    run = trainer(tmp_path, callbacks=[first])
    run.callbacks.append(second)  # type: ignore[attr-defined]
    with pytest.raises(MisconfigurationException, match="Two GradGuard callbacks"):
        first.standby.gives_way(run, first, GradGuard)
