"""The layer at fault is named first; a healthy model is left in peace."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard.attribution import Probe, blame
from lightning_gradguard.attribution.weights import travelled
from lightning_gradguard.records import GradientStatistics, Suspect
from lightning_gradguard.snapshots import Snapshot


def mlp(depth: int = 8, width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU(inplace=True))]
    model = nn.Sequential(*parts, nn.Linear(width, 4))
    for part in model:
        if isinstance(part, nn.Linear):
            nn.init.kaiming_normal_(part.weight)
    return model


def accuse(model: nn.Module, x: Tensor | None = None, snapshot: Snapshot | None = None) -> tuple[Suspect, ...]:
    probe = Probe()
    probe.arm(model)
    model(torch.randn(16, 32) if x is None else x).square().mean().backward()
    probe.disarm()
    return blame(model, readings=probe.readings(), snapshot=snapshot)


def keep(model: nn.Module, step: int = 100) -> Snapshot:
    return Snapshot(step, {n: p.detach().clone() for n, p in model.named_parameters()}, {}, {})


def test_nobody_is_blamed_in_health():
    assert accuse(mlp()) == ()
    assert accuse(nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))) == ()


@pytest.mark.parametrize("factor", [10.0, 1e4, 1e8])
def test_a_scaled_layer_is_named_alone_with_its_evidence(factor):
    model = mlp()
    with torch.no_grad():
        model[6].weight.mul_(factor)
    (suspect,) = accuse(model)
    assert suspect.layer == "6"
    assert suspect.score == pytest.approx(math.log(factor), abs=1.0)
    assert suspect.forward_gain > factor and suspect.weight_ratio > factor
    assert "weights" in suspect.reason and "forward gain" in suspect.reason


def test_the_gradients_of_the_culprit_are_not_the_largest():
    """Why gains are measured at all: remove this and the largest gradient would do."""
    model = mlp()
    with torch.no_grad():
        model[6].weight.mul_(100.0)
    accuse(model)
    sizes = {name: float(p.grad.norm()) for name, p in model.named_parameters()}
    assert max(sizes, key=sizes.__getitem__) != "6.weight"


def test_several_bad_layers_are_all_named_worst_first():
    model = mlp()
    with torch.no_grad():
        model[2].weight.mul_(20.0)
        model[10].weight.mul_(1000.0)
    assert [suspect.layer for suspect in accuse(model)] == ["10", "2"]


@pytest.mark.parametrize("gain", [2.5, 12.0])
def test_a_wrong_gain_everywhere_names_all(gain):
    model = mlp()
    with torch.no_grad():
        for part in model:
            if isinstance(part, nn.Linear):
                part.weight.mul_(gain)
    assert {suspect.layer for suspect in accuse(model)} == {str(i) for i in range(0, 17, 2)}


def test_a_constant_layer_is_named():
    model = mlp()
    nn.init.constant_(model[4].weight, 0.1)
    (suspect,) = accuse(model)
    assert suspect.layer == "4" and "constant" in suspect.reason


def test_a_layer_that_a_normalisation_follows_needs_more():
    parts = [p for _ in range(4) for p in (nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU())]
    model = nn.Sequential(*parts, nn.Linear(32, 4))
    with torch.no_grad():
        model[3].weight.mul_(4.0)
    assert accuse(model) == ()
    with torch.no_grad():
        model[3].weight.mul_(25.0)
    assert [s.layer for s in accuse(model)] == ["3"]


def test_nonfinite_parameters_outrank_everything():
    model = mlp()
    with torch.no_grad():
        model[6].weight[0, 0] = math.nan
        model[2].weight.mul_(1e4)
    (suspect,) = accuse(model)
    assert suspect.layer == "6" and suspect.score == math.inf


def test_an_overwritten_layer_is_found_by_its_history():
    model = mlp()
    kept = keep(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
        model[8].weight.copy_(torch.randn(32, 32) * 0.25)  # as large as it was: no gain tells
    assert accuse(model) == ()
    (suspect,) = accuse(model, snapshot=kept)
    assert suspect.layer == "8" and "snapshot" in suspect.reason


def test_layers_that_all_moved_alike_are_no_culprits():
    model = mlp()
    kept = keep(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.std() * torch.randn_like(p))
    assert accuse(model, snapshot=kept) == ()


def test_a_branch_growing_from_zero_is_no_culprit():
    model = mlp()
    nn.init.zeros_(model[8].weight)
    kept = keep(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.03 * torch.randn_like(p))
    assert accuse(model, snapshot=kept) == ()


def test_what_was_large_in_health_is_trusted():
    model = mlp()
    with torch.no_grad():
        model[4].weight.mul_(5.0)
    assert [s.layer for s in accuse(model)] == ["4"]
    assert accuse(model, snapshot=keep(model, step=0)) != ()
    assert accuse(model, snapshot=keep(model, step=500)) == ()


def test_the_layer_that_overflows_is_named_not_the_next_one():
    model = mlp()
    with torch.no_grad():
        model[6].weight[0, 0] = 1e38
    assert accuse(model)[0].layer == "6"


def test_a_backward_only_nan_names_the_layer_it_begins_in():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(32))

        def forward(self, x: Tensor) -> Tensor:
            return (0.0 * x + self.shift).abs().sqrt() + x

    model = nn.Sequential(nn.Linear(32, 32), Broken(), nn.Linear(32, 4))
    suspects = accuse(model)
    assert [s.layer for s in suspects] == ["1"] and "gradient" in suspects[0].reason


def test_a_spoilt_weight_gradient_needs_the_statistics():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 4))
    probe = Probe()
    probe.arm(model)
    model(torch.randn(2, 32)).sum().backward()
    names = tuple(name for name, _ in model.named_parameters())
    statistics = GradientStatistics(0, names, np.array([math.nan, 1.0, 1.0, 1.0]), math.nan)
    assert [s.layer for s in blame(model, readings=probe.readings(), statistics=statistics)] == ["0"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_the_batch_is_blamed_for_bad_data(value):
    x = torch.randn(16, 32)
    x[3, 5] = value
    x = x * (value if math.isfinite(value) else 1.0)
    assert [s.layer for s in accuse(mlp(), x)] == ["batch"]


def test_frozen_layers_are_blamed_only_when_not_finite():
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(100.0)
    model[0].requires_grad_(False)
    assert accuse(model) == ()
    with torch.no_grad():
        model[0].weight[0] = math.inf
    assert [s.layer for s in accuse(model)] == ["0"]


def test_recurrence_that_explodes_through_time():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.RNN(8, 16, batch_first=True, nonlinearity="relu"), nn.Linear(16, 1)
            nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=1.8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    assert accuse(Net(), torch.randn(4, 60, 8))[0].layer == "rnn"


def test_without_readings_weights_alone_speak():
    model = mlp()
    assert blame(model) == ()
    with torch.no_grad():
        model[2].weight.mul_(50.0)
    assert [s.layer for s in blame(model)] == ["2"]


def test_odd_modules_are_survived():
    model = nn.ModuleDict(
        {
            "nothing": nn.Sequential(),
            "lazy": nn.LazyLinear(3),
            "bare": nn.ParameterList([torch.zeros(3)]),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(3, 3, bias=False)),
            "spectral": nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
            "imaginary": nn.Linear(3, 3, dtype=torch.complex64),
            "narrow": nn.Linear(3, 3, dtype=torch.float16),
            "integer": nn.ParameterDict({"i": nn.Parameter(torch.zeros(2, dtype=torch.long), requires_grad=False)}),
            "meta": nn.Linear(3, 3, device="meta"),
        }
    )
    assert blame(model, snapshot=Snapshot(5, {"normed.weight": torch.ones(2)}, {}, {})) == ()


def moved(model: nn.Sequential, layer: int, by: float) -> None:
    """Move a layer's weight by a share of its norm."""
    with torch.no_grad():
        weight = model[layer].weight
        change = torch.randn_like(weight)
        weight += change * (by * weight.norm() / change.norm())


def test_a_layer_that_training_moves_as_fast_as_before_is_not_called_displaced():
    model = mlp()
    older = keep(model, 0)
    moved(model, 16, 0.4)
    newer = keep(model, 40)
    assert travelled(model, "16", older, newer) == pytest.approx(0.4, rel=0.05)
    assert travelled(model, "6", older, newer) == 0.0
    moved(model, 16, 0.6)
    assert blame(model, snapshot=newer, older=older, updates=40) == ()
    assert [s.layer for s in blame(model, snapshot=newer, older=older, updates=5)] == ["16"]  # eight times as fast


def test_without_an_older_snapshot_age_tells_how_far_training_may_have_come():
    model = mlp()
    first = keep(model, 0)
    moved(model, 16, 0.94)
    assert [s.layer for s in blame(model, snapshot=first, updates=5)] == ["16"]
    assert blame(model, snapshot=first, updates=160) == ()
