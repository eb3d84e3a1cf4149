"""Alarms are counted, and weighed against what bad data alone would make of them."""

from __future__ import annotations

import math

import pytest

from lightning_gradguard.policy.act import Act
from lightning_gradguard.policy.episode import CURED, Episode
from lightning_gradguard.records import Decision, Suspect
from tests.builders import calm, same, statistics, taught, through_a_file

KNOWN = taught(calm(100))
BATCH = Suspect("batch", 9.0, "x")
SPIKE, NAN = statistics(1e3), statistics(math.nan)


def alarms(episode: Episode, count: int, found: object = SPIKE) -> None:
    for _ in range(count):
        episode.count(found, (), KNOWN)  # type: ignore[arg-type]


@pytest.mark.parametrize(("pause", "row"), [(CURED - 1, 4), (CURED, 1)])
def test_alarms_are_in_a_row_until_calm_lies_between(pause: int, row: int) -> None:
    episode = Episode()
    alarms(episode, 3)
    for _ in range(pause):
        episode.rest(ordinary=False)
    alarms(episode, 1)
    assert (episode.row, episode.strikes) == (row, 4)


def test_patience_is_how_many_alarms_accuse_the_weights_and_more_of_them_for_nan() -> None:
    episode = Episode()
    alarms(episode, 2)
    assert not episode.accuses_weights(SPIKE, KNOWN, 3)
    alarms(episode, 1)
    assert episode.accuses_weights(SPIKE, KNOWN, 3) and not episode.accuses_weights(NAN, KNOWN, 3)
    assert episode.accuses_weights(NAN, KNOWN, 1)


def test_where_data_make_rows_by_chance_longer_ones_are_asked_for() -> None:
    episode = Episode()
    for _ in range(30):
        alarms(episode, 1)
        episode.rest(ordinary=True)
        episode.rest(ordinary=True)
    alarms(episode, 4)
    assert not episode.accuses_weights(SPIKE, KNOWN, 3)


def test_alarms_that_going_back_has_ended_say_nothing_of_the_data() -> None:
    episode = Episode()
    alarms(episode, 3)
    episode.note(Decision((Act.SKIP, Act.ROLLBACK), "x"))
    assert (episode.convicted, episode.skipped, episode.untested) == (3, 1, 1)
    episode.rest(ordinary=False)
    assert (episode.skipped, episode.untested) == (0, 0)


def test_an_episode_of_bad_batches_is_not_remembered() -> None:
    episode = Episode()
    episode.count(SPIKE, (BATCH,), KNOWN)
    episode.close(10, 100)
    assert episode.past == [] and episode.strikes == 0
    alarms(episode, 1)
    episode.close(20, 100)
    assert episode.recent(100, 100) == [20] and episode.recent(121, 100) == []


def test_counts_come_back_through_a_file_under_the_keys_of_old_checkpoints() -> None:
    episode, other = Episode(), Episode()
    alarms(episode, 3, NAN)
    episode.note(Decision((Act.SKIP,), "x"))
    saved = through_a_file(episode.state_dict())
    assert saved["_held"] == 1 and saved["_nans"] == 3
    other.load_state_dict(saved)
    assert same(vars(other), vars(episode))


def test_what_weights_have_made_nan_is_no_measure_of_the_data() -> None:
    episode = Episode()
    alarms(episode, 8, NAN)
    assert episode.accuses_weights(NAN, KNOWN, 3)
    episode.note(Decision((Act.SKIP, Act.ROLLBACK), "x"))
    episode.rest(ordinary=False)
    alarms(episode, 8, NAN)
    assert episode.accuses_weights(NAN, KNOWN, 3), "eight of nine would call for a row of eighty"
