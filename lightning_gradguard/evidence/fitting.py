"""Writing a bundle that is no larger than it may be, whatever has to be left out for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from lightning_gradguard.evidence.bundle import Bundle
from lightning_gradguard.evidence.writer import TooLargeError, write_whole


def write_fitting(path: Path, bundle: Bundle, *, most: int, checkpoint: str = "") -> None:
    """Write a bundle in at most so many bytes, without what is needed least where it takes more.

    Args:
        path: The file.
        bundle: What is written; what is left out is taken from it.
        most: Most bytes of the file.
        checkpoint: One that holds weights, where the bundle's are left out.

    Raises:
        TooLargeError: What cannot be left out takes more.
        OSError: The disk is full, or the directory cannot be written.
    """
    parts = _without(bundle, checkpoint)
    while True:
        try:
            return write_whole(path, bundle.plain(), most=most)
        except TooLargeError as error:
            left_out = next(parts, None)
            if left_out is None:
                raise
            bundle.left_out.append(f"{left_out}: {error}")


def _without(bundle: Bundle, checkpoint: str) -> Iterator[str]:
    """Take one part after the other from a bundle, what is needed least first, and name it."""
    if bundle.optimizer_state:
        bundle.optimizer_state = {}
        yield "the optimizer's state"
    if bundle.other is not None:
        bundle.other = None
        yield "the other batch"
    if bundle.weights:
        bundle.weights, bundle.weights_from = {}, checkpoint
        yield "the weights"
    if any(one.batch is not None for one in bundle.passes):
        bundle.passes = [dataclasses.replace(one, batch=None) for one in bundle.passes]
        yield "the batch"
    if any(one.random for one in bundle.passes):
        bundle.passes = [dataclasses.replace(one, random={}) for one in bundle.passes]
        yield "the random states"
