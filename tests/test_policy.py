"""The ladder: mildest first, with cool-downs and a budget."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard import Policy
from lightning_gradguard.baseline import Baseline
from lightning_gradguard.records import Blame, Decision, Form, Verdict
from tests.builders import calm, same, statistics, taught, through_a_file

ALL = {"clip", "skip", "backoff", "rollback", "reinitialize"}
SLOW = {"backoff", "rollback"}
OLD = taught(calm(100))
BATCH, LAYER = Blame("batch", 9.0, "x"), Blame("net.3", 2.0, "x")


def verdict(form: Form = "sudden", excess: float = 2.0, **more: Any) -> Verdict:
    return Verdict(form, "test", excess, 1.0, "for a test", **more)


def decide(policy: Policy, step: int = 0, *, form: Form = "sudden", excess: float = 2.0, **more: Any) -> Decision:
    blame, baseline, can = more.pop("blame", ()), more.pop("baseline", OLD), more.pop("can", ALL)
    seen = statistics(math.nan if form == "non-finite" else excess, step=step, **more.pop("seen", {}))
    return policy.decide(verdict(form, excess, **more), seen, blame=blame, baseline=baseline, can=can)


def test_a_gentle_spike_is_clipped_and_a_wild_one_held() -> None:
    assert decide(Policy(), excess=2.0).remedies == ("clip",)
    assert decide(Policy(), excess=1e6).remedies == ("skip",)
    assert decide(Policy(), form="non-finite", excess=math.nan).remedies == ("skip",)


def test_weights_that_are_not_finite_send_the_run_back_at_once_and_a_nan_alone_does_not() -> None:
    layers = [Blame(name, math.inf, "for a test", broken=True) for name in ("a", "b", "c")]
    assert decide(Policy(), form="non-finite", excess=math.nan).remedies == ("skip",)
    policy = Policy()
    assert decide(policy, form="non-finite", excess=math.nan, blame=layers).remedies == ("skip", "rollback")
    one = decide(Policy(), form="non-finite", excess=math.nan, blame=layers[:1])
    assert one.remedies == ("skip", "reinitialize"), "a single layer is repaired instead"


def test_a_budget_of_held_steps_is_told_before_it_is_spent() -> None:
    policy, told = Policy(max_held=3), []
    for step in range(3):
        told.append(policy.may_hold)
        decide(policy, step, excess=1e6, blame=[Blame("batch", math.inf, "for a test")])
    assert told == [True, True, False]


def test_trouble_that_stays_is_answered_harder() -> None:
    policy = Policy(patience=3, cooldown=1)
    said = [set(decide(policy, step, excess=1e6).remedies) for step in range(4)]
    assert said[:2] == [{"skip"}] * 2
    assert {"skip", "rollback", "backoff"} <= said[2]


OPTIONAL = ("augment", "mine", "regularize")


def test_what_the_ladder_does_not_know_accompanies_slow_remedies_and_repairs_only() -> None:
    policy = Policy(patience=3, cooldown=1)
    said = [decide(policy, step, excess=1e6, can=ALL | set(OPTIONAL)).remedies for step in range(3)]
    assert said == [("skip",), ("skip",), ("skip", "rollback", "backoff", *OPTIONAL)]
    can = ALL | set(OPTIONAL)
    repair = decide(Policy(), form="cold-start", blame=[LAYER], baseline=Baseline(), can=can).remedies
    assert repair == ("skip", "reinitialize", *OPTIONAL)
    assert decide(Policy(), excess=1e6, blame=[BATCH], can=can).remedies == ("skip",)
    assert decide(Policy(max_slow=0, patience=1), excess=1e6, can=can).remedies == ("skip",)


def test_it_stands_in_for_them_where_they_are_switched_off() -> None:
    policy = Policy(patience=1)
    assert decide(policy, excess=1e6, can={"skip", "mine"}).remedies == ("skip", "mine")
    assert decide(policy, excess=1e6, can={"mine"}).remedies == ("mine",)
    assert decide(policy, excess=1e6, can=ALL).remedies == decide(Policy(patience=1), excess=1e6).remedies


def test_an_activation_is_swapped_where_a_layer_is_at_fault_and_nothing_else_can_mend_it() -> None:
    policy = Policy(max_repairs=2)
    can = {"skip", "backoff", "swap-activation"}
    cold: dict[str, Any] = dict(form="cold-start", blame=[LAYER], baseline=Baseline(), can=can)
    said = [decide(policy, step, **cold, seen={"update_ratio": 50.0}).remedies for step in range(3)]
    assert said[:2] == [("skip", "swap-activation")] * 2
    assert said[2] == ("skip", "backoff", "swap-activation"), "its budget is that of repairs"


def test_a_row_of_nans_is_given_more_time_since_data_make_them_by_chance() -> None:
    said = [set(decide(policy, s, form="non-finite").remedies) for policy in [Policy(patience=3)] for s in range(8)]
    assert said[:7] == [{"skip"}] * 7 and "rollback" in said[7]


def test_only_a_nan_that_comes_back_speaks_against_the_rate() -> None:
    policy = Policy(patience=1, cooldown=0)
    first, second = (set(decide(policy, s, form="non-finite").remedies) for s in range(2))
    assert "backoff" not in first and {"rollback", "backoff"} <= second


def test_bad_batches_between_calm_steps_never_accuse_the_weights() -> None:
    policy = Policy(patience=3, cooldown=1)
    for step in range(0, 200, 5):
        assert set(decide(policy, step, form="sudden", excess=1e6).remedies) == {"skip"}
        for pause in range(1, 5):
            policy.rest(step + pause)


def test_slow_remedies_keep_their_cool_down() -> None:
    policy = Policy(patience=1, cooldown=7)
    slow = [s for s in range(60) if SLOW & set(decide(policy, s, form="non-finite").remedies)]
    assert slow[0] == 0 and all(b - a >= 7 for a, b in itertools.pairwise(slow))


def test_each_slow_remedy_of_an_episode_is_at_least_as_strong_as_the_last() -> None:
    policy = Policy(patience=1, cooldown=0)
    factors = []
    for step in range(0, 12, 2):
        factors.append(decide(policy, step, form="sudden", excess=1e6).factor)
        policy.rest(step + 1)
    assert factors == sorted(factors, reverse=True) and factors[-1] < factors[0] <= 0.5


def test_good_weights_that_explode_as_well_clear_the_rate_and_then_only_wait() -> None:
    policy = Policy(patience=1, cooldown=0)
    said = [decide(policy, step, excess=1e6) for step in range(5)]
    assert {"rollback", "backoff"} <= set(said[0].remedies) and said[0].factor < 1.0
    assert {"rollback", "backoff"} <= set(said[1].remedies) and said[1].factor == 1.0
    assert [d.remedies for d in said[2:]] == [("skip",)] * 3
    policy.rest(5)  # an update was let through, and what comes now may be its doing
    assert "rollback" in decide(policy, 6, excess=1e6).remedies


def test_rows_of_nans_are_judged_by_how_often_the_data_make_one() -> None:
    """Two batches in five are NaN: in a thousand steps a row of eight is common, and no sign of broken weights."""
    policy, chance, slow = Policy(), np.random.default_rng(3), 0
    for step in range(1000):
        if chance.random() < 0.4:
            slow += "rollback" in decide(policy, step, form="non-finite").remedies
        else:
            policy.rest(step)
    assert slow == 0
    said = [decide(policy, 1000 + s, form="non-finite").remedies for s in range(20)]
    assert "rollback" in {remedy for remedies in said for remedy in remedies}


@pytest.mark.parametrize("ordinary", [True, False])
def test_a_stretch_in_which_every_other_batch_is_corrupt_never_accuses_the_weights(ordinary: bool) -> None:
    """Unless what lies between is not as it was: then the weights may have a part in it."""
    policy, chance, slow = Policy(), np.random.default_rng(3), 0
    for step in range(300):
        if chance.random() < 0.5:
            slow += "rollback" in decide(policy, step, excess=1e6).remedies
        else:
            policy.rest(step, ordinary=ordinary)
    assert (slow == 0) is ordinary
    said = [decide(policy, 300 + s, excess=1e6).remedies for s in range(40)]
    assert not ordinary or "rollback" in {remedy for remedies in said for remedy in remedies}


def test_alarms_that_ended_in_a_rollback_do_not_speak_against_the_data() -> None:
    """Where the rate is insane, one good update is made after each rollback, and then all explodes again."""
    policy, gone_back = Policy(), []
    for step in range(60):
        if gone_back and step == gone_back[-1] + 1:
            policy.rest(step, ordinary=True)
        elif "rollback" in decide(policy, step, excess=1e6).remedies:
            gone_back.append(step)
    assert max(np.diff(gone_back)) <= 8 and len(gone_back) >= 8


def test_a_memorable_first_batch_is_undone() -> None:
    said = decide(Policy(), form="cold-start", baseline=taught([1e5, 1.0, 1.0, 1.0]), blame=(LAYER,))
    assert said.remedies == ("rollback",)


def test_a_corrupt_batch_costs_its_step_and_nothing_else() -> None:
    policy = Policy(patience=1, cooldown=0)
    for step in range(20):
        assert decide(policy, step, form="non-finite", blame=(BATCH, LAYER)).remedies == ("skip",)
    assert policy.slow_used == 0


def test_a_damaged_layer_is_repaired() -> None:
    decision = decide(Policy(), form="sudden", excess=1e6, blame=(LAYER,))
    assert decision.remedies == ("skip", "reinitialize") and "net.3" in decision.reason


def test_repairs_have_a_budget() -> None:
    policy = Policy(max_repairs=2)
    seen = {"update_ratio": 100.0}
    said = [decide(policy, s, form="cold-start", blame=(LAYER,), baseline=Baseline(), seen=seen) for s in range(8)]
    assert sum("reinitialize" in d.remedies for d in said) == 2


def test_what_only_asks_for_an_examination_changes_nothing_without_a_culprit() -> None:
    assert decide(Policy(), form="divergence", examine=True).remedies == ()


def test_a_hopeless_first_rate_is_brought_down_to_a_sane_one() -> None:
    policy, seen = Policy(), {"update_ratio": 1000.0}
    first = decide(policy, 0, form="cold-start", baseline=Baseline(), seen=seen)
    second = decide(policy, 1, form="cold-start", baseline=Baseline(), seen=seen)
    assert first.remedies == ("skip",)
    assert "backoff" in second.remedies and 1e-6 < second.factor * 1000.0 <= 1.0


def test_calm_ends_an_episode_and_trouble_that_returns_is_recurrent() -> None:
    policy = Policy(calm=5, memory=100)
    step = 0
    for _ in range(3):
        decide(policy, step, excess=100.0)
        ended = [policy.rest(step + 1 + i) for i in range(6)]
        assert ended == [False] * 4 + [True, False]
        step += 10
    assert policy.form(verdict(), step) == "recurrent"
    assert policy.form(verdict("non-finite"), step) == "non-finite"
    assert policy.form(verdict(), step + 1000) == "sudden"


def test_corrupt_batches_do_not_make_a_spike_recurrent() -> None:
    policy = Policy(calm=2)
    for step in range(0, 50, 10):
        decide(policy, step, form="non-finite", blame=(BATCH,))
        policy.rest(step + 1)
        policy.rest(step + 2)
    assert policy.form(verdict(), 51) == "sudden"


def test_the_budget_of_slow_remedies_is_kept_over_the_run() -> None:
    policy = Policy(patience=1, cooldown=0, max_slow=3)
    said = []
    for step in range(0, 12, 2):
        said.append(decide(policy, step, form="non-finite"))
        policy.rest(step + 1)
    assert [bool(SLOW & set(d.remedies)) for d in said] == [True] * 3 + [False] * 3
    assert [d.exhausted for d in said] == [False] * 3 + [True] * 3
    assert "budget of 3" in said[-1].reason


def test_too_many_held_steps_in_a_row_spend_the_budget() -> None:
    policy = Policy(max_held=5)
    said = [decide(policy, s, form="non-finite", can={"skip"}).exhausted for s in range(8)]
    assert said == [False] * 5 + [True] * 3
    policy.rest(8)
    assert not decide(policy, 9, form="non-finite", can={"skip"}).exhausted


def test_a_budget_of_no_slow_remedies_still_leaves_first_aid() -> None:
    policy = Policy(max_slow=0, patience=3, cooldown=1)
    said = [decide(policy, step, excess=1e6) for step in range(3)]
    assert [d.remedies for d in said] == [("skip",)] * 3
    assert [d.exhausted for d in said] == [False, False, True]
    assert not decide(Policy(max_slow=0), excess=2.0).exhausted


def test_a_spent_budget_matters_only_when_a_slow_remedy_is_needed_again() -> None:
    policy = Policy(patience=2, cooldown=0, calm=1, max_slow=1)
    assert SLOW & set([decide(policy, step, excess=1e6) for step in range(2)][1].remedies)
    policy.rest(2)
    gentle, wild, again = decide(policy, 3), decide(policy, 4, blame=(BATCH,)), decide(policy, 5, excess=1e6)
    assert (gentle.remedies, gentle.exhausted) == (("clip",), False)
    assert (wild.remedies, wild.exhausted) == (("skip",), False)
    assert (again.remedies, again.exhausted) == (("skip",), True)


@pytest.mark.parametrize("form", ["drift", "divergence"])
def test_a_spent_budget_does_not_hold_sane_gradients_for_ever(form: Form) -> None:
    said = decide(Policy(max_slow=0), 20, form=form)
    assert said.exhausted and said.remedies == ()


def test_without_re_initialisation_a_damaged_layer_is_answered_by_the_rest_of_the_ladder() -> None:
    policy = Policy(patience=2, cooldown=1)
    can = ALL - {"reinitialize"}
    said = [decide(policy, s, excess=1e6, blame=(LAYER,), can=can).remedies for s in range(4)]
    assert any("rollback" in remedies for remedies in said)


@pytest.mark.parametrize(("can", "expected"), [({"clip"}, ("clip",)), ({"backoff"}, ()), (set(), ())])
def test_what_is_switched_off_is_not_asked_for(can: set[str], expected: tuple[str, ...]) -> None:
    assert decide(Policy(), excess=1e6, can=can).remedies == expected


SUSPECTS = st.sampled_from([(), (BATCH,), (LAYER,)])
FORMS: list[Form] = ["sudden", "drift", "non-finite", "overflow", "cold-start", "divergence"]
EVENTS = st.lists(
    st.one_of(
        st.none(),
        st.tuples(st.sampled_from(FORMS), st.floats(1.0, 1e8), SUSPECTS, st.booleans()),
    ),
    max_size=80,
)


@given(EVENTS, st.integers(0, 80), st.sampled_from([OLD, taught(calm(5)), Baseline()]))
def test_any_history_is_answered_within_the_budget_and_resumes(events: list[Any], cut: int, baseline: Baseline) -> None:
    policy = Policy(max_slow=4, max_held=10)

    def play(policy: Policy, first: int, part: list[Any]) -> list[Any]:
        said: list[Any] = []
        for step, event in enumerate(part, first):
            if event is None:
                said.append(policy.rest(step))
                continue
            form, excess, blame, examine = event
            said.append(decide(policy, step, form=form, excess=excess, blame=blame, examine=examine, baseline=baseline))
        return said

    whole = play(policy, 0, events)
    decisions = [d for d in whole if isinstance(d, Decision)]
    assert sum(bool(SLOW & set(d.remedies)) for d in decisions) <= 4
    assert all(set(d.remedies) <= ALL and 0.0 < d.factor <= 1.0 and d.reason for d in decisions)
    first, second = Policy(max_slow=4, max_held=10), Policy(max_slow=4, max_held=10)
    play(first, 0, events[:cut])
    second.load_state_dict(through_a_file(first.state_dict()))
    assert whole[cut:] == play(second, min(cut, len(events)), events[cut:])
    assert same(second.state_dict(), policy.state_dict())
