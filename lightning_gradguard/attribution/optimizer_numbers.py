"""Numbers of an optimizer with which an update is not what its formula promises, and the ones they are brought to."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import torch

from lightning_gradguard.records import OPTIMIZER, Suspect

LONGEST_MEMORY = 0.98
"""Momentum above which it is odd: an update then repeats the last fifty gradients, 1 / (1 - momentum) of them."""
USUAL_MOMENTUM = 0.9
"""Momentum that it is brought to, and first of Adam's betas: ten gradients, the default nearly everywhere."""
USUAL_BETAS = (0.9, 0.999)
"""Adam's betas by default (Kingma and Ba, 2015, Algorithm 1)."""
SEARCH = "strong_wolfe"
"""The one line search that ``torch.optim.LBFGS`` has."""

_Found = tuple[Any, str] | None


class OddNumber(NamedTuple):
    """A number of one group of parameters, and the one that it is brought to.

    Args:
        group: Position of the group.
        name: Its key in the group.
        held: What it is.
        usable: What it is brought to.
        told: What is wrong with it, in words.
    """

    group: int
    name: str
    held: Any
    usable: Any
    told: str = ""

    def __str__(self) -> str:
        """Return the change, as ``eps 1e-8 -> 2.44e-4``."""
        return f"{self.name} {_said(self.held)} -> {_said(self.usable)}"


def odd_number(optimizer: torch.optim.Optimizer) -> str | None:
    """Return, in words, what is odd about the numbers of an optimizer; None where nothing is."""
    return "; ".join(dict.fromkeys(one.told for one in _odd(optimizer))) or None


def at_fault(optimizer: torch.optim.Optimizer) -> tuple[Suspect, ...]:
    """Return the optimizer as a suspect, with the numbers that are odd; nobody where none is."""
    names = " and ".join(dict.fromkeys(one.name for one in _odd(optimizer)))
    told = odd_number(optimizer)
    return () if told is None else (Suspect(OPTIMIZER, math.inf, told, part="optimizer", kind=names),)


def mend(optimizer: torch.optim.Optimizer) -> list[OddNumber]:
    """Bring the odd numbers of every group to usable ones, and return them as they were."""
    found = _odd(optimizer)
    for one in found:
        optimizer.param_groups[one.group][one.name] = one.usable
    return found


def put_back(optimizer: torch.optim.Optimizer, mended: Iterable[OddNumber]) -> None:
    """Write the numbers that were mended back, newest first, where nobody has written others since."""
    for one in reversed(list(mended)):
        group = optimizer.param_groups[one.group] if one.group < len(optimizer.param_groups) else {}
        if one.name in group and _plain(group[one.name]) == _plain(one.usable):
            group[one.name] = one.held


def _odd(optimizer: torch.optim.Optimizer) -> list[OddNumber]:
    found: list[OddNumber] = []
    for index, group in enumerate(optimizer.param_groups):
        dtypes = {p.dtype for p in group["params"] if p.is_floating_point()}
        for name, ask in _QUESTIONS:
            if name in group and not any((one.group, one.name) == (index, name) for one in found):
                usable, told = ask(group, dtypes) or (None, "")
                if told:
                    found.append(OddNumber(index, name, group[name], usable, told))
    return found


def _vanishing(group: dict[str, Any], dtypes: Collection[torch.dtype]) -> _Found:
    """Ask for an eps that is 0, or is so in the dtype of the parameters: no gradient over no second moment is NaN.

    Adam's kind divide by ``sqrt(v) + eps``; the usual eps of 1e-8 is 0 in float16, and so is the square of a small
    gradient. It is brought to the root of the smallest number above 0 of that dtype, 2.4e-4 in float16: a gradient
    whose square is 0 there is itself smaller than that root, so this is the smallest eps over which it stays below 1.
    """
    eps = group["eps"]
    if not isinstance(eps, (int, float)) or not eps >= 0.0:
        return None
    lost = [dtype for dtype in dtypes if float(torch.tensor(eps, dtype=dtype)) == 0.0]
    if not lost:
        return None
    coarsest = max(lost, key=_smallest)
    name = str(coarsest).removeprefix("torch.")
    where = f" is 0 in {name}," if eps else ","
    return math.sqrt(_smallest(coarsest)), f"eps={_said(eps)}{where} so that an update divides by 0"


