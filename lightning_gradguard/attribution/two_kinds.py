"""Two kinds of batches at the beginning of a run, of which one is corrupt.

Where rows in another unit, or codes for what is missing, are in every other batch, no batch is far larger than those
before it, and no gradient either. But both fall into two groups, a thousand times apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradguard.history.sample import THIN_HISTORY

KINDS_APART = 1000.0
"""Times by which the gradients of one kind, and the largest elements of its batches, exceed those of the other."""


class TwoKinds:
    """Remember norms and largest elements of the first batches.

    Attributes:
        small: The largest elements of each batch of the small kind, once a large one was found.
        accepted: Whether one of the large kind was let through before that was known.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[float, Sequence[float]]] = []
        self.small: list[Sequence[float]] = []
        self.accepted = False

    def large(self, norm: float, peaks: Sequence[float]) -> bool:
        """Return whether a batch is of the large kind; remember it as one that is let through if it is not.

        Args:
            norm: Its gradient norm.
            peaks: The largest absolute element of each of its tensors.
        """
        small = [seen for known, seen in self._seen if KINDS_APART * known < norm and len(seen) == len(peaks)]
        if any(peak > KINDS_APART * max(known) > 0.0 for peak, *known in zip(peaks, *small, strict=True) if known):
            self.small, self.accepted = small, len(small) < len(self._seen)
            self._seen = [one for one in self._seen if KINDS_APART * one[0] < norm]
            return True
        alike = [one for one in self._seen if len(one[1]) == len(peaks)]
        self._seen = [*alike, (norm, peaks)][-THIN_HISTORY:]
        return False

    def state_dict(self) -> list[float]:
        """Return how many tensors a batch has, and norm and largest elements of each batch, one after the other."""
        if not self._seen:
            return []
        return [len(self._seen[0][1]), *(value for norm, peaks in self._seen for value in (norm, *peaks))]

    def load_state_dict(self, state: list[float]) -> None:
        """Take them back."""
        width, *values = state or [0]
        rows = [values[start : start + int(width) + 1] for start in range(0, len(values), int(width) + 1)]
        self._seen = [(norm, peaks) for norm, *peaks in rows]
