"""Computing a bad step again. One idea: data, weights, and what does not reproduce are told apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_gradguard.evidence import Bundle, Pass, read_bundle
from lightning_gradguard.replay import samples
from lightning_gradguard.replay.answer import Answer
from lightning_gradguard.replay.attempt import Attempt, Loss, Stage
from lightning_gradguard.replay.operation import Operation
from lightning_gradguard.replay.origin import origin
from lightning_gradguard.replay.rebuild import ReplayError, Source, build
from lightning_gradguard.replay.walk import Walk
from lightning_gradguard.replay.weights import stray, without

AROUND = 3
"""Operations that are shown before the one at which a step goes wrong."""


def replay(
    bundle: Bundle | str | os.PathLike[str],
    module: Source,
    *,
    ckpt: str | os.PathLike[str] | None = None,
    loss: Loss | None = None,
    batch: Any = None,
    other: Any = None,
    device: str = "cpu",
) -> Answer:
    """Compute the step of a bundle again, and say what is at fault.

    Args:
        bundle: The bundle, or its file.
        module: The module, its class, or a function that makes it.
        ckpt: A checkpoint with the weights, where the bundle has none.
        loss: Returns the loss of a module and a batch, for a module without ``training_step``.
        batch: The batch of the step, where the bundle has none.
        other: Another batch, to tell data from weights, where the bundle has none.
        device: Where to compute.

    Returns:
        The answer; print it, or let a notebook show it.

    Raises:
        ReplayError: The step cannot be computed again; the message says what is missing.
        BundleError: The file is no bundle.
    """
    bundle = bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle))
    stage = Stage(build(bundle, module, ckpt), bundle, loss, _there(device))
    here = _Replay(bundle, stage, batch, other)
    if ckpt is not None and not bundle.weights:
        here.notes.append(f"the weights are those of {ckpt}, and not of the step")
    return here.answer()


def _there(device: str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # Each kind of device has an error of its own.
        raise ReplayError(f"nothing can be computed on {device!r} here: {str(error).splitlines()[0]}") from error


class _Replay:
    def __init__(self, bundle: Bundle, stage: Stage, batch: Any, other: Any) -> None:
        self._bundle, self._stage = bundle, stage
        first = bundle.passes[0] if bundle.passes else Pass(None, {})
        self._passes = [(one, one.loaded) for one in bundle.passes] if batch is None else [(first, batch)]
        if not self._passes or all(loaded is None for _, loaded in self._passes):
            raise ReplayError(
                "the bundle holds no batch: it is kept where Evidence(batch=True) or mode='halt' asks for it"
            )
        self._other = other if other is not None else bundle.other.loaded if bundle.other is not None else None
        self._then = bundle.other if other is None else None
        self.notes: list[str] = []
        self._stray = stray(stage.module)

    def answer(self) -> Answer:
        """Return what is at fault."""
        index, again = self._worst()
        failing, batch = self._passes[index]
        if not self._stage.bad(again):
            return self._told("does not reproduce", again, failing)
        repeated = self._attempt(index)
        if not self._stage.bad(repeated):
            self.notes.append("computed once more it was fine: it fails now and then")
            return self._told("does not reproduce", repeated, failing)
        other = None if self._other is None else self._stage.attempt(self._other, failing.batch_index, failing.states)
        drawn = other is not None and self._stage.bad(other) and (own := self._other_as_it_was()) is not None
        other = own if drawn else other
        passes = other is not None and not self._stage.bad(other)
        found = () if drawn else self._samples(batch, failing, mix=passes)
        if other is None and not found:
            self.notes.append("there was no other batch to compare with")
        data = (passes or (other is None and bool(found))) and not self._one_weight_is_it(index)
        fine = self._walked(self._other, self._then if drawn and self._then else failing) if passes and data else []
        walked = self._walked(batch, failing)
        where = origin(walked, fine)
        self._of_input(walked)
        at = walked.index(where) if where is not None else 0
        more = {"operation": where, "before": tuple(walked[max(at - AROUND, 0) : at]), "other": other}
        return self._told("data" if data else "weights", again, failing, samples=found if data else (), **more)

    def _other_as_it_was(self) -> Attempt | None:
        """Return what comes of the other batch with its own number and random states, if it passes with these."""
        if self._then is None or self._then.states is None:
            return None
        own = self._stage.attempt(self._other, self._then.batch_index, self._then.states)
        if self._stage.bad(own):
            return None
        self.notes.append(
            "with its own random numbers the other batch passes, and with those of this step it fails too: "
            "what was drawn (or the number of the batch) is at fault, and no sample"
        )
        return own

    def _one_weight_is_it(self, index: int) -> bool:
        """Return whether the batch passes once the weight that stands out is set to 0.

        Others may not have made use of it.
        """
        if self._stray is None:
            return False
        with without(self._stage.module, self._stray):
            passes = not self._stage.bad(self._attempt(index))
        if passes:
            self.notes.append("with that weight set to 0 this batch passes; a batch that makes no use of it passes too")
        return passes

    def _worst(self) -> tuple[int, Attempt]:
        """Return the micro-batch that fails, or else the first, and what came of it."""
        tried = [(i, self._attempt(i)) for i, (_, batch) in enumerate(self._passes) if batch is not None]
        return next(((i, one) for i, one in tried if self._stage.bad(one)), tried[0])

    def _attempt(self, index: int) -> Attempt:
        one, batch = self._passes[index]
        return self._stage.attempt(batch, one.batch_index, one.states)

    def _walked(self, batch: Any, at: Pass) -> list[Operation]:
        """Return the operations of a step, as far as it comes."""
        walk, batch = Walk(self._stage.module), self._stage.placed(batch)
        with self._stage.prepared(at.states):
            try:
                with walk:
                    torch.autograd.backward(self._stage.forward(batch, at.batch_index))
            except Exception as error:
                self.notes.append(f"the walk ended with {type(error).__name__}: {str(error).strip().splitlines()[0]}")
        return walk.operations

    def _of_input(self, walked: Sequence[Operation]) -> None:
        """Note where the batch itself holds NaN or inf, so that no operation made it."""
        for one in walked:
            for tensor in one.inputs:
                if (
                    (tensor.nan or tensor.inf)
                    and not tensor.name
                    and not any(o.made for o in walked[: walked.index(one)])
                ):
                    self.notes.append(f"NaN or inf came in with the batch, first seen by {one.name} at {one.site}")
                    return
                if one.made:
                    return

    def _samples(self, batch: Any, at: Pass, *, mix: bool) -> tuple[int, ...]:
        """Return the samples that make a batch fail, the others being replaced by those of another one, or left out."""
        size = samples.count(batch)
        mixes = mix and samples.can_mix(batch, self._other)
        if size is None or (size < 2 and not mixes):
            return ()
        every = list(range(size))

        def fails(rows: Sequence[int]) -> bool:
            some = samples.mixed(batch, self._other, rows, every) if mixes else samples.take(batch, rows)
            return self._stage.bad(self._stage.attempt(some, at.batch_index, at.states))

        if mixes and fails(()):
            many = "1 sample fails, whatever it is" if size == 1 else f"{size} samples fails, whatever they are"
            self.notes.append(f"any batch of {many}: it is the size, and no sample")
            return ()
        found = samples.guilty(every, fails)
        if len(found) == size > 1:
            self.notes.append("no sample fails without the others")
            return ()
        return found

    def _told(self, kind: Any, again: Attempt, failing: Pass, **more: Any) -> Answer:
        bundle = self._bundle
        if kind == "does not reproduce" and bundle.processes > 1 and not bundle.seen_here:
            self.notes.append(
                f"{bundle.processes} processes trained together, and none of them stood out: it may have been the "
                "batch of another rank, which its own bundle tells"
            )
        if bundle.weights_step is not None:
            self.notes.append(f"the weights are those of step {bundle.weights_step}")
        which = next((i for i, (one, _) in enumerate(self._passes) if one is failing), 0)
        called = bundle.indices[which] if which < len(bundle.indices) else []
        found = more.get("samples", ())
        return Answer(
            kind,
            bundle.step,
            bundle.rank,
            Attempt(bundle.loss, bundle.norm),
            again,
            batch_index=failing.batch_index,
            names=tuple(called[i] for i in found if i < len(called)),
            stray=self._stray,
            notes=tuple(dict.fromkeys(self.notes)),
            **more,
        )
