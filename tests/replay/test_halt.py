"""``mode="halt"`` ends a sick run on all processes before the weights are touched, with status 1 and evidence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import GradGuard, Guard, TrainingDiverged
from lightning_gradguard.diagnostics import read_journal
from lightning_gradguard.evidence import Evidence, read_bundle
from lightning_gradguard.replay import replay
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, trainer
from tests.replay.faults import Classifier, batches
from tests.replay.halted_run import BAD_SAMPLE, BAD_STEP
from tests.test_healthy_runs import RUNS, run

ROOT = Path(__file__).parents[2]


def script(root: Path, processes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.replay.halted_run", str(root), str(processes)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_script_ends_with_status_one_and_names_rank_and_sample(processes: int, tmp_path: Path) -> None:
    ended = script(tmp_path, processes)
    assert ended.returncode == 1, ended.stderr[-3000:]
    assert "it went on" not in ended.stdout
    assert "TrainingDiverged" in ended.stderr, ended.stderr[-3000:]
    [path] = sorted((tmp_path / "gradguard_evidence").iterdir())
    assert path.name == f"step-{BAD_STEP:08d}-rank-{processes - 1}.gradguard.pt"
    assert f"lightning-gradguard replay {path}" in ended.stderr
    where = f"the batch of rank 1, sample {BAD_SAMPLE}" if processes == 2 else f"the batch, sample {BAD_SAMPLE}"
    assert ended.stderr.count(where) >= 2, "the line of the console says so, and the error"
    [incident] = read_journal(tmp_path / "gradguard.jsonl").incidents
    assert incident.blame[0].samples == (BAD_SAMPLE,)
    assert incident.blame[0].rank == (1 if processes == 2 else None)
    answer = replay(path, Classifier)
    assert (answer.kind, answer.samples, answer.rank) == ("data", (BAD_SAMPLE,), processes - 1)


@pytest.mark.parametrize("name", ["cnn-sgd", "transformer-adamw-warmup", "accumulating", "bf16"])
def test_a_healthy_run_is_bit_identical_under_halt_and_with_evidence(name: str, tmp_path: Path) -> None:
    plain = run(*RUNS[name], [], tmp_path)
    halting = run(*RUNS[name], [GradGuard(mode="halt", journal=False)], tmp_path)
    keeping = run(*RUNS[name], [GradGuard(evidence=Evidence(batch=True), journal=False)], tmp_path)
    assert same(plain, halting) and same(plain, keeping)
    assert list(tmp_path.iterdir()) == []


def test_running_statistics_are_those_of_before_the_step(tmp_path: Path) -> None:
    module = mlp(norm=True)
    guard = Guard(module, mode="halt", evidence=Evidence(directory=tmp_path))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    guard.attach(optimizer)
    before: dict[str, Any] = {}

    def train() -> None:
        for x, y in spoil(regression(40), 30):
            before.update({k: v.clone() for k, v in module.state_dict().items()})
            guard.before_forward((x, y))
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(module(x), y)
            loss.backward()
            guard.before_step(optimizer, loss=loss, batch=(x, y))
            optimizer.step()

    with pytest.raises(TrainingDiverged, match=r"gradguard\.pt"):
        train()
    assert same(before, dict(module.state_dict()))
    [path] = tmp_path.iterdir()
    assert same(before, read_bundle(path).weights), "so are those in the bundle"
    answer = replay(path, lambda: mlp(norm=True), loss=lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]))
    assert answer.kind == "data" and answer.samples == (0,)


class Louder(Net):
    """A module whose loss is multiplied once, so that nothing is wrong with the data."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (200.0 if batch_idx == 50 else 1.0)


def loud() -> Louder:
    return Louder(mlp(), lambda p: torch.optim.SGD(p, lr=0.01))


def test_a_mild_spike_is_told_and_passes_as_it_is(tmp_path: Path) -> None:
    def spiked(mode: Any) -> Any:
        guard = GradGuard(mode=mode, journal=False)
        fit = trainer(tmp_path, callbacks=[guard])
        fit.fit(loud(), loader(regression(60)))
        return guard.incidents, frozen_copy(fit)

    (halting, ended), (watching, expected) = spiked("halt"), spiked("watch")
    assert len(halting) == len(watching) == 1 and halting[0].actions[0].decision.remedies == ("clip",)
    assert same(ended, expected)


