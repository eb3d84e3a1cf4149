"""Keeping evidence while a run goes on: what is at hand at each step, and a bundle where one is called for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_gradguard import checks
from lightning_gradguard.evidence.bundle import Bundle, bundle_name
from lightning_gradguard.evidence.collecting import Facts, Place, collect
from lightning_gradguard.evidence.fitting import write_fitting
from lightning_gradguard.evidence.hand import Hand
from lightning_gradguard.evidence.recompute import Compute, recomputed
from lightning_gradguard.evidence.settings import Evidence
from lightning_gradguard.evidence.versions import commit_of, source_directory, versions
from lightning_gradguard.evidence.writer import Writer

DIRECTORY = "gradguard_evidence"


class Keeper:
    """Keep the evidence of one process.

    Whatever goes wrong here costs the bundle and never the run.

    Args:
        evidence: What is kept, and how much.
        batch: Whether batches are kept where ``evidence`` does not say.
        warn: Told a sentence where something could not be kept.

    Attributes:
        place: Returns where the run is.
        directory: Where bundles go by default.
    """

    def __init__(self, evidence: Evidence, *, batch: bool, warn: Callable[[str], None]) -> None:
        self._evidence = evidence
        self._batch = batch if evidence.batch is None else evidence.batch
        self._warn = warn
        self.hand = Hand()
        self._writer = Writer(self._failed)
        self._begun: list[Path] = []
        self._devices: tuple[nn.Module, tuple[torch.device, ...]] | None = None
        self.place: Callable[[], Place] = Place
        self.directory = Path(DIRECTORY)
        # Returns the loss of a batch, where steps can be computed again.
        self.compute: Compute | None = None

    def before_forward(self, module: nn.Module, batch: Any, batch_index: int | None) -> None:
        """Note a batch that is about to be computed, and the random states."""
        if self._devices is None or self._devices[0] is not module:
            self._devices = module, tuple({p.device for p in module.parameters() if p.device.type == "cuda"})
        self.hand.take(batch if self._batch or self.recomputes else None, batch_index, self._devices[1])

    def keep(
        self, facts: Facts, module: nn.Module, optimizer: torch.optim.Optimizer, *, deferred: bool, last: bool = False
    ) -> Path | None:
        """Begin to write the bundle of a bad step; return where it will be, or None where none is written.

        Args:
            facts: What is known of the step.
            module: The root module.
            optimizer: The optimizer.
            deferred: Whether it is the step before the one under way.
            last: Whether the run ends with it, so that it is written even if there are as many as are allowed.
        """
        self._writer.tell()
        most = self._evidence.bundles
        if len(self._begun) >= most + (last and most > 0):
            return None
        moments, other = self.hand.passes(deferred=deferred)
        settings, place = self._evidence, self.place()
        path = (settings.directory or self.directory) / bundle_name(facts.step, place.rank, facts.optimizer)
        try:
            made = collect(
                facts,
                place,
                module,
                optimizer,
                moments=moments,
                other=other,
                batch=self._batch,
                settings=settings,
            )
        except Exception as error:  # Out of memory, or a batch of a kind that nobody has thought of.
            self._failed(error)
            return None
        self._begun.append(path)
        write = partial(write_fitting, path, made, most=settings.max_bytes, checkpoint=place.checkpoint)
        self._writer.start(partial(_write, made, source_directory(type(module)), write))
        return path

    @property
    def recomputes(self) -> bool:
        """Whether bad steps are to be computed again."""
        return bool(self._evidence.recompute)

    def compute_again(self, module: nn.Module, *, loss: float | None, norm: float | None) -> list[str]:
        """Compute the step at hand again, where that is asked for; return a sentence for each number that was odd.

        Args:
            module: The root module, with the weights of before the step.
            loss: The loss of this process, or None.
            norm: The gradient norm; None where it is of more than this process's batch.
        """
        given = self._evidence.recompute
        compute = (lambda batch, _: given(module, batch)) if callable(given) else self.compute if given else None
        moments, _ = self.hand.passes(deferred=False)
        if compute is None or not moments:
            return []
        try:
            return [str(one) for one in recomputed(module, moments, compute, loss=loss, norm=norm) if one.odd]
        except Exception as error:  # A module that cannot be asked out of turn must not cost the run.
            self._warn(f"the step could not be computed again: {error!r}")
            return []

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all bundles are written; return whether they are."""
        return self._writer.wait(seconds)

    def missing(self) -> list[str]:
        """Return the bundles that were begun and are not there, once :meth:`wait` has been called."""
        return [str(path) for path in self._begun if not path.is_file()]

    def lost(self, bundle: str) -> bool:
        """Return whether a bundle of this process was begun and could not be written; it is not waited for."""
        begun = bundle in map(str, self._begun)
        return begun and not self._writer.busy and not Path(bundle).is_file()

    def close(self) -> None:
        """Wait for what is being written, and let go of batches."""
        self.wait()
        self.hand.drop()

    def _failed(self, error: Exception) -> None:
        self._warn(f"no bundle of evidence was written: {error!r}")


def _write(bundle: Bundle, source: Path | None, write: Callable[[], None]) -> None:
    bundle.versions, bundle.commit = versions(), commit_of(source)
    write()


def keeper_of(evidence: Evidence | None, mode: str, warn: Callable[[str], None]) -> Keeper | None:
    """Return what keeps the evidence that is asked for, and that of a run that halts in any case; None for none.

    Raises:
        ValueError: ``evidence`` is something else.
    """
    if evidence is None and mode != "halt":
        return None
    settings = checks.instance("evidence", Evidence() if evidence is None else evidence, Evidence)
    return Keeper(settings, batch=mode == "halt", warn=warn)
