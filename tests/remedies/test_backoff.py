"""The learning-rate back-off: seen by the update, by no scheduler, and held between what has worked and what has
failed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.policy.rate_bracket import BELOW, CLIMB, DESCENT, FARTHEST, HEALTHY
from lightning_gradguard.records import Decision
from lightning_gradguard.remedies import LearningRateBackoff
from tests.builders import context_for, same, statistics, through_a_file


def context(
    optimizer: Any, module: nn.Module, *remedies: str, best: bool = False, learned: bool = True, ratio: float = 0.0
) -> Any:
    decision = Decision((*remedies, "backoff"), "for a test")
    return context_for(
        module,
        optimizer,
        decision=decision,
        acts=decision.remedies,
        update_ratio=ratio,
        progress=lambda: (best, best and learned, False),
    )


def linear(*rates: Any, **options: Any) -> tuple[nn.Module, Any]:
    module = nn.Linear(2, 2)
    first, second = rates or (0.1, 0.01)
    groups = [{"params": [module.weight], "lr": first}, {"params": [module.bias], "lr": second}]
    return module, torch.optim.SGD(groups, lr=0.1, **options)


def rates(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def updates(backoff: LearningRateBackoff, optimizer: Any, module: nn.Module, count: int, **seen: Any) -> list[float]:
    """Return the largest rate of each of so many updates."""
    made = []
    for _ in range(count):
        backoff.before_update(context(optimizer, module, **seen))
        made.append(max(rates(optimizer)))
        backoff.after_update()
    return made


def test_the_lower_rate_is_on_the_groups_during_the_update_only() -> None:
    module, optimizer = linear(0.1, 0.01)
    backoff = LearningRateBackoff()
    outcome = backoff.apply(context(optimizer, module))
    assert outcome.applied and outcome.detail == "learning rate 0.0125, after 0.1 had lost the run"
    assert rates(optimizer) == [0.1, 0.01] and not backoff.in_effect
    backoff.before_update(context(optimizer, module))
    assert rates(optimizer) == [0.1 / DESCENT, 0.01 / DESCENT] and backoff.in_effect
    assert backoff.factor == 1.0 / DESCENT
    for _ in range(2):
        backoff.after_update()
        assert rates(optimizer) == [0.1, 0.01] and not backoff.in_effect


def test_nobody_who_has_not_lost_a_run_is_held_back() -> None:
    module, optimizer = linear(0.1, 0.01)
    backoff = LearningRateBackoff()
    assert updates(backoff, optimizer, module, 30, best=True) == [0.1] * 30
    assert backoff.factor == 1.0 and backoff.bracket.good == 0.1


def test_groups_keep_their_proportions_also_when_a_schedule_unfreezes_one() -> None:
    module, optimizer = linear(0.0, 1.0)
    backoff = LearningRateBackoff()
    backoff.apply(context(optimizer, module))
    optimizer.param_groups[0]["lr"] = 2.0
    backoff.before_update(context(optimizer, module))
    assert rates(optimizer) == pytest.approx([1.0 / DESCENT, 0.5 / DESCENT])
    backoff.after_update()
    assert rates(optimizer) == [2.0, 1.0]


def test_it_is_the_lowered_rate_that_is_convicted_when_the_run_is_lost_again() -> None:
    module, optimizer = linear(0.8, 0.0)
    backoff = LearningRateBackoff()
    for expected in (0.8 / DESCENT, 0.8 / DESCENT**2):
        backoff.apply(context(optimizer, module))
        assert updates(backoff, optimizer, module, 1) == pytest.approx([expected])


@pytest.mark.parametrize(("ratio", "times"), [(0.0, DESCENT), (5.0, 5.0 / HEALTHY), (1e9, FARTHEST)])
def test_the_size_of_the_updates_tells_how_far_to_go_down(ratio: float, times: float) -> None:
    module, optimizer = linear(0.1, 0.01)
    backoff = LearningRateBackoff()
    backoff.apply(context(optimizer, module, ratio=ratio))
    assert updates(backoff, optimizer, module, 1) == pytest.approx([0.1 / times])


def test_a_rate_that_leaps_is_brought_to_the_one_that_the_run_had_learned_with() -> None:
    module, optimizer = linear(0.1, 0.01)
    backoff = LearningRateBackoff()
    updates(backoff, optimizer, module, 5, best=True)
    optimizer.param_groups[0]["lr"] = 10.0
    backoff.apply(context(optimizer, module, ratio=50.0))
    assert updates(backoff, optimizer, module, 1) == pytest.approx([0.1])
    assert rates(optimizer) == [10.0, 0.01]


def test_a_larger_rate_that_the_loss_falls_with_is_remembered_and_one_without_a_fall_is_not() -> None:
    module, optimizer = linear(0.1, 0.01)
    for best, expected in ((True, 0.2), (False, 0.1)):
        backoff = LearningRateBackoff()
        updates(backoff, optimizer, module, 5, best=True)
        for group, rate in zip(optimizer.param_groups, (0.2, 0.02), strict=True):
            group["lr"] = rate
        there = context(optimizer, module, best=best)
        object.__setattr__(there.statistics, "rate", 0.2)
        backoff.before_update(there)
        backoff.after_update()
        assert backoff.bracket.good == expected
        for group, rate in zip(optimizer.param_groups, (0.1, 0.01), strict=True):
            group["lr"] = rate


def test_it_climbs_only_while_the_loss_is_at_its_best_and_not_above_a_quarter_of_what_failed() -> None:
    module, optimizer = linear(0.1, 0.01)
    backoff = LearningRateBackoff()
    backoff.apply(context(optimizer, module))
    assert updates(backoff, optimizer, module, 10) == pytest.approx([0.1 / DESCENT] * 10)
    climbing = updates(backoff, optimizer, module, 5, best=True)
    assert climbing == pytest.approx([0.1 / DESCENT * CLIMB**i for i in range(5)])
    stood = updates(backoff, optimizer, module, 5)
    assert stood == pytest.approx([climbing[-1] * CLIMB] * 5)
    assert max(updates(backoff, optimizer, module, 60, best=True)) == pytest.approx(BELOW * 0.1)
    assert rates(optimizer) == [0.1, 0.01]


@pytest.mark.parametrize("low", [0.001, 0.03])
def test_a_schedule_that_dips_forgets_nothing(low: float) -> None:
    module, optimizer = linear(0.1, 0.0)
    backoff = LearningRateBackoff()
    backoff.apply(context(optimizer, module))
    optimizer.param_groups[0]["lr"] = low
    dipped = updates(backoff, optimizer, module, 20)
    assert max(dipped) == min(low, 0.1 / DESCENT)
    optimizer.param_groups[0]["lr"] = 0.2
    assert updates(backoff, optimizer, module, 3) == pytest.approx([0.1 / DESCENT] * 3)


def test_after_a_network_was_drawn_anew_the_rate_climbs_up_to_the_whole_schedule() -> None:
    module, optimizer = linear(0.1, 0.01)
    backoff = LearningRateBackoff()
    backoff.apply(context(optimizer, module))
    outcome = backoff.apply(context(optimizer, module, "rollback", "initialize"))
    assert outcome.applied and outcome.detail == "learning rate 0.0125, to climb to 0.1"
    made = updates(backoff, optimizer, module, 60, best=True)
    assert made[0] == pytest.approx(0.1 / DESCENT) and made[-1] == 0.1 and backoff.bracket.free


def test_a_rate_of_zero_cannot_be_lowered() -> None:
    module, optimizer = linear(0.0, 0.0)
    backoff = LearningRateBackoff()
    assert not backoff.apply(context(optimizer, module)).applied and backoff.bracket.free


def test_an_update_that_never_happened_does_not_add_up() -> None:
    module, optimizer = linear(0.1, 0.01)
    backoff = LearningRateBackoff()
    backoff.apply(context(optimizer, module))
    for _ in range(5):
        backoff.before_update(context(optimizer, module))
        assert rates(optimizer) == [0.1 / DESCENT, 0.01 / DESCENT]
    backoff.after_update()
    assert rates(optimizer) == [0.1, 0.01]


def test_an_optimizer_that_raises_in_its_step_gets_its_rates_back() -> None:
    def raises(*_: Any) -> None:
        raise ZeroDivisionError

    module, optimizer = linear(0.1, 0.01)
    guard = Guard(module)
    backoff: Any = guard.attach(optimizer).remedies["backoff"]
    backoff.apply(context(optimizer, module))
    optimizer.register_step_pre_hook(raises)
    for _ in range(2):
        module(torch.ones(3, 2)).square().mean().backward()
        guard.before_step(optimizer)
        assert rates(optimizer) == [0.1 / DESCENT, 0.01 / DESCENT], "lowered once, whatever became of the last update"
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
    guard.after_step()
    assert rates(optimizer) == [0.1, 0.01]


def test_a_tensor_rate_that_groups_share_is_scaled_once_and_in_place() -> None:
    module, rate = nn.Linear(2, 2), torch.tensor(0.1)
    groups = [{"params": [module.weight]}, {"params": [module.bias]}]
    optimizer = torch.optim.Adam(groups, lr=rate, foreach=False)
    backoff = LearningRateBackoff()
    backoff.apply(context(optimizer, module))
    backoff.before_update(context(optimizer, module))
    assert rates(optimizer) == pytest.approx([0.1 / DESCENT] * 2)
    backoff.after_update()
    assert rates(optimizer) == pytest.approx([0.1] * 2)
    assert all(group["lr"] is rate for group in optimizer.param_groups)


EVENTS = st.one_of(
    st.tuples(st.just("lost"), st.floats(0.0, 1e4)),
    st.tuples(st.just("schedule"), st.floats(1e-6, 10.0)),
    st.tuples(st.just("updates"), st.booleans(), st.integers(1, 40)),
)


@given(st.lists(EVENTS, max_size=25), st.integers(0, 25))
def test_any_history_keeps_below_schedule_and_bound_and_resumes(events: list[Any], cut: int) -> None:
    module, optimizer = linear(0.1, 0.01)
    whole, resumed = LearningRateBackoff(), LearningRateBackoff()
    for index, (kind, *told) in enumerate(events):
        if index == cut:
            resumed.load_state_dict(through_a_file(whole.state_dict()))
        both = (whole, resumed) if index >= cut else (whole,)
        if kind == "lost":
            for backoff in both:
                backoff.apply(context(optimizer, module, ratio=told[0]))
            continue
        if kind == "schedule":
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = told[0], 0.1 * told[0]
            continue
        before = rates(optimizer)
        for _ in range(told[1]):
            allowed, made = whole.bracket.in_use, []
            for backoff in both:
                made += updates(backoff, optimizer, module, 1, best=told[0])
            assert len(set(made)) == 1 and 0.0 < made[0] <= min(before[0], allowed) * (1 + 1e-12)
            assert 0.0 < whole.factor <= 1.0
        assert rates(optimizer) == before
    if cut < len(events):
        assert same(whole.state_dict(), resumed.state_dict())


def test_what_did_not_help_leaves_the_rate_as_it_was_before_that_trouble() -> None:
    """The first time that is the schedule; later it is what another trouble had convicted, which must not come back."""
    module, optimizer = linear(0.1, 0.01)
    backoff = LearningRateBackoff()
    for _ in range(2):
        backoff.apply(context(optimizer, module))
        backoff.give_up()
        assert backoff.bracket.free and updates(backoff, optimizer, module, 1) == [0.1]
    backoff.apply(context(optimizer, module))
    kept = updates(backoff, optimizer, module, 5, best=True)[-1]
    known = backoff.bracket.state_dict()
    for treated in (False, True):
        again = context(optimizer, module)
        again.treated = treated
        backoff.apply(again)
    assert max(updates(backoff, optimizer, module, 1)) < 0.1 * kept
    resumed = LearningRateBackoff()
    resumed.load_state_dict(through_a_file(backoff.state_dict()))
    resumed.give_up()
    assert resumed.bracket.state_dict() == known and resumed.rate(0.1) == pytest.approx(kept * CLIMB)


def test_what_a_run_has_learned_with_is_known_after_a_treatment_that_lowered_the_rate_in_vain() -> None:
    """Another remedy may have been tried first in the same trouble: then too the rate is what it was before."""
    module, optimizer = linear(0.1, 0.01)
    backoff, late = LearningRateBackoff(), context(optimizer, module)
    updates(backoff, optimizer, module, 5, best=True)
    assert backoff.bracket.good == 0.1
    late.treated = True
    backoff.apply(late)
    backoff.give_up()
    assert backoff.bracket.free and backoff.bracket.good == 0.1


def test_from_a_conviction_on_updates_that_would_replace_weights_are_clipped_at_any_rate() -> None:
    """How large an update a norm makes is told by what was measured: here a norm of 1 at rate 0.1 is the limit."""
    module, optimizer = linear(0.1, 0.01)
    backoff = LearningRateBackoff()

    def norm_after(backoff: LearningRateBackoff, norm: float, reach: float = 0.1) -> float:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, norm / 6**0.5)
        made = context(optimizer, module)
        made.statistics, made.reach = statistics(norm), lambda rate: reach / rate
        backoff.before_update(made)
        backoff.after_update()
        return float(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm())

    assert norm_after(backoff, 50.0) == pytest.approx(50.0) and backoff.deferrable
    convicted = context(optimizer, module)
    convicted.reach = lambda rate: 0.1 / rate
    backoff.apply(convicted)
    assert not backoff.deferrable, "the norm of the step at hand has to be known"
    held = backoff.bracket.in_use
    assert norm_after(backoff, 0.05 / held) == pytest.approx(0.05 / held)
    assert norm_after(backoff, 50.0 / held) == pytest.approx(0.1 / held)
    assert norm_after(backoff, 50.0, reach=0.0) == pytest.approx(50.0), "where nothing was measured"
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1 * held
    assert norm_after(backoff, 50.0 / held) == pytest.approx(1.0 / held), "and below what is in use"
    optimizer.param_groups[0]["lr"] = 0.1
    resumed = LearningRateBackoff()
    resumed.load_state_dict(through_a_file(backoff.state_dict()))
    backoff.bracket.acquit()
    assert norm_after(backoff, 50.0) == pytest.approx(1.0), "and at the rate of the schedule too"
    assert norm_after(resumed, 50.0 / held) == pytest.approx(0.1 / held)
    resumed.give_up()
    assert norm_after(resumed, 50.0) == pytest.approx(50.0)
