"""Bring numbers of the optimizer with which an update goes wrong to usable ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lightning_gradguard.attribution.optimizer_numbers import OddNumber, mend, put_back
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext


class TuneOptimizer(Remedy):
    """Mend the numbers in the optimizer's groups that are odd, and leave all others as they are.

    An eps that is 0 in the dtype of the parameters, L-BFGS without a line search, a momentum (or first beta) above
    0.98, and betas of which Adam's convergence is not known. They are part of the optimizer's own state, so a
    checkpoint holds them as they were mended, and a rollback leaves them alone.
    """

    name: ClassVar[str] = "tune"
    acts: ClassVar[frozenset[str]] = frozenset({Act.TUNE})
    deferrable: ClassVar[bool] = True

    def __init__(self) -> None:
        self._mended: list[OddNumber] = []
        self._optimizer: torch.optim.Optimizer | None = None
        # Whether they are to be put back, and no optimizer was at hand.
        self._owed = False

    def apply(self, context: RemedyContext) -> Outcome:
        """Mend what is odd."""
        self.before_update(context)
        self._optimizer = context.optimizer
        if not (mended := mend(context.optimizer)):
            return Outcome(self.name, applied=False, detail="no number of the optimizer is odd")
        self._mended += mended
        return Outcome(self.name, True, "; ".join(dict.fromkeys(map(str, mended))))

    def before_update(self, context: RemedyContext) -> None:
        """Put back what a run that was resumed since then still has to."""
        if self._owed:
            self._put_back(context.optimizer)

    def keep(self) -> None:
        """Leave the numbers as they are for good, unless they are to be put back."""
        if not self._owed:
            self._mended = []

    def take_back(self) -> None:
        """Put the old numbers back, but for those that somebody has written since."""
        self._owed = bool(self._mended)
        if self._owed and self._optimizer is not None:
            self._put_back(self._optimizer)

    def _put_back(self, optimizer: torch.optim.Optimizer) -> None:
        put_back(optimizer, self._mended)
        self._mended, self._owed = [], False

    def state_dict(self) -> dict[str, Any]:
        """Return what was changed and is on trial: where, and from what to what."""
        mended = [[one.group, one.name, _saved(one.held), _saved(one.usable)] for one in self._mended]
        return {"mended": mended, "owed": self._owed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._mended = [
            OddNumber(int(group), str(name), _loaded(held), _loaded(usable))
            for group, name, held, usable in state["mended"]
        ]
        self._owed = bool(state["owed"])


def _saved(value: Any) -> Any:
    """Return a number as states may hold it: nothing is ``""``, and a pair is a list."""
    return "" if value is None else list(value) if isinstance(value, tuple) else value


def _loaded(value: Any) -> Any:
    return None if value == "" else tuple(value) if isinstance(value, list) else value
