"""From an alarm and its cause to a decision: first aid, a treatment, or nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard import Policy
from lightning_gradguard.attribution.cause import Cause
from lightning_gradguard.attribution.signal import Signal
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.history.updates import LARGE
from lightning_gradguard.policy import Case, Trial
from lightning_gradguard.policy.act import ON_TRIAL
from lightning_gradguard.policy.policy import ANEW
from lightning_gradguard.policy.trial import MOST_DESCENTS
from lightning_gradguard.records import Decision, Form, Suspect, Verdict
from tests.builders import calm, same, statistics, taught, through_a_file

ALL = {"clip", "skip", "backoff", "rollback", "reinitialize", "initialize"}
BATCH, LAYER = Suspect("batch", 9.0, "x"), Suspect("net.3", 2.0, "x")
LOSS = Suspect("loss function", 44.0, "x", part="loss")
OLD = taught(calm(100))
OVERSHOT = taught(calm(100))
"""A run whose updates have replaced weights, so that these may be damaged."""
OVERSHOT.updates.ratio = 2 * LARGE
THIN_HISTORY = taught(calm(5))
EXPLODING, SOUND = Signal(1.0, 1e6, 0.5), Signal(1.0, 1.0, 0.5)


def verdict(form: Form = "sudden", excess: float = 2.0, **more: Any) -> Verdict:
    return Verdict(form, "test", excess, 1.0, "for a test", **more)


def case(baseline: Baseline = OLD, can: set[str] | None = None, **more: Any) -> Case:
    return Case(baseline, ALL if can is None else can, **more)


def decide(
    policy: Policy,
    step: int = 0,
    *,
    form: Form = "sudden",
    excess: float = 2.0,
    blame: Any = (),
    examine: bool = False,
    loss: float | None = None,
    growth: float | None = None,
    norm: float | None = None,
    **known: Any,
) -> Decision:
    measured = excess if norm is None else norm
    seen = statistics(math.nan if form == "non-finite" else measured, step=step, loss=loss, growth=growth)
    return policy.decide(verdict(form, excess, examine=examine), seen, blame, case(**known))


# -- first aid


def test_a_gentle_spike_is_clipped_and_a_wild_one_skipped() -> None:
    assert decide(Policy(), excess=2.0).remedies == ("clip",)
    assert decide(Policy(), excess=1e6).remedies == ("skip",)
    assert decide(Policy(), form="non-finite", excess=math.nan).remedies == ("skip",)


@pytest.mark.parametrize(("foretold", "expected"), [(True, ("skip",)), (False, ("skip", "rollback"))])
def test_where_nobody_can_foretell_updates_three_alarms_in_a_row_send_the_run_back(
    foretold: bool, expected: tuple[str, ...]
) -> None:
    """LBFGS without a line search leaps once, and skipped steps would leave it there."""
    policy = Policy()
    said = [decide(policy, step, excess=1e4, loss=1e3, foretold=foretold) for step in range(3)]
    assert [one.remedies for one in said] == [("skip",), ("skip",), expected]


def test_in_a_young_run_nothing_is_clipped_since_nobody_knows_to_what() -> None:
    assert decide(Policy(), excess=2.0, baseline=THIN_HISTORY).remedies == ("skip",)


def test_weights_that_are_not_finite_send_the_run_back_at_once_and_a_nan_alone_does_not() -> None:
    layers = [Suspect(name, math.inf, "for a test", broken=True) for name in ("a", "b", "c")]
    assert decide(Policy(), form="non-finite", excess=math.nan).remedies == ("skip",)
    assert decide(Policy(), form="non-finite", excess=math.nan, blame=layers).remedies == ("skip", "rollback")
    one = decide(Policy(), form="non-finite", excess=math.nan, blame=layers[:1])
    assert one.remedies == ("skip", "reinitialize"), "a single layer is repaired instead"


def test_trouble_that_stays_is_treated_where_updates_have_replaced_weights() -> None:
    policy = Policy(patience=3)
    said = [decide(policy, step, excess=1e6, baseline=OVERSHOT) for step in range(3)]
    assert [d.remedies for d in said] == [("skip",), ("skip",), ("skip", "rollback", "backoff")]
    assert said[2].cause == Cause.RATE.value and policy.trials == 1


def test_trouble_that_no_update_has_brought_is_skipped_until_weights_from_before_it_are_asked() -> None:
    policy = Policy(patience=3)
    said = [decide(policy, step, excess=1e6, baseline=OLD) for step in range(ANEW + 1)]
    assert {d.remedies for d in said[: ANEW - 1]} == {("skip",)}
    assert said[ANEW - 1].remedies == ("skip", "rollback") and policy.trials == 1
    assert [d.cause == Cause.REGIME.value for d in said] == [False] * ANEW + [True]


def test_where_no_weights_from_before_can_be_asked_the_data_are_believed() -> None:
    policy = Policy(patience=3, max_trials=0)
    said = [decide(policy, step, excess=1e6, baseline=OLD) for step in range(ANEW)]
    assert [d.cause == Cause.REGIME.value for d in said] == [False] * (ANEW - 1) + [True]


def test_trouble_that_stays_while_the_rate_is_searched_is_the_rates() -> None:
    policy = Policy()
    said = [decide(policy, step, excess=1e3, searching=True) for step in range(3)]
    assert [d.remedies for d in said] == [("skip",), ("skip",), ("skip", "rollback", "backoff")]
    assert said[-1].cause == Cause.RATE.value


def test_large_norms_with_a_loss_as_ever_are_clipped_and_no_more() -> None:
    baseline = taught(calm(100), [1.0] * 100)
    baseline.updates.ratio = 2 * LARGE
    policy = Policy(patience=3)
    said = [decide(policy, step, excess=1e6, loss=1.0, baseline=baseline).remedies for step in range(6)]
    assert said[2:] == [("clip",)] * 4 and policy.trials == 0
    policy = Policy(patience=3)
    said = [decide(policy, step, excess=1e6, loss=9.0, baseline=baseline).remedies for step in range(3)]
    assert "rollback" in said[2]


def test_a_row_of_nans_is_given_more_time_since_data_make_them_by_chance() -> None:
    said = [set(decide(policy, s, form="non-finite").remedies) for policy in [Policy(patience=3)] for s in range(8)]
    assert said[:7] == [{"skip"}] * 7 and said[7] == {"skip", "rollback"}


def test_bad_batches_between_calm_steps_never_accuse_the_weights() -> None:
    policy = Policy(patience=3)
    for step in range(0, 200, 5):
        assert decide(policy, step, excess=1e6, baseline=OVERSHOT).remedies == ("skip",)
        for pause in range(1, 5):
            policy.rest(step + pause)


def test_rows_of_nans_are_judged_by_how_often_the_data_make_one() -> None:
    """Two batches in five are NaN: in a thousand steps a row of eight is common, and no sign of broken weights."""
    policy, chance, slow = Policy(), np.random.default_rng(3), 0
    for step in range(1000):
        if chance.random() < 0.4:
            slow += "rollback" in decide(policy, step, form="non-finite", baseline=OVERSHOT).remedies
        else:
            policy.rest(step)
    assert slow == 0
    said = [decide(policy, 1000 + s, form="non-finite", baseline=OVERSHOT).remedies for s in range(20)]
    assert "rollback" in {remedy for remedies in said for remedy in remedies}


@pytest.mark.parametrize("ordinary", [True, False])
def test_a_stretch_in_which_every_other_batch_is_corrupt_never_accuses_the_weights(ordinary: bool) -> None:
    """Unless what lies between is not as it was: then the weights may have a part in it."""
    policy, chance, slow = Policy(), np.random.default_rng(3), 0
    for step in range(300):
        if chance.random() < 0.5:
            slow += "rollback" in decide(policy, step, excess=1e6, baseline=OVERSHOT).remedies
        else:
            policy.rest(step, ordinary=ordinary)
    assert (slow == 0) is ordinary
    said = [decide(policy, 300 + s, excess=1e6, baseline=OVERSHOT).remedies for s in range(40)]
    assert not ordinary or "rollback" in {remedy for remedies in said for remedy in remedies}


def test_a_corrupt_batch_costs_its_step_and_nothing_else() -> None:
    policy = Policy(patience=1)
    for step in range(20):
        assert decide(policy, step, form="non-finite", blame=(BATCH, LAYER)).remedies == ("skip",)
    assert policy.trials == 0


def test_so_many_large_batches_in_a_row_are_no_accident_and_so_many_nans_stay_corrupt() -> None:
    for form, wanted in (("sudden", Cause.REGIME), ("non-finite", Cause.BATCH)):
        policy, told, said = Policy(max_skipped=6), [], []
        for step in range(3):
            told.append(policy.may_skip)
            said.append(decide(policy, step, form=form, excess=1e6, blame=[BATCH]))  # type: ignore[arg-type]
        assert told == [True, True, False]
        assert [d.cause for d in said] == [Cause.BATCH.value] * 2 + [wanted.value]
        assert {d.remedies for d in said} == {("skip",)}


def test_a_memorable_first_batch_is_undone() -> None:
    said = decide(
        Policy(), form="cold-start", excess=1e5, norm=1.0, baseline=taught([1e5, 1.0, 1.0, 1.0]), blame=(LAYER,)
    )
    assert said.remedies == ("rollback",) and said.cause == Cause.BATCH.value


def test_a_gradient_that_no_optimizer_can_hold_does_not_pass_after_an_empty_step() -> None:
    said = decide(Policy(), form="cold-start", excess=1e30, baseline=taught([0.0]))
    assert "skip" in said.remedies


def test_what_only_asks_for_an_examination_changes_nothing_without_a_culprit() -> None:
    assert decide(Policy(), form="divergence", examine=True).remedies == ()


def test_good_weights_that_explode_as_well_clear_the_rate() -> None:
    policy = Policy(patience=1)
    said = [decide(policy, step, excess=1e6, baseline=OVERSHOT) for step in range(3)]
    assert said[0].remedies == ("skip", "rollback", "backoff")
    assert [(d.remedies, d.cause) for d in said[1:]] == [(("skip",), Cause.REGIME.value)] * 2
    policy.rest(5)  # an update was let through, and what comes now may be its doing
    assert decide(policy, 6, excess=1e6, baseline=OVERSHOT).cause != Cause.REGIME.value


def test_weights_of_two_healthy_times_that_give_nan_as_well_acquit_the_weights() -> None:
    policy = Policy(patience=1)
    said = [decide(policy, step, form="non-finite") for step in range(4)]
    assert [d.remedies for d in said] == [("skip", "rollback"), ("skip", "rollback", "backoff"), ("skip",), ("skip",)]
    assert said[-1].cause == Cause.LOSS.value


# -- treatments


@pytest.mark.parametrize(("baseline", "cause"), [(OLD, Cause.LAYER), (OVERSHOT, Cause.RATE)])
def test_a_damaged_layer_is_repaired_unless_updates_have_moved_layers_about(baseline: Baseline, cause: Cause) -> None:
    decision = decide(Policy(), excess=1e6, blame=(LAYER,), baseline=baseline)
    assert decision.cause == cause.value
    if cause is Cause.LAYER:
        assert decision.remedies == ("skip", "reinitialize") and "net.3" in decision.reason


def test_a_run_that_lost_what_it_had_goes_back_and_lowers_its_rate() -> None:
    said = decide(Policy(), form="divergence")
    assert (said.remedies, said.cause) == (("skip", "rollback", "backoff"), Cause.RATE.value)
    assert said.last, "there is nothing else to try"


def test_a_spoilt_optimizer_is_restored_and_its_rate_left_alone() -> None:
    assert decide(Policy(), form="state").remedies == ("skip", "rollback")


def test_what_did_not_help_is_followed_by_the_next_treatment() -> None:
    policy = Policy()
    said = [decide(policy, excess=1e6, blame=(LAYER,))]
    said += [policy.next_treatment(case(), "it did not help") for _ in range(3)]
    assert [d.remedies for d in said] == [
        ("skip", "reinitialize"),
        ("skip", "rollback"),
        ("skip", "rollback", "backoff"),
        ("skip",),
    ]
    assert [d.last for d in said] == [False, False, True, False]
    assert [d.resign for d in said] == [False, False, False, True]
    assert policy.trials == 3


def test_a_trial_of_the_rate_that_is_lost_again_goes_on_at_a_lower_one() -> None:
    policy = Policy()
    trial = Trial("learning rate", ("rollback", "backoff"), 0)
    trial.observe(1.0)
    said = [decide(policy, step, form="divergence", trial=trial) for step in range(MOST_DESCENTS)]
    assert {(d.remedies, d.again) for d in said} == {(("skip", "rollback", "backoff"), True)}
    assert policy.trials == 0
    assert not decide(policy, 99, form="divergence", trial=trial).again, "so often and no more"


def test_a_trial_of_anything_else_that_is_lost_again_makes_room_for_the_next_treatment() -> None:
    policy = Policy()
    assert decide(policy, form="state").remedies == ("skip", "rollback")
    said = decide(policy, form="divergence", trial=Trial("optimizer", ("rollback",), 0))
    assert (said.remedies, said.cause) == (("skip", "rollback", "backoff"), "optimizer")


def test_alarms_that_ended_in_a_rollback_do_not_speak_against_the_data() -> None:
    """Where the rate is far too high, one good update is made after each rollback, and then all explodes again."""
    policy, gone_back = Policy(), []
    trial = Trial("learning rate", ("rollback", "backoff"), 0)
    for step in range(60):
        if gone_back and step == gone_back[-1] + 1:
            policy.rest(step, ordinary=True)
            trial.observe(1.0)
        elif "rollback" in decide(policy, step, excess=1e6, baseline=OVERSHOT, trial=trial).remedies:
            gone_back.append(step)
    assert max(np.diff(gone_back)) <= 8 and len(gone_back) >= 8


# -- a fresh run


def start(policy: Policy, **more: Any) -> Decision:
    return decide(policy, **{"form": "cold-start", "baseline": Baseline(), "start": True, **more})


def test_a_bad_start_is_looked_at_before_anything_is_treated() -> None:
    policy = Policy()
    said = start(policy, looked=False)
    assert said.look and said.remedies == ("skip", "rollback") and policy.trials == 0
    said = start(policy, signal=EXPLODING)
    assert not said.look and (said.remedies, said.cause) == (("skip", "rollback", "initialize", "backoff"), "start")


def test_who_stands_out_from_the_first_step_is_repaired_first_and_then_the_start_as_a_whole() -> None:
    policy = Policy()
    said = [start(policy, blame=(LAYER,))]
    said += [policy.next_treatment(case(Baseline(), start=True), "it did not help") for _ in range(3)]
    assert [d.remedies for d in said] == [
        ("skip", "reinitialize"),
        ("skip", "rollback", "initialize", "backoff"),
        ("skip", "rollback", "backoff"),
        ("skip",),
    ]
    assert {d.cause for d in said} == {Cause.LAYER.value} and said[-1].resign


def test_a_sound_signal_accuses_the_rate() -> None:
    said = start(Policy(), form="divergence", signal=SOUND)
    assert (said.remedies, said.cause) == (("skip", "rollback", "backoff"), Cause.RATE.value)


def test_a_fresh_run_that_explodes_twice_in_a_row_has_nothing_to_lose() -> None:
    policy = Policy(patience=3)
    said = [start(policy, form="sudden", excess=1e6, baseline=THIN_HISTORY, signal=SOUND) for _ in range(2)]
    assert said[0].remedies == ("skip",) and said[1].remedies == ("skip", "rollback", "backoff")


def test_evidence_that_changes_at_the_start_does_not_begin_the_table_again() -> None:
    """Each treatment changes what stands out, and the run would be drawn anew without end."""
    policy, tried = Policy(), []
    for signal in (EXPLODING, SOUND, EXPLODING, SOUND, EXPLODING):
        tried.append(start(policy, form="divergence", signal=signal))
    assert [d.resign for d in tried] == [False, False, False, True, True]
    assert tried[-1].remedies == (), "the run goes on as it was written"


# -- what is switched off, and what the ladder does not know

OPTIONAL = ("augment", "mine", "regularize")


def test_what_the_ladder_does_not_know_accompanies_treatments_only() -> None:
    policy, can = Policy(patience=3), ALL | set(OPTIONAL)
    said = [decide(policy, step, excess=1e6, can=can, baseline=OVERSHOT).remedies for step in range(3)]
    assert said == [("skip",), ("skip",), ("skip", "rollback", "backoff", *OPTIONAL)]
    repair = decide(Policy(), excess=1e6, blame=[LAYER], can=can).remedies
    assert repair == ("skip", "reinitialize", *OPTIONAL)
    assert decide(Policy(), excess=1e6, blame=[BATCH], can=can).remedies == ("skip",)
    assert decide(Policy(max_trials=0), form="divergence", can=can).remedies == ()


@pytest.mark.parametrize("can", [{"skip", "mine"}, {"mine"}])
@pytest.mark.parametrize("form", ["sudden", "divergence", "state"])
def test_it_stands_in_for_treatments_that_are_switched_off(can: set[str], form: Form) -> None:
    said = decide(Policy(patience=1), form=form, excess=1e6, can=can, baseline=OVERSHOT)
    assert "mine" in said.remedies and set(said.remedies) <= can


def test_an_activation_is_swapped_where_a_layer_is_at_fault_first_alone_and_then_with_what_else_may_help() -> None:
    policy, can = Policy(), {"skip", "backoff", "swap-activation"}
    said = [start(policy, blame=(LAYER,), can=can)]
    said += [policy.next_treatment(case(Baseline(), can, start=True), "it did not help") for _ in range(3)]
    assert [d.remedies for d in said] == [
        ("skip", "swap-activation"),
        ("skip", "backoff", "swap-activation"),
        ("skip", "backoff", "swap-activation"),
        ("skip",),
    ]
    assert said[-1].resign


def test_without_re_initialisation_a_damaged_layer_is_answered_by_the_next_row() -> None:
    assert decide(Policy(), excess=1e6, blame=(LAYER,), can=ALL - {"reinitialize"}).remedies == ("skip", "rollback")


@pytest.mark.parametrize(("can", "expected"), [({"clip"}, ("clip",)), ({"backoff"}, ()), (set(), ())])
def test_what_is_switched_off_is_not_asked_for(can: set[str], expected: tuple[str, ...]) -> None:
    assert decide(Policy(), excess=1e6, can=can).remedies == expected


def test_where_nothing_that_is_switched_on_can_treat_a_run_the_policy_says_so() -> None:
    said = decide(Policy(), form="divergence", can={"clip", "skip"})
    assert said.resign and said.remedies == () and "switched on" in said.reason


# -- episodes and budgets


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


def test_an_episode_stays_open_while_a_treatment_is_on_trial() -> None:
    policy = Policy(calm=3)
    decide(policy, 0, excess=100.0)
    assert not any(policy.rest(step, trial=True) for step in range(1, 20))
    assert policy.rest(20)


def test_a_new_episode_begins_the_table_again() -> None:
    policy = Policy(calm=1)
    assert not decide(policy, 0, form="divergence").resign
    assert decide(policy, 1, form="divergence").resign
    assert policy.rest(2)
    assert not decide(policy, 3, form="divergence").resign


def test_corrupt_batches_do_not_make_a_spike_recurrent() -> None:
    policy = Policy(calm=2)
    for step in range(0, 50, 10):
        decide(policy, step, form="non-finite", blame=(BATCH,))
        policy.rest(step + 1)
        policy.rest(step + 2)
    assert policy.form(verdict(), 51) == "sudden"


def test_the_budget_of_trials_is_kept_over_the_run_and_first_aid_remains() -> None:
    policy, said = Policy(max_trials=3, calm=1), []
    for step in range(0, 12, 2):
        said.append(decide(policy, step, form="divergence"))
        policy.rest(step + 1)
    assert [bool(ON_TRIAL & set(d.remedies)) for d in said] == [True] * 3 + [False] * 3
    assert [d.resign for d in said] == [False] * 3 + [True] * 3
    assert not any(d.exhausted for d in said) and policy.trials == 3
    assert decide(policy, 20, excess=2.0).remedies == ("clip",)


def test_a_budget_of_no_trials_still_leaves_first_aid() -> None:
    policy = Policy(max_trials=0, patience=3)
    said = [decide(policy, step, excess=1e6, baseline=OVERSHOT) for step in range(3)]
    assert [d.remedies for d in said] == [("skip",)] * 3 and not any(d.exhausted for d in said)


@pytest.mark.parametrize("form", ["drift", "divergence"])
def test_a_spent_budget_does_not_skip_usual_gradients_for_ever(form: Form) -> None:
    assert decide(Policy(max_trials=0), 20, form=form, examine=form == "drift").remedies == ()


def test_too_many_skipped_steps_in_a_row_spend_the_budget() -> None:
    policy = Policy(max_skipped=5)
    said = [decide(policy, s, form="non-finite", can={"skip"}).exhausted for s in range(8)]
    assert said == [False] * 4 + [True] * 4
    policy.rest(8)
    assert not decide(policy, 9, form="non-finite", can={"skip"}).exhausted


SUSPECTS = st.sampled_from([(), (BATCH,), (LAYER,)])
FORMS: list[Form] = ["sudden", "drift", "non-finite", "overflow", "cold-start", "divergence", "state"]
EVENTS = st.lists(
    st.one_of(
        st.booleans(),
        st.tuples(
            *(st.sampled_from(FORMS), st.floats(1.0, 1e8), SUSPECTS, st.booleans(), st.booleans(), st.booleans()),
            st.sampled_from([None, EXPLODING, SOUND]),
        ),
    ),
    max_size=80,
)


@given(EVENTS, st.integers(0, 80), st.sampled_from([OLD, OVERSHOT, THIN_HISTORY, Baseline()]))
def test_any_history_is_answered_within_the_budget_and_resumes(events: list[Any], cut: int, baseline: Baseline) -> None:
    def play(policy: Policy, first: int, part: list[Any]) -> list[Any]:
        said: list[Any] = []
        for step, event in enumerate(part, first):
            if isinstance(event, bool):
                said.append(policy.rest(step, ordinary=event))
                continue
            form, excess, blame, examine, begins, looked, signal = event
            known = {"baseline": baseline, "start": begins, "looked": looked, "signal": signal}
            said.append(decide(policy, step, form=form, excess=excess, blame=blame, examine=examine, **known))
            assert begins or "initialize" not in said[-1].remedies, "nothing is drawn anew in a run under way"
        return said

    policy = Policy(max_trials=4, max_skipped=10)
    whole = play(policy, 0, events)
    decisions = [d for d in whole if isinstance(d, Decision)]
    treated = [d for d in decisions if ON_TRIAL & set(d.remedies) and not d.look and d.cause != Cause.BATCH.value]
    assert len(treated) == policy.trials <= 4
    assert all(set(d.remedies) <= ALL and d.reason and d.cause for d in decisions)
    first, second = Policy(max_trials=4, max_skipped=10), Policy(max_trials=4, max_skipped=10)
    play(first, 0, events[:cut])
    second.load_state_dict(through_a_file(first.state_dict()))
    assert whole[cut:] == play(second, min(cut, len(events)), events[cut:])
    assert same(second.state_dict(), policy.state_dict())


def ended(baseline: Baseline, **more: Any) -> Decision:
    """What follows on a rollback whose losses were as bad as the trouble."""
    policy = Policy(patience=1)
    first = decide(policy, 0, form="state", baseline=baseline)
    assert first.remedies == ("skip", "rollback")
    trial = Trial("optimizer", ("rollback",), 0, before=calm(64), trouble=calm(16, level=9.0), learned=True)
    for loss in calm(9, level=12.0, seed=3):
        trial.observe(loss)
    return policy.next_treatment(case(baseline, trial=trial, **more), "no better")


def test_what_good_weights_do_not_cure_at_a_known_rate_is_a_new_regime() -> None:
    assert ended(OLD).cause == Cause.REGIME.value


def test_it_is_the_rate_s_after_large_updates_and_at_a_rate_that_is_searched() -> None:
    assert ended(OVERSHOT).remedies == ended(OLD, searching=True).remedies == ("skip", "rollback", "backoff")


def test_gradients_that_are_not_finite_while_the_loss_is_as_ever_are_skipped_and_the_loss_is_at_fault() -> None:
    policy, known = Policy(), taught(calm(100), calm(100))
    told = {"form": "non-finite", "loss": 1.0, "baseline": known}
    said = [decide(policy, step, **told) for step in range(ANEW + 1)]
    assert all(one.remedies == ("skip",) and one.cause == Cause.LOSS.value for one in said[: ANEW - 1])
    assert said[ANEW].remedies != ("skip",), "so many in a row are no accident"
    broken = Suspect("net.3", math.inf, "x", broken=True)
    assert decide(Policy(), blame=(broken,), **told).remedies != ("skip",)
    assert decide(Policy(), **(told | {"loss": 9.0})).cause != Cause.LOSS.value
    measured = decide(Policy(), blame=(LAYER,), **told)
    assert measured.remedies == ("skip",) and measured.cause == Cause.LAYER.value


def test_a_loss_that_was_seen_to_make_nan_is_left_to_first_aid_while_it_is_as_ever() -> None:
    policy, known = Policy(), taught(calm(100), calm(100))
    told = {"form": "non-finite", "loss": 1.0, "baseline": known, "blame": (LOSS,)}
    said = [decide(policy, step, **told) for step in range(2 * ANEW)]
    assert {(one.remedies, one.cause) for one in said} == {(("skip",), Cause.LOSS.value)}


def test_a_loss_that_overflows_again_and_again_is_treated_and_stays_the_cause() -> None:
    policy, known = Policy(), taught(calm(100), calm(100))
    told = {"form": "non-finite", "loss": math.inf, "baseline": known, "blame": (LOSS,)}
    said = [decide(policy, step, **told) for step in range(30)]
    assert {one.cause for one in said} == {Cause.LOSS.value} and ("skip", "rollback") in [one.remedies for one in said]


def test_a_damaged_layer_is_told_by_its_own_name_only() -> None:
    said = decide(Policy(), blame=(LOSS, LAYER))
    assert said.cause == Cause.LAYER.value and said.reason == "net.3 is at fault"


def test_what_accompanies_treatments_waits_for_the_look_and_no_look_comes_when_all_was_tried() -> None:
    policy, told = Policy(), {"form": "cold-start", "growth": 1.0, "start": True, "can": ALL | {"swap"}}
    look = decide(policy, looked=False, **told)
    assert look.look and look.remedies == ("skip", "rollback")
    assert "swap" in decide(policy, 1, **told).remedies
    while not decide(policy, 2, **told).resign:
        pass
    assert not decide(policy, 3, looked=False, **told).look


def test_a_loss_without_a_lower_bound_ends_the_run_at_a_good_copy() -> None:
    falls = Verdict("divergence", "drift", -4e6, -2e6, "has it a lower bound?")
    said = Policy().decide(falls, statistics(1e7, step=300, loss=-4e6), (), case())
    assert said.exhausted and said.remedies == ("skip", "rollback") and said.cause == Cause.LOSS.value
    rises = Verdict("divergence", "drift", 4e6, 2e6, "x")
    said = Policy().decide(rises, statistics(1e7, step=300, loss=4e6), (), case())
    assert not said.exhausted and said.cause == Cause.RATE.value