def _smallest(dtype: torch.dtype) -> float:
    """Return the smallest number above 0 of a dtype, a subnormal one."""
    return float(torch.finfo(dtype).tiny) * float(torch.finfo(dtype).eps)


def _without_search(group: dict[str, Any], dtypes: Collection[torch.dtype]) -> _Found:
    """Ask for L-BFGS without a line search.

    Its steps are right where the curvature is what the last ones have shown; elsewhere they may have any length, and
    only a search along the line tells (Nocedal and Wright, 2006, section 7.2: the Wolfe conditions).
    """
    if group["line_search_fn"] is not None:
        return None
    return SEARCH, "L-BFGS makes its steps without a line search, which would hold back those that are too long"


def _not_bounded(group: dict[str, Any], dtypes: Collection[torch.dtype]) -> _Found:
    """Ask for betas under which the second moment forgets sooner than the first, such as the two swapped.

    Adam's convergence asks for ``beta1**2 / sqrt(beta2) < 1`` (Kingma and Ba, 2015, Theorem 4.1). Optimizers without a
    second moment, such as Lion, have betas and no eps.
    """
    betas = _betas(group)
    if betas is None or not betas[0] > 0.0 or betas[0] ** 2 < math.sqrt(max(betas[1], 0.0)):
        return None
    return USUAL_BETAS, f"betas={_said(betas)}: Adam needs the square of the first to be below the root of the second"


def _long_first_moment(group: dict[str, Any], dtypes: Collection[torch.dtype]) -> _Found:
    """Ask for a first beta that is a momentum of too many gradients."""
    betas = _betas(group)
    if betas is None or not betas[0] > LONGEST_MEMORY:
        return None
    return (USUAL_MOMENTUM, betas[1]), _repeats("beta1", betas[0])


def _long_momentum(group: dict[str, Any], dtypes: Collection[torch.dtype]) -> _Found:
    """Ask for a momentum of too many gradients: what was learned with it is blown up by 1 / (1 - momentum)."""
    momentum = group["momentum"]
    if not isinstance(momentum, float) or not momentum > LONGEST_MEMORY:
        return None
    return USUAL_MOMENTUM, _repeats("momentum", momentum)


_QUESTIONS: tuple[tuple[str, Callable[[dict[str, Any], Collection[torch.dtype]], _Found]], ...] = (
    ("eps", _vanishing),
    ("line_search_fn", _without_search),
    ("betas", _not_bounded),
    ("betas", _long_first_moment),
    ("momentum", _long_momentum),
)
"""What can be wrong, by the number: of two questions about one the first that finds something counts."""


NUMBERS = frozenset(name for name, _ in _QUESTIONS)
"""The numbers that may be mended."""


def _betas(group: dict[str, Any]) -> tuple[float, float] | None:
    """Return the betas of an optimizer with a second moment, as floats; None where there are none such."""
    betas = group["betas"]
    if "eps" not in group or not isinstance(betas, (tuple, list)) or len(betas) != 2:
        return None
    return (betas[0], betas[1]) if all(isinstance(beta, float) for beta in betas) else None


def _repeats(name: str, momentum: float) -> str:
    many = f"the last {1.0 / (1.0 - momentum):,.0f} gradients" if momentum < 1.0 else "all gradients before it"
    return f"{name}={_said(momentum)}: each update repeats {many}"


def _said(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_said, value))})"
    if not isinstance(value, float):
        return "none" if value is None else str(value)
    if not 0.0 < abs(value) < 1e-3:
        return f"{value:g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _plain(value: Any) -> Any:
    # A checkpoint may have made a list of what was a tuple.
    return tuple(value) if isinstance(value, list) else value
