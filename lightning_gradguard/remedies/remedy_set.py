"""The remedies of one optimizer. One idea: they are asked by what they can do, and one that fails is left out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

from torch import nn

from lightning_gradguard.errors import GuardError, Isolation, expected, overrides
from lightning_gradguard.policy.act import EVERY, FIRST_AID
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext


class RemedySet:
    """Have copies of remedies do what is called for.

    Args:
        prototypes: What copies are made of.
        isolate: Told of a remedy that failed and is left out from then on; None lets the error pass.

    Attributes:
        touched: Whether there may be something that has to be undone after the update.
    """

    def __init__(self, prototypes: Sequence[Remedy], isolate: Callable[[GuardError], None] | None = None) -> None:
        self._isolation = Isolation(isolate, self._leave_out)
        self.adopt(copy.deepcopy(list(prototypes)))
        self.touched = False

    def adopt(self, remedies: Sequence[Remedy]) -> None:
        """Ask these remedies, themselves and no copies, from now on."""
        self._kept = {remedy.name: remedy for remedy in remedies}
        self._find()

    def _find(self) -> None:
        # Most remedies act once and need not be asked at every step.
        self._last(self._with("before_update", "after_update"))
        self._preparing = self._with("before_forward")
        self._clearing = self._with("before_backward")
        self._slowing = self._with("rate")
        self._measuring = self._with("finish")
        aid = {act: [r for r in self._kept.values() if act in acts(r)] for act in FIRST_AID}
        # Whether a device can give first aid by itself.
        self.first_aid_on_device = all(any(remedy.on_device for remedy in found) for found in aid.values())

    def _last(self, remedies: list[Remedy]) -> None:
        self._lasting = remedies
        # Those that do nothing before an update are not asked at every step.
        self._before = [r for r in remedies if overrides(r, Remedy, "before_update")]
        self._after = [r for r in remedies if overrides(r, Remedy, "after_update")]

    def __iter__(self) -> Iterator[Remedy]:
        """Go through the remedies."""
        return iter(self._kept.values())

    def __getitem__(self, name: str) -> Remedy:
        """Return the remedy of a name."""
        return self._kept[name]

    def _leave_out(self, remedy: Remedy) -> None:
        if self._kept.pop(remedy.name, None) is None:
            return
        # New lists, since somebody may be going through the old ones.
        left = [r for r in self._lasting if r is not remedy]
        self._find()
        self._last(left)
        with suppress(Exception):
            remedy.after_update()

    @property
    def can(self) -> set[str]:
        """What can be done here: acts, and the names of remedies that do none of them."""
        return {word for remedy in self._kept.values() for word in acts(remedy) or {remedy.name}}

    @property
    def deferrable(self) -> bool:
        """Whether all that is done before every update can do without the statistics of the step at hand."""
        return all(remedy.deferrable for remedy in self._lasting)

    def doing(self, word: str) -> list[Remedy]:
        """Return the remedies that do an act, or the one of that name that does none."""
        return [r for r in self._kept.values() if word in (acts(r) or {r.name})]

    def done_by(self, names: Collection[str]) -> set[str]:
        """Return what the remedies of these names do; the name itself of one that does no act, or is here no more."""
        known = self._kept
        return {word for name in names for word in ((acts(known[name]) if name in known else None) or {name})}

    def chosen(self, words: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the remedies that a decision calls for, each once."""
        return tuple(dict.fromkeys(remedy.name for word in words for remedy in self.doing(word)))

    def apply(self, names: Sequence[str], context: RemedyContext) -> tuple[Outcome, ...]:
        """Have the remedies of these names act, one after the other; return what each did."""
        outcomes = []
        for name in names:
            outcome = Outcome(name, applied=False, detail="it failed itself")
            with self._isolation.block(self._kept[name], "remedy"):
                outcome = expected(self._kept[name].apply(context), Outcome)
            outcomes.append(outcome)
        return tuple(outcomes)

    @property
    def lr_factor(self) -> float:
        """Factor on the learning rate now."""
        return math.prod(float(remedy.rate_factor) for remedy in self._kept.values())

    @property
    def cooled(self) -> float:
        """Share of a lower rate that is in use in its cool-down near the end of the run; 1 before."""
        return math.prod(float(remedy.cooled) for remedy in self._kept.values())

    def rate(self, scheduled: float) -> float:
        """Return the rate that the next update is made with, of what the schedule says."""
        for remedy in self._slowing:
            try:  # no ``with`` block, which would cost more at every step
                scheduled = float(remedy.rate(scheduled))
            except Exception as error:
                self._isolation.failed(remedy, "remedy", error)
        return scheduled

    def known_rates(self) -> tuple[float, float]:
        """Return the largest learning rate known to be good and the smallest known to be bad; NaN for unknown."""
        for remedy in self._slowing:
            with self._isolation.block(remedy, "remedy"):
                return remedy.known_rates()
        return math.nan, math.nan

    @property
    def rescaled(self) -> frozenset[str]:
        """Names of parameters whose updates are not those that gradient and rate foretell."""
        return frozenset().union(*(remedy.rescaled for remedy in self._kept.values()))

    @property
    def at_work(self) -> bool:
        """Whether a remedy uses the batch at hand up, so that :meth:`finish` is to be called."""
        return any(remedy.at_work for remedy in self._measuring)

    def finish(self, mean: Callable[[list[float]], list[float]] | None) -> str | None:
        """Return in words what a remedy has done with the batch that it has used up; None where none has."""
        for remedy in self._measuring:
            if remedy.at_work:
                with self._isolation.block(remedy, "remedy"):
                    return expected(remedy.finish(mean), str)
        return None

    def before_forward(self, batch: Any) -> bool:
        """Let the remedies that prepare batches change one in place; return whether one did."""
        for remedy in list(self._preparing):
            self.touched = True
            with self._isolation.block(remedy, "remedy"):
                if remedy.before_forward(batch):
                    return True
        return False

    def before_backward(self, parameters: Collection[nn.Parameter]) -> bool:
        """Let remedies clear gradients that were stepped by already; return whether one did."""
        for remedy in list(self._clearing):
            with self._isolation.block(remedy, "remedy"):
                if remedy.before_backward(parameters):
                    return True
        return False

    def before_update(self, context: RemedyContext) -> None:
        """Let the lasting remedies change what they change for an update that is going to be made."""
        for remedy in self._before:
            try:  # no ``with`` block, which would cost more at every step
                remedy.before_update(context)
            except Exception as error:
                self._isolation.failed(remedy, "remedy", error)

    def after_update(self) -> None:
        """Let lasting remedies undo what they changed for the update."""
        failed: tuple[Remedy, Exception] | None = None
        for remedy in self._after:
            try:
                remedy.after_update()
            except Exception as error:
                # The others must still undo what they changed; and who failed once is not asked again.
                self._last([r for r in self._lasting if r is not remedy])
                failed = failed or (remedy, error)
        # Not before: an interrupt comes when it likes, and who puts everything back after it must find the rest.
        self.touched = False
        if failed is not None:
            self._isolation.failed(failed[0], "remedy", failed[1])

    def take_back(self, names: Collection[str], context: RemedyContext) -> None:
        """Have remedies of a trial that has failed undo what lasts of them; those that do no act have part in all."""
        for remedy in [r for r in self._kept.values() if r.name in names or not acts(r)]:
            with self._isolation.block(remedy, "remedy"):
                remedy.take_back(context)

    def give_up(self) -> None:
        """Tell remedies that no treatment has helped."""
        for remedy in list(self._kept.values()):
            with self._isolation.block(remedy, "remedy"):
                remedy.give_up()

    def close(self) -> None:
        """Have remedies take their hooks off."""
        for remedy in list(self._kept.values()):
            with self._isolation.block(remedy, "remedy"):
                remedy.close()

    def resume(self, module: nn.Module) -> None:
        """Let remedies that had changed the module itself do so again, once their state is loaded."""
        for remedy in list(self._kept.values()):
            with self._isolation.block(remedy, "remedy"):
                remedy.resume(module)

    def _with(self, *methods: str) -> list[Remedy]:
        return [remedy for remedy in self._kept.values() if overrides(remedy, Remedy, *methods)]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each remedy, by name."""
        states = {}
        for remedy in list(self):
            with self._isolation.block(remedy, "remedy"):
                states[remedy.name] = expected(remedy.state_dict(), dict)
        return states

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned; remedies that are new since then start afresh."""
        for remedy in list(self):
            if remedy.name in states:
                with self._isolation.block(remedy, "remedy"):
                    remedy.load_state_dict(states[remedy.name])


def acts(remedy: Remedy) -> frozenset[str]:
    """Return what a remedy says it does; of one that says nothing, the act that it has the name of, if there is one."""
    return frozenset(remedy.acts) or EVERY & {remedy.name}
