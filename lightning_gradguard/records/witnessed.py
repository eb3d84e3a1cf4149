"""What a witness has seen: a number that may move before the gradient does, and where."""

from __future__ import annotations

from dataclasses import dataclass

WITNESSES = ("update_ratio", "second_moment", "attention_logit", "router_load")
"""The witnesses of this package, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Testimony:
    """What one witness has seen in a window.

    Args:
        witness: Its name, one of :data:`WITNESSES`, or that of a witness of the user's own.
        value: The largest that it has measured; NaN or inf if one was.
        where: The layer, parameter or module that this was measured at.
        usual: Median of the same place in the windows before; None in the record of a window, and where too few are
            known.
    """

    witness: str
    value: float
    where: str = ""
    usual: float | None = None
