"""Contracts of the explosion zoo: what every case, contender and rule has to keep."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from benchmarks.zoo import report, sequences
from benchmarks.zoo.__main__ import main, parse, quick
from benchmarks.zoo.case import Case, cases
from benchmarks.zoo.contenders import CONTENDERS, find
from benchmarks.zoo.observer import UpdateObserver, fingerprint_state
from benchmarks.zoo.runner import (
    Job,
    by_name,
    execute,
    fingerprint_code,
    make_trainer,
    onset,
    plan,
    same_layer,
    silence,
)

ALL = cases()
SICK = [c for c in ALL if c.kind == "sick"]
HEALTHY = [c for c in ALL if c.kind == "healthy"]
CHEAP = {c.cause: c.name for c in SICK if "MLP" in c.architecture}
"""One case a cause, of those whose nets are trained in half a second."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    silence()
    yield
    logging.disable(logging.NOTSET)


def train(case: Case, seed: int, sick: bool, steps: int) -> str:
    """Train for a few steps and hash what came out."""
    task = case.build(seed, sick)
    trainer = make_trainer(case, task, "none", UpdateObserver())
    trainer.fit_loop.epoch_loop.max_steps = steps
    torch.manual_seed(seed + 1)
    trainer.fit(task.module, task.batches)
    assert trainer.global_step == steps
    assert 0 <= task.evaluate(task.module) <= 1
    return fingerprint_state(task.module, trainer.optimizers)


def test_the_zoo_is_large_enough() -> None:
    assert len(SICK) >= 30
    assert len(HEALTHY) >= 15
    assert len({c.name for c in ALL}) == len(ALL)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("mlp_top_exponent_bit", 180),
        ("mlp_nan_in_one_micro_batch", 100),  # batch 402, of four a step
        ("pair_encoder_overwritten", 460),  # the Trainer counts the steps of both optimizers
        ("mlp_sgd_rate_100x", None),
    ],
)
def test_the_onset_is_counted_as_the_incidents_are(name: str, step: int | None) -> None:
    case = by_name()[name]
    assert onset(case, case.build(0, True)) == step


def test_a_third_is_held_out() -> None:
    held = [c for c in SICK if c.held_out]
    assert 0.2 <= len(held) / len(SICK) <= 0.45
    parts = [{c.name for c in cases(held_out=which)} for which in ("only", "exclude")]
    assert parts[0] | parts[1] == {c.name for c in ALL}
    assert not parts[0] & parts[1]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "AdamW fused", "RMSprop"])
def test_every_optimizer_is_covered(optimizer: str) -> None:
    assert any(c.optimizer == optimizer for c in SICK)
    assert any(c.optimizer == optimizer for c in HEALTHY)


@pytest.mark.parametrize("case", ALL, ids=lambda c: c.name)
def test_case_runs_and_repeats(case: Case) -> None:
    assert train(case, 0, True, 2) == train(case, 0, True, 2)


@pytest.mark.parametrize("case", SICK, ids=lambda c: c.name)
def test_culprits_are_layers(case: Case) -> None:
    module = case.build(0, True).module
    for name in case.culprit:
        assert any(True for _ in module.get_submodule(name).parameters(recurse=False))


@pytest.mark.parametrize("case", HEALTHY, ids=lambda c: c.name)
def test_controls_have_no_sick_form(case: Case) -> None:
    same = [list(case.build(0, sick).module.state_dict().values()) for sick in (True, False)]
    assert all(torch.equal(a, b) for a, b in zip(*same, strict=True))


def test_another_seed_is_another_run() -> None:
    assert train(HEALTHY[0], 0, False, 2) != train(HEALTHY[0], 1, False, 2)


@pytest.mark.parametrize("name", [n for n in CONTENDERS if n not in ("gradguard",)])
def test_contenders_run(name: str) -> None:
    package = {"zclip": "zclip", "autoclip-package": "autoclip"}.get(name)
    if package:
        pytest.importorskip(package)
    case = next(c for c in SICK if find(name).applies(c))
    task = case.build(0, False)
    trainer = make_trainer(case, task, name, UpdateObserver())
    trainer.fit_loop.epoch_loop.max_steps = 3
    trainer.fit(task.module, task.batches)
    assert trainer.global_step == 3


