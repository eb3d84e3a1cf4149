"""Layers of compiled modules: measured outside the graph on suspicion, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import GradGuard, Guard
from lightning_gradguard.attribution import Probe
from lightning_gradguard.attribution.probe import can_leave_graphs
from tests.builders import Net, frozen_copy, loader, regression, same, trainer

pytestmark = pytest.mark.skipif(not can_leave_graphs(), reason="this torch cannot be asked to leave its graphs")


@pytest.fixture(autouse=True)
def _compile_anew() -> None:
    torch._dynamo.reset()


def network(*, bad: bool) -> nn.Sequential:
    torch.manual_seed(3)
    made = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())), nn.Linear(8, 1))
    if bad:
        nn.init.constant_(made[4].weight, 200.0)
    return made


def whole(made: nn.Sequential) -> nn.Module:
    return torch.compile(made, backend="eager")  # type: ignore[return-value]


def part(made: nn.Sequential) -> nn.Module:
    return nn.Sequential(torch.compile(made[:6], backend="aot_eager"), *made[6:])


def fit(module: nn.Module, guard: Guard | None, steps: int = 60) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    if guard is not None:
        guard.bind(module)
        guard.attach(optimizer)
    for x, y in regression(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(x), y)
        loss.backward()
        if guard is not None:
            guard.before_step(optimizer, loss=loss, batch=(x, y))
        optimizer.step()


@pytest.mark.parametrize("make", [whole, part])
def test_a_bad_layer_of_a_compiled_module_is_named_and_the_incident_says_how(make: Any) -> None:
    plain, guard = Guard(), Guard()
    fit(network(bad=True), plain)
    fit(make(network(bad=True)), guard)
    incident, expected = guard.incidents[0], plain.incidents[0]
    assert (incident.form, incident.step) == (expected.form, expected.step)
    assert incident.remedies == expected.remedies
    assert (incident.culprit or "").endswith("4") and (expected.culprit or "").endswith("4")
    assert "outside the compiled graph" in incident.blame[0].reason
    assert "outside the compiled graph" not in expected.blame[0].reason


def test_the_compiler_is_asked_back_in_afterwards() -> None:
    calls: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*values: Any) -> Any:
            calls.append("graph")
            return graph.forward(*values)

        return run

    module, probe = torch.compile(network(bad=False), backend=backend), Probe()
    module(torch.ones(2, 8))
    probe.arm(module)  # type: ignore[arg-type]
    module(torch.ones(2, 8)).sum().backward()
    assert len(calls) == 1 and len(probe.readings()) == 9 and probe.outside
    # Five layers, and four functions between them.
    probe.disarm()
    module(torch.ones(2, 8))
    assert len(calls) == 2


class Compiled(Net):
    """A LightningModule that is compiled as a whole, as ``Trainer.fit(torch.compile(model))`` does it."""


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_healthy_compiled_lightning_module_ends_bit_identical(backend: str, tmp_path: Path) -> None:
    ends = []
    for callbacks in ([], [guard := GradGuard(journal=False)]):
        torch._dynamo.reset()
        run = trainer(tmp_path, callbacks=callbacks)
        module: Any = torch.compile(Compiled(network(bad=False), torch.optim.AdamW), backend=backend)
        run.fit(module, loader(regression(120)))
        ends.append(frozen_copy(run))
    assert same(*ends) and not guard.incidents


def test_a_bad_layer_of_a_compiled_lightning_module_is_named(tmp_path: Path) -> None:
    guard = GradGuard(journal=False)
    module: Any = torch.compile(Compiled(network(bad=True), torch.optim.AdamW), backend="eager")
    trainer(tmp_path, callbacks=[guard]).fit(module, loader(regression(60)))
    assert guard.incidents[0].culprit == "network.4"
