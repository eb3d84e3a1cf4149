"""Contracts of the field trial."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.field import __main__ as command
from benchmarks.field import report
from benchmarks.field.healthy import healthy_runs
from benchmarks.field.recipes import all_recipes
from benchmarks.field.sick import sick_runs
from benchmarks.field.training import ADVERSARIAL, NO_TROUBLE, OPTIMIZERS, SCHEDULES, Run, train

RUNS = [*healthy_runs(), *sick_runs()]


def test_the_trial_is_large_enough() -> None:
    assert len(healthy_runs()) >= 120 and len(sick_runs()) >= 40
    assert len({r.name for r in RUNS}) == len(RUNS)
    assert {r.optimizer for r in healthy_runs()} == set(OPTIMIZERS)
    assert {r.schedule for r in healthy_runs()} == set(SCHEDULES)
    assert 0.2 < sum(command.held_out(r.name) for r in RUNS) / len(RUNS) < 0.45


@pytest.mark.parametrize("recipe", [*all_recipes(), *ADVERSARIAL], ids=lambda r: r.name)
def test_every_recipe_trains_and_scores(recipe: object) -> None:
    row = train(Run("test", recipe, "sgd", steps=2), guarded=False)  # type: ignore[arg-type]
    assert row["error"] == "" and row["finite"] and row["steps"] >= 2
    assert -1.0 <= row["score"] <= 1.0


@pytest.mark.parametrize("run", [r for r in sick_runs() if r.trouble.start], ids=lambda r: r.name)
def test_a_bad_start_changes_the_run(run: Run) -> None:
    short = dataclasses.replace(run, steps=2)
    healthy = dataclasses.replace(short, trouble=NO_TROUBLE)
    assert train(short, guarded=False)["state"] != train(healthy, guarded=False)["state"]


def test_a_run_can_be_repeated_bit_for_bit() -> None:
    run = next(r for r in healthy_runs() if r.recipe.name == "vae")
    short = dataclasses.replace(run, steps=5)
    assert train(short, guarded=False)["state"] == train(short, guarded=True)["state"]
    other = train(short, guarded=False, seed=1)["state"]
    assert other != train(short, guarded=False)["state"]


def row(name: str, what: str, **more: object) -> report.Row:
    known = {"kind": "sick", "score": 0.9, "score_before": 0.1, "chance": 0.1, "finite": True, "error": "",
             "losses": [2, 1], "state": "a", "interventions": 0, "expected": [], "culprit": None, "large_updates": 0,
             "nonfinite_updates": 0, "incidents": [], "stopped": False, "held_out": False}  # fmt: skip
    return {**known, "name": name, "what": what, **more}


def test_rescue_is_measured_against_the_twin_and_what_was_not_ill_is_left_out() -> None:
    rows = [row("ill", "twin"), row("ill", "none", score=0.1), row("ill", "gradguard", score=0.85)]
    rows += [row("well", what) for what in ("twin", "none", "gradguard")]
    rows += [row("touched", "none", kind="healthy"), row("touched", "gradguard", kind="healthy", state="b")]
    text = report.tables(rows)
    assert "0 of 1 rescued" in text and "| ill | 0.900 | 0.100 | 0.850 | 0.94 |" in text
    assert "or the twin does not (its score): well (1.00)" in text
    assert "all: 0 of 1 end bit-identical" in text and "| touched |" in text


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = dataclasses.replace(healthy_runs()[0], steps=2)
    monkeypatch.setattr(command, "healthy_runs", lambda: (short,))
    monkeypatch.setattr(sys, "argv", ["field", "--runs", "healthy", "--out", str(tmp_path / "rows")])
    threads = torch.get_num_threads()
    for _ in range(2):
        assert command.main() == 0
    torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert [r["what"] for r in rows] == ["none", "gradguard"]
