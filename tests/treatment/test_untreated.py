"""What a treatment is taken back to is the state from before the first one, or nothing."""

from __future__ import annotations

import pytest

from lightning_gradguard import SnapshotStore
from lightning_gradguard.policy import Trial
from lightning_gradguard.records import Decision
from lightning_gradguard.treatment import Treatment

BACK = Decision(("skip", "rollback"), "weights that are NaN stay so", "unknown")


def prepare(treatment: Treatment, asked: list[str], *, finite: bool) -> None:
    treatment.prepare(
        BACK, finite=finite, unlearned=False, snapshots=SnapshotStore(), capture=lambda: asked.append("!")
    )


@pytest.mark.parametrize("resumed", [False, True])
def test_what_a_first_treatment_has_made_is_never_copied_for_the_second(resumed: bool) -> None:
    treatment, asked = Treatment(), list[str]()
    if resumed:
        treatment.trial = Trial("unknown", ["rollback"], 3)
        state = treatment.state_dict()
        treatment = Treatment()
        treatment.load_state_dict(state, [])
    else:
        prepare(treatment, asked, finite=False)
    prepare(treatment, asked, finite=True)
    assert not asked and treatment.untreated is None
    treatment.close()
    prepare(treatment, asked, finite=True)
    assert asked, "in the next incident there is a state to be copied"
