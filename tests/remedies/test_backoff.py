"""The learning-rate back-off: seen by the update, by no scheduler, and gone afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gradguard.records import Decision, Verdict
from lightning_gradguard.remedies import LearningRateBackoff
from tests.builders import same, scene_for, through_a_file


def scene(optimizer: Any, module: nn.Module, factor: float = 0.5) -> Any:
    return scene_for(module, optimizer, decision=Decision(("backoff",), "for a test", factor=factor))


def linear(rate: Any = 0.1, **options: Any) -> tuple[nn.Module, Any]:
    module = nn.Linear(2, 2)
    groups = [{"params": [module.weight]}, {"params": [module.bias], "lr": 0.01}]
    return module, torch.optim.SGD(groups, lr=rate, **options)


def test_the_factor_is_on_the_rates_during_the_update_only() -> None:
    module, optimizer = linear()
    backoff = LearningRateBackoff()
    backoff.apply(scene(optimizer, module))
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.01]
    backoff.before_update(scene(optimizer, module))
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.005]
    backoff.after_update()
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.01]
    backoff.after_update()
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.01]


def test_a_factor_of_one_takes_back_what_no_update_has_used() -> None:
    module, optimizer = linear()
    backoff, fresh = LearningRateBackoff(), LearningRateBackoff()
    backoff.apply(scene(optimizer, module))
    backoff.apply(scene(optimizer, module))
    through = through_a_file(backoff.state_dict())
    backoff.load_state_dict(through)
    assert backoff.apply(scene(optimizer, module, factor=1.0)).applied
    assert same(backoff.state_dict(), fresh.state_dict())
    backoff.apply(scene(optimizer, module))
    backoff.before_update(scene(optimizer, module))
    backoff.after_update()
    assert not backoff.apply(scene(optimizer, module, factor=1.0)).applied and backoff.factor == 0.5


def test_weights_get_back_the_rate_they_had_lived_with_unless_that_was_a_warm_ups() -> None:
    for step, expected in ((10, 0.05 * 0.5), (80, 0.001 * 0.5)):
        module, optimizer = linear()
        there = scene_for(module, optimizer, decision=Decision(("rollback", "backoff"), "for a test", factor=0.5))
        there.snapshots.take(step, {}, {}, optimizer, {"rate": 0.1 * 0.001})
        backoff = LearningRateBackoff()
        backoff.apply(there)
        assert backoff.factor == pytest.approx(expected)


def test_a_rate_is_never_raised_however_far_the_schedule_has_run_away() -> None:
    module, optimizer = linear(rate=0.1)
    backoff = LearningRateBackoff(min_factor=1e-3)
    backoff.apply(scene(optimizer, module))
    optimizer.param_groups[0]["lr"] = 1e6
    capped = backoff.share(1e6) * 1e6
    backoff.apply(scene(optimizer, module))
    assert capped == pytest.approx(0.05) and backoff.share(1e6) * 1e6 <= capped


def test_a_leap_becomes_a_warm_up_and_is_forgotten_when_the_schedule_comes_back() -> None:
    module, optimizer = linear(rate=10.0)
    there = scene(optimizer, module, factor=0.01)
    there.verdict = Verdict("rate", "rate-leap", 10.0, 0.1, "for a test")
    backoff = LearningRateBackoff(hold=3, recover=1)
    backoff.apply(there)
    rates = []
    for _ in range(6):
        backoff.before_update(there)
        rates.append(optimizer.param_groups[0]["lr"])
        backoff.after_update()
        assert optimizer.param_groups[0]["lr"] == 10.0
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.2, 0.4]) and backoff.factor == 1.0
    optimizer.param_groups[0]["lr"] = 0.1
    backoff.before_update(there)
    assert optimizer.param_groups[0]["lr"] == 0.1 and backoff.share(10.0) == 1.0


def test_of_several_groups_only_the_one_that_leapt_is_held() -> None:
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [module.bias], "lr": 0.01}, {"params": [module.weight], "lr": 10.0}])
    there = scene(optimizer, module)
    there.verdict = Verdict("rate", "rate-leap", 10.0, 0.1, "for a test")
    backoff = LearningRateBackoff()
    backoff.apply(there)
    backoff.before_update(there)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1])
    backoff.after_update()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 10.0]


def test_groups_keep_their_proportions_when_all_are_lowered() -> None:
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [module.bias], "lr": 0.0}, {"params": [module.weight], "lr": 1.0}])
    backoff = LearningRateBackoff()
    backoff.apply(scene(optimizer, module, factor=0.5))
    optimizer.param_groups[0]["lr"] = 2.0  # a schedule unfreezes it, at a rate above the cap
    backoff.before_update(scene(optimizer, module))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.25])


def test_an_update_that_never_happened_does_not_add_up() -> None:
    module, optimizer = linear()
    backoff = LearningRateBackoff()
    backoff.apply(scene(optimizer, module))
    for _ in range(5):
        backoff.before_update(scene(optimizer, module))
    assert optimizer.param_groups[0]["lr"] == 0.05
    backoff.after_update()
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_tensor_rate_that_groups_share_is_scaled_once_and_in_place() -> None:
    module, rate = nn.Linear(2, 2), torch.tensor(0.1)
    groups = [{"params": [module.weight]}, {"params": [module.bias]}]
    optimizer = torch.optim.Adam(groups, lr=rate, foreach=False)
    backoff = LearningRateBackoff()
    backoff.apply(scene(optimizer, module))
    backoff.before_update(scene(optimizer, module))
    assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx([0.05, 0.05])
    backoff.after_update()
    assert [float(g["lr"]) for g in optimizer.param_groups] == pytest.approx([0.1, 0.1])
    assert optimizer.param_groups[0]["lr"] is rate


def test_it_holds_then_recovers_to_one_after_a_first_trouble() -> None:
    module, optimizer = linear()
    backoff = LearningRateBackoff(hold=5, recover=10)
    backoff.apply(scene(optimizer, module))
    factors = []
    for _ in range(30):
        backoff.before_update(scene(optimizer, module))
        factors.append(optimizer.param_groups[0]["lr"] / 0.1)
        backoff.after_update()
    assert factors[:6] == pytest.approx([0.5] * 6)
    assert factors == sorted(factors) and factors[-1] == pytest.approx(1.0)
    assert factors[15] == pytest.approx(1.0, rel=0.1)


def test_trouble_that_returns_leaves_a_permanent_ceiling() -> None:
    module, optimizer = linear()
    backoff = LearningRateBackoff(hold=0, recover=1)
    backoff.apply(scene(optimizer, module))
    backoff.apply(scene(optimizer, module))
    for _ in range(50):
        backoff.before_update(scene(optimizer, module))
        backoff.after_update()
    assert 0.25 < backoff.factor < 0.5


@given(st.lists(st.one_of(st.floats(1e-6, 1.0), st.none()), max_size=60))
def test_the_factor_stays_between_its_floor_and_a_ceiling_that_never_rises(events: list[float | None]) -> None:
    module, optimizer = linear()
    backoff = LearningRateBackoff(hold=2, recover=3, min_factor=1e-4)
    ceiling = 1.0
    for factor in events:
        if factor is not None:
            before = backoff.factor
            backoff.apply(scene(optimizer, module, factor))
            assert backoff.factor <= before
        backoff.before_update(scene(optimizer, module))
        backoff.after_update()
        assert 1e-4 <= backoff.factor <= max(backoff.ceiling, 1e-4) <= ceiling
        ceiling = backoff.ceiling
        again = LearningRateBackoff()
        again.load_state_dict(through_a_file(backoff.state_dict()))
        assert same(again.state_dict(), backoff.state_dict())
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.01]


def test_a_rate_that_was_insane_from_the_start_stays_where_it_was_brought_down_to() -> None:
    module, optimizer = linear()
    backoff = LearningRateBackoff(hold=0, recover=1)
    decision = Decision(("backoff",), "for a test", factor=0.1, permanent=True)
    backoff.apply(scene_for(module, optimizer, decision=decision))
    for _ in range(50):
        backoff.before_update(scene(optimizer, module))
        backoff.after_update()
    assert backoff.factor == pytest.approx(0.1)
