"""Six faults, each halted, kept in a bundle, and replayed to the right answer.

The table was written before the first was tried.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_gradguard import GradGuard, TrainingDiverged
from lightning_gradguard.cli import main
from lightning_gradguard.evidence import read_bundle
from lightning_gradguard.replay import replay
from tests.builders import loader, same, trainer
from tests.replay import faults
from tests.replay.faults import BAD_STEP

LINES = Path(faults.__file__).read_text().splitlines()


class Expected(NamedTuple):
    """What a replay is to say: which of three, the operation, a mark of its line, the samples, a word of its notes."""

    kind: str
    operation: str | None
    line: str | None
    samples: tuple[int, ...]
    also: str


TABLE = {
    # Nothing makes this NaN: it comes in with the batch, and the note names who saw it first.
    "NaN in a sample": Expected("data", None, None, (5,), "where the batch comes in"),
    "log(0) in the loss": Expected("data", "aten.log", "log(0) for a sample of zeros", (2,), ""),
    "a weight flipped": Expected("weights", "aten.addmm", "return self.last(hidden)", (), "last.weight[1, 5]"),
    "overflow in half precision": Expected("data", "aten.mul.Tensor", "overflows above 255", (6,), ""),
    "a bug at one batch size": Expected(
        "data", "aten.div.Tensor", "a batch of three divides by 0", (), "it is the size"
    ),
    "a step that does not reproduce": Expected("does not reproduce", None, None, (), ""),
}

RUNS: dict[str, tuple[type[faults.Classifier], list[faults.Batch], list[Callback]]] = {
    "NaN in a sample": (faults.Classifier, faults.changed(5, lambda x: x.__setitem__(4, math.nan)), []),
    "log(0) in the loss": (faults.LogOfZero, faults.changed(2, torch.Tensor.zero_), []),
    "a weight flipped": (faults.Classifier, faults.batches(), [faults.FlipWeight()]),
    "overflow in half precision": (faults.Half, faults.changed(6, lambda x: x.__setitem__(1, 300.0)), []),
    "a bug at one batch size": (faults.LastBatch, faults.shortened(), []),
    "a step that does not reproduce": (faults.Classifier, faults.batches(), [faults.Transient()]),
}


def halted(name: str, root: Path) -> tuple[GradGuard, faults.Classifier, str]:
    kind, batches, callbacks = RUNS[name]
    torch.manual_seed(0)
    module, guard = kind(), GradGuard(mode="halt")
    with pytest.raises(TrainingDiverged) as raised:
        trainer(root, callbacks=[*callbacks, guard]).fit(module, loader(batches))
    return guard, module, str(raised.value)


def line(comment: str) -> int:
    [found] = [number for number, text in enumerate(LINES, 1) if comment in text]
    return found


@pytest.mark.parametrize("name", TABLE)
def test_the_answer_is_the_one_that_was_expected(name: str, tmp_path: Path, capsys: Any) -> None:
    expected = TABLE[name]
    guard, module, told = halted(name, tmp_path)
    [incident] = guard.incidents
    # A weight that is wrong shows when a sample makes use of it.
    assert 0 <= incident.step - BAD_STEP <= (5 if name == "a weight flipped" else 0)
    assert incident.stopped == incident.step
    path = Path(incident.bundle)
    assert path.parent == tmp_path / "gradguard_evidence" and str(path) in told
    assert 10_000 < path.stat().st_size < 60_000, "a few kilobytes of weights and batches, and the random states"
    weights = read_bundle(path).weights
    assert same(weights, {k: v.detach() for k, v in module.state_dict().items()}), "the weights were not touched"

    answer = replay(path, type(module))
    assert answer.kind == expected.kind, str(answer)
    assert (answer.operation and answer.operation.name) == expected.operation, str(answer)
    if expected.line is not None:
        assert answer.operation is not None and answer.operation.site.line == line(expected.line), str(answer)
    assert answer.samples == expected.samples, str(answer)
    if expected.also == "where the batch comes in":
        assert f"faults.py:{line(expected.also)}" in str(answer)
    assert expected.also in str(answer) or expected.also == "where the batch comes in"
    assert "<table>" in answer._repr_html_()

    assert main(["replay", str(path), "--module", f"tests.replay.faults.{type(module).__name__}"]) == 0
    assert capsys.readouterr().out.startswith(f"answer:    {expected.kind.upper()}")


def test_every_fault_of_the_table_is_run() -> None:
    assert list(TABLE) == list(RUNS) and len(TABLE) == 6


class Deviation(faults.Classifier):
    """Divides by the deviation over the batch, which one sample does not have."""

    def training_step(self, batch: faults.Batch, batch_idx: int) -> Tensor:
        x, y = batch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that there is none
            return torch.nn.functional.cross_entropy(self(x / x.std(dim=0)), y)


def test_a_batch_of_one_sample_fails_by_its_size_or_by_the_sample(tmp_path: Path) -> None:
    for kind, also, found in (
        (Deviation, "any batch of 1 sample fails, whatever it is: it is the size, and no sample", ()),
        (faults.LogOfZero, "", (0,)),
    ):
        made = faults.batches()
        x, y = made[BAD_STEP]
        made[BAD_STEP] = (x[:1] * (kind is Deviation), y[:1])
        guard = GradGuard(mode="halt", journal=False)
        with pytest.raises(TrainingDiverged):
            trainer(tmp_path, callbacks=[guard]).fit(kind(), loader(made))
        answer = replay(guard.incidents[0].bundle, kind)
        assert (answer.kind, answer.samples) == ("data", found), str(answer)
        assert also in answer.notes or not also


@pytest.mark.parametrize("known", ["loss", "suspect", "nothing"])
def test_another_rank_is_spoken_of_only_where_none_is_known(known: str, tmp_path: Path) -> None:
    guard, _, _ = halted("a step that does not reproduce", tmp_path)
    bundle = read_bundle(guard.incidents[0].bundle)
    bundle.processes, bundle.rank = 2, 1
    bundle.loss = math.nan if known == "loss" else bundle.loss
    bundle.suspects = [{"layer": "batch", "rank": 1}] if known == "suspect" else []
    answer = replay(bundle, faults.Classifier)
    assert answer.kind == "does not reproduce"
    assert any("another rank" in note for note in answer.notes) == (known == "nothing")


class Drawn(faults.Classifier):
    """Divides by a number that is drawn, and is 0 now and then."""

    def training_step(self, batch: faults.Batch, batch_idx: int) -> Tensor:
        share = torch.rand(()) * (np.random.rand() > 0.05)
        return super().training_step(batch, batch_idx) / share.sqrt()


def test_random_numbers_that_fail_whatever_the_batch_are_not_taken_for_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0), np.random.seed(0)
    guard = GradGuard(mode="halt", journal=False)
    with pytest.raises(TrainingDiverged):
        trainer(tmp_path, callbacks=[guard]).fit(Drawn(), loader(faults.batches()))
    answer = replay(guard.incidents[0].bundle, Drawn)
    assert (answer.kind, answer.samples) == ("data", ()), str(answer)
    assert answer.operation is not None and answer.operation.name == "aten.div.Tensor"
    assert any("what was drawn" in note for note in answer.notes)
