"""What asks for no remedy is told only now and then."""

from __future__ import annotations

from lightning_gradguard.diagnostics.notices import NOTICE_EVERY, Notices


def test_a_detector_is_told_of_at_once_and_then_only_after_a_while() -> None:
    notices = Notices()
    assert [step for step in range(NOTICE_EVERY + 1) if notices.due("drift", step)] == [0, NOTICE_EVERY]
    assert notices.due("spike", 7), "each for itself"


def test_what_was_told_is_remembered_over_a_resumption() -> None:
    first, second = Notices(), Notices()
    first.due("drift", 100)
    second.load_state_dict(first.state_dict())
    assert not second.due("drift", 101) and second.due("drift", 100 + NOTICE_EVERY)
