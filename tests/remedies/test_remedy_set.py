"""The remedies of one optimizer: found by what they can do, asked together, and left out one by one."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from torch import nn

from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.errors import GuardError
from lightning_gradguard.policy.act import EVERY, Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies import Clip, Regularize, Remedy, RemedyContext, Skip
from lightning_gradguard.remedies.remedy_set import RemedySet, acts
from tests.builders import context_for


class Lasting(Remedy):
    """Note when it is asked, and fail where that is wanted."""

    name: ClassVar[str] = "lasting"

    def __init__(self, fails: str = "") -> None:
        self.fails, self.asked = fails, list[str]()

    def apply(self, context: RemedyContext) -> Outcome:
        return self._ask("apply", Outcome(self.name, True, "x"))

    def before_update(self, context: RemedyContext) -> None:
        self._ask("before_update")

    def after_update(self) -> None:
        self._ask("after_update")

    def _ask(self, what: str, answer: Any = None) -> Any:
        self.asked.append(what)
        if what == self.fails:
            raise RuntimeError("for a test")
        return answer


class Another(Lasting):
    name: ClassVar[str] = "another"


def adopted(*remedies: Remedy, isolate: Any = None) -> RemedySet:
    found = RemedySet((), isolate)
    found.adopt(remedies)
    return found


def test_what_can_be_done_are_acts_and_the_names_of_those_that_have_none() -> None:
    assert RemedySet(default_remedies()).can == set(EVERY)
    assert RemedySet([Skip(), Regularize()]).can == {Act.SKIP, "regularize"}


def test_words_become_remedies_each_once_and_back() -> None:
    found = adopted(Skip(), Clip(), Lasting())
    assert found.chosen((Act.CLIP, Act.SKIP, Act.CLIP, "lasting", Act.ROLLBACK)) == ("clip", "skip", "lasting")
    assert found.done_by(["clip", "lasting", "gone"]) == {Act.CLIP, "lasting", "gone"}


def test_a_remedy_that_says_nothing_does_what_its_name_is_the_word_for() -> None:
    class Rollback(Lasting):
        name: ClassVar[str] = "rollback"

    assert acts(Rollback()) == {Act.ROLLBACK} and acts(Lasting()) == frozenset()


def test_a_device_gives_first_aid_where_it_can_do_all_of_it_as_the_remedies_would() -> None:
    assert RemedySet([Clip(), Skip()]).first_aid_on_device
    assert not RemedySet([Clip(algorithm="sign"), Skip()]).first_aid_on_device
    assert not RemedySet([Skip()]).first_aid_on_device


def test_one_that_fails_is_named_or_left_out_and_the_others_go_on() -> None:
    context = context_for(nn.Linear(2, 2))
    with pytest.raises(GuardError, match="'lasting' failed"):
        adopted(Lasting("before_update")).before_update(context)
    told: list[GuardError] = []
    bad, good = Lasting("apply"), Another()
    found = adopted(bad, good, isolate=told.append)
    outcomes = found.apply(["lasting", "another"], context)
    assert [(o.remedy, o.applied) for o in outcomes] == [("lasting", False), ("another", True)]
    assert len(told) == 1 and found.can == {"another"}


def test_all_undo_what_they_changed_though_one_fails_to() -> None:
    bad, good = Lasting("after_update"), Another()
    found = adopted(bad, good)
    found.touched = True
    with pytest.raises(GuardError, match="'lasting' failed"):
        found.after_update()
    assert good.asked == ["after_update"] and not found.touched
    found.after_update()
    assert bad.asked == ["after_update"], "who has failed once is not asked again"


def test_who_acts_once_is_not_asked_at_every_step() -> None:
    found = RemedySet([Clip(), Skip(), Lasting()])
    assert [r.name for r in found._before] == ["lasting"]
    assert [r.name for r in found._after] == ["skip", "lasting"]
