"""Bring numbers of the optimizer with which an update goes wrong to usable ones."""

from __future__ import annotations

from typing import Any, ClassVar

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

    def apply(self, context: RemedyContext) -> Outcome:
        """Mend what is odd; what was mended before, and kept, is no part of this trial."""
        if not (mended := mend(context.optimizer)):
            return Outcome(self.name, applied=False, detail="no number of the optimizer is odd")
        self._mended = mended
        return Outcome(self.name, True, "; ".join(dict.fromkeys(map(str, mended))))

    def take_back(self, context: RemedyContext) -> None:
        """Put the old numbers back, but for those that somebody has written since."""
        put_back(context.optimizer, self._mended)
        self._mended = []

    def state_dict(self) -> dict[str, Any]:
        """Return what was changed last: where, and from what to what."""
        mended = [[one.group, one.name, _saved(one.held), _saved(one.usable)] for one in self._mended]
        return {"mended": mended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._mended = [
            OddNumber(int(group), str(name), _loaded(held), _loaded(usable))
            for group, name, held, usable in state["mended"]
        ]


def _saved(value: Any) -> Any:
    """Return a number as states may hold it: nothing is ``""``, and a pair is a list."""
    return "" if value is None else list(value) if isinstance(value, tuple) else value


def _loaded(value: Any) -> Any:
    return None if value == "" else tuple(value) if isinstance(value, list) else value
