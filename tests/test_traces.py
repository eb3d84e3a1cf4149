"""Recorded steps still lead to the recorded verdicts and decisions: see ``benchmarks/traces.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import traces
from lightning_gradguard import Guard
from lightning_gradguard.policy import Policy
from tests.builders import mlp, regression, same, spoil


@pytest.fixture(scope="module")
def recorded() -> list[traces.Trace]:
    return traces.read()


NOT_HELD = {
    "zoo: mlp_half_activations_overflow",
    "field: mlp, adam 1e-3: 0 x1e+05 at the start",
    "field: wgan_gp, adam 1e-3: critic.2 x1e+04 at the start",
    "field: rnn_tanh, sgd: rate x100 from 100",
}
"""They go by what traces do not hold: a first step that a GradScaler skips, another optimizer that goes back, how far
weights have moved."""


def test_every_trace_leads_to_the_same_verdicts_and_decisions(recorded: list[traces.Trace]) -> None:
    found = [one for trace in recorded if trace.run not in NOT_HELD for one in traces.differences(trace)]
    assert not found, "\n" + traces.table(found)


def test_the_traces_are_small_and_hold_what_matters(recorded: list[traces.Trace]) -> None:
    assert traces.FILE.stat().st_size <= 2e6
    decisions = [[row["decision"] for row in trace.steps if "decision" in row] for trace in recorded]
    assert sum(not made for made in decisions) >= traces.HEALTHY
    remedies = {remedy for made in decisions for names, _ in made for remedy in names}
    assert remedies == {"clip", "skip", "backoff", "rollback", "reinitialize", "initialize"}


def run(network: nn.Sequential) -> None:
    """Train with a NaN batch, with a damaged layer, and with parameters that come later."""
    optimizer = torch.optim.Adam(network[0].parameters(), lr=0.01)
    guard = Guard(network)
    for index, (x, y) in enumerate(spoil(regression(120), 50)):
        if index == 70:
            optimizer.add_param_group({"params": list(network[-1].parameters())})
        if index == 110:
            with torch.no_grad():
                network[0].weight.mul_(1e5)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=(x, y))
        optimizer.step()


def test_recording_changes_nothing_and_can_be_replayed() -> None:
    alone, watched = mlp(), mlp()
    run(alone)
    (steps,) = traces.record(lambda: run(watched)).values()
    assert same(alone.state_dict(), watched.state_dict())
    assert [row["step"] for row in steps if "fresh" in row] == [70]
    assert {"verdict", "decision", "suspects", "done"} <= steps[50].keys()
    assert not list(traces.differences(traces.Trace("here", 0, steps)))


def hot() -> None:
    """Train at a rate that is far too high."""
    network = mlp()
    optimizer = torch.optim.SGD(network.parameters(), lr=2.0, momentum=0.9)
    guard = Guard(network)
    for x, y in regression(80):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=(x, y))
        optimizer.step()


def loud() -> None:
    """Train a network that explodes from its first step."""
    first, *rest = mlp()
    network = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 16), *rest)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(100.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    guard = Guard(network)
    guard.attach(optimizer)
    for x, y in regression(80):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(network(x), y)
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=(x, y))
        optimizer.step()


@pytest.mark.parametrize(("sick", "treatment"), [(hot, "backoff"), (loud, "initialize")])
def test_trials_can_be_replayed(sick: Callable[[], None], treatment: str) -> None:
    (steps,) = traces.record(sick).values()
    assert any(treatment in row["decision"][0] for row in steps if "decision" in row)
    assert not list(traces.differences(traces.Trace("here", 0, steps)))


def test_another_decision_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (steps,) = traces.record(hot).values()
    traces.write([traces.Trace("hot", 0, steps)], tmp_path / "some.gz")
    monkeypatch.setattr(traces, "Policy", partial(Policy, max_trials=0))
    assert traces.main(["--compare", "--file", str(tmp_path / "some.gz")]) == 0
    shown = capsys.readouterr().out
    assert "| decision |" in shown and "skip+rollback+backoff" in shown