def test_a_bad_step_in_an_incident_that_is_open_has_a_bundle_of_its_own(tmp_path: Path) -> None:
    guard = GradGuard(mode="halt", evidence=Evidence(directory=tmp_path / "e", bundles=1), journal=False)
    with pytest.raises(TrainingDiverged):
        trainer(tmp_path, callbacks=[guard]).fit(loud(), loader(spoil(regression(60), 52)))
    [incident] = guard.incidents
    assert (incident.step, incident.stopped) == (50, 52)
    assert [read_bundle(path).step for path in sorted((tmp_path / "e").iterdir())] == [50, 52]
    assert incident.bundle.endswith("step-00000052-rank-0.gradguard.pt")


def test_evidence_is_kept_while_the_guard_acts_and_costs_the_run_nothing_where_it_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "evidence", tmp_path / "file" / "below"):
        torch.manual_seed(0)
        made = batches()
        made[30][0][2, 1] = torch.nan
        guard = GradGuard(evidence=Evidence(directory=directory), journal=False)
        fit = trainer(tmp_path, callbacks=[guard])
        if directory.name == "below":
            with pytest.warns(RuntimeWarning, match="no bundle of evidence was written"):
                fit.fit(Classifier(), loader(made))
        else:
            fit.fit(Classifier(), loader(made))
        assert fit.global_step == 60 and guard.incidents[0].remedies == ("skip",)
    [path] = (tmp_path / "evidence").iterdir()
    bundle = read_bundle(path)
    assert bundle.passes[0].batch is None and bundle.step == 30 and bundle.weights
    answer = replay(path, Classifier, batch=made[30], other=made[29])
    assert answer.kind == "data" and answer.samples == (2,) and not any("weights are" in note for note in answer.notes)
    bundle.weights = {}
    fit.save_checkpoint(tmp_path / "later.ckpt")
    answer = replay(bundle, Classifier, batch=made[30], other=made[29], ckpt=tmp_path / "later.ckpt")
    assert f"the weights are those of {tmp_path / 'later.ckpt'}, and not of the step" in answer.notes


@pytest.mark.parametrize("mode", ["guard", "watch"])
def test_a_bundle_leaves_running_statistics_as_they_are(mode: Any, tmp_path: Path) -> None:
    def trained(evidence: Evidence | None) -> Any:
        torch.manual_seed(0)
        module = Net(mlp(norm=True), lambda p: torch.optim.SGD(p, lr=0.01))
        fit = trainer(tmp_path, callbacks=[GradGuard(mode=mode, evidence=evidence, journal=False)])
        fit.fit(module, loader(spoil(regression(40), 30)))
        return frozen_copy(fit)

    assert same(trained(Evidence(directory=tmp_path / "e", recompute=True)), trained(None))


def test_the_mode_is_checked() -> None:
    with pytest.raises(ValueError, match="mode must be one of 'guard', 'halt', 'watch'"):
        GradGuard(mode="stop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evidence must be an instance of Evidence"):
        GradGuard(evidence=True)  # type: ignore[arg-type]


def test_a_full_disk_costs_the_bundle_and_nothing_is_said_of_it_where_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lightning_gradguard.evidence.writer.torch.save", full)
    network = mlp()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    guard = Guard(network, mode="halt", evidence=Evidence(directory=tmp_path))

    def train() -> None:
        for index, (x, y) in enumerate(spoil(regression(40), 20)):
            guard.before_forward(x, index, 0)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(network(x), y)
            loss.backward()
            guard.before_step(optimizer, loss=loss, batch=x)
            optimizer.step()

    with pytest.warns(RuntimeWarning, match="no bundle of evidence"), pytest.raises(TrainingDiverged) as end:
        train()
    assert "the run was halted before this step was made" in str(end.value)
    assert "evidence" not in str(end.value) and "replay" not in str(end.value)
    assert guard.incidents[0].bundle == "" and not list(tmp_path.iterdir())