def test_a_contender_can_be_imported_by_path() -> None:
    contender = find("benchmarks.zoo.contenders:SkipNonFiniteAndClip")
    assert len(contender.setup(SICK[0], SICK[0].build(0, True).module)["callbacks"]) == 1
    with pytest.raises(ValueError, match="module:factory"):
        find("no such thing")


def test_an_error_counts_as_lost() -> None:
    row = execute(Job("linear_regression_rate_50x", "builtins:no_such_thing", 0))
    assert row["error"]
    assert report.rescue(row, {"score": 0.5}) == 0.0


def test_plan_adds_reference_runs() -> None:
    jobs = plan([SICK[0], HEALTHY[0]], ["clip 1"], [0], guarded_twins=True)
    assert [j.contender for j in jobs] == ["twin", "none", "clip 1", "twin:clip 1", "none", "clip 1"]
    assert fingerprint_code(SICK[0].name, "none") != fingerprint_code(SICK[0].name, "clip 1")


def test_command_line_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.jsonl"
    arguments = ["--cases", "linear_regression*", "--contenders", "clip 1", "--seeds", "0", "--jobs", "1"]
    arguments += ["--out", str(out), "--report", str(tmp_path / "report")]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {r["contender"] for r in rows} == {"twin", "none", "clip 1"}
    unguarded = next(r for r in rows if r["contender"] == "none")
    assert unguarded["nonfinite_updates"] or unguarded["large_updates"]
    assert main(arguments) == 0
    assert len(out.read_text().splitlines()) == len(rows)
    assert (tmp_path / "report" / "rescue.png").exists()
    assert "linear_regression" in capsys.readouterr().out


def test_quick_is_small() -> None:
    assert not any(c.held_out for c in quick(ALL))
    assert {c.cause for c in quick(ALL) if c.kind == "sick"} <= {c.cause for c in SICK}
    assert parse(["--quick"]).quick


def test_layers_are_compared_without_prefix() -> None:
    assert same_layer("conv4", ["net.conv4"])
    assert same_layer("module.net.conv4", ["net.conv4"])
    assert not same_layer("net.conv14", ["net.conv1", "conv4"])


def test_regressions_name_what_broke() -> None:
    base = dict(seed=0, chance=0.1, error="", cause="x", held_out=False)
    rows = [
        base | dict(case="s", kind="sick", contender="twin", score=0.9, state="a"),
        base | dict(case="s", kind="sick", contender="gradguard", score=0.5, state="b"),
        base | dict(case="h", kind="healthy", contender="none", score=0.9, state="c"),
        base | dict(case="h", kind="healthy", contender="gradguard", score=0.9, state="d"),
    ]
    assert [line.split()[1] for line in report.regressions(rows)] == ["s", "h"]


@pytest.mark.parametrize("name", list(sequences.rules()))
def test_rules_see_an_enormous_spike_and_little_else(name: str) -> None:
    norms = sequences.drifting(1, seed=1, factor=1.0)
    rule = sequences.rules()[name]()
    alarms = sum(rule(float(v)) for v in norms)
    assert rule(1e6) and (alarms < 30 or name == "autoclip")


def test_update_observer_sees_poison() -> None:
    case = next(c for c in SICK if c.name == "cnn_nan_in_first_batch")
    task, observer = case.build(0, True), UpdateObserver()
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, callbacks=[observer], accelerator="cpu")
    trainer.fit(task.module, task.batches)
    assert (observer.nonfinite, observer.first_bad) == (1, 1)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=[pytest.mark.slow] * (c.name not in CHEAP.values())) for c in SICK],
)
def test_sick_cases_are_sick_and_their_twins_have_converged(case: Case) -> None:
    sick, twin = (execute(Job(case.name, name, 0)) for name in ("none", "twin"))
    assert report.rescue(sick, twin) < report.RESCUED
    assert twin["score"] - case.chance > 0.3
