"""The ending of a trial, as records and checkpoints hold it."""

from __future__ import annotations

import json

import pytest

from lightning_gradguard.policy.ending import Ending


@pytest.mark.parametrize("ending", list(Ending))
def test_an_ending_is_a_plain_string_in_a_record(ending: Ending) -> None:
    assert Ending(json.loads(json.dumps(ending))) is ending
    assert bool(ending.value) is (ending is not Ending.NOT_YET), "a trial that goes on has none"
