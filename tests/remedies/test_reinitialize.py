"""Bad layers are repaired in the mildest way that works, and the optimizer forgets them."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradguard.records import GradientStatistics, Outcome, Suspect
from lightning_gradguard.remedies.reinitialize import Reinitialize
from lightning_gradguard.remedies.remedy import RemedyContext
from lightning_gradguard.snapshots import Snapshot, SnapshotStore
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from tests.builders import same


class Kept(SnapshotStore):
    """A store that holds one snapshot."""

    def __init__(self, snapshot: Snapshot | None, before: Snapshot | None = None) -> None:
        self._snapshot, self._before = snapshot, before

    @property
    def latest(self) -> Snapshot | None:
        return self._snapshot

    @property
    def older(self) -> Snapshot | None:
        return self._before


def treat(
    module: nn.Module,
    *layers: str,
    remedy: Reinitialize | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    snapshot: Snapshot | None = None,
    before: Snapshot | None = None,
    gain: float | None = None,
    start: bool = False,
) -> Outcome:
    parameters = dict(module.named_parameters())
    context = RemedyContext(
        module=module,
        optimizer=optimizer or torch.optim.SGD(module.parameters(), 0.1),
        parameters=parameters,
        snapshots=Kept(snapshot, before),
        running=RunningStatistics(module),
        statistics=GradientStatistics(7, (), np.zeros(0), 0.0),
        blame=tuple(Suspect(layer, 1.0, "test", forward_gain=gain) for layer in layers),
        start=start,
    )
    return (remedy or Reinitialize()).apply(context)


def keep(module: nn.Module) -> Snapshot:
    return Snapshot(
        3,
        {n: p.detach().clone() for n, p in module.named_parameters()},
        {n: b.clone() for n, b in module.named_buffers()},
        {},
    )


def size(tensor: torch.Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))


def test_a_layer_that_is_too_large_is_rescaled_and_keeps_its_structure():
    model = net()
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.mul_(1e8)
    outcome = treat(model, "0", start=True)
    assert outcome.applied and outcome.layers == ("0",) and "rescaled" in outcome.detail
    assert size(model[0].weight) == pytest.approx(math.sqrt(2 / 27), rel=1e-3)
    assert torch.cosine_similarity(before.flatten(), model[0].weight.detach().flatten(), dim=0) > 0.9999


@pytest.mark.parametrize("value", [0.1, math.nan, math.inf])
def test_a_degenerate_layer_is_redrawn(value):
    model = net()
    nn.init.constant_(model[0].weight, value)
    assert "Kaiming" in treat(model, "0", start=True).detail
    assert size(model[0].weight) == pytest.approx(math.sqrt(2 / 27), rel=0.1)


@pytest.mark.parametrize(("least", "most", "how"), [(0.0, 20.0, "Kaiming"), (-20.0, 20.0, "rescaled")])
def test_weights_whose_mean_outweighs_their_deviations_are_drawn_anew_and_not_rescaled(least, most, how):
    """Those of ``torch.rand`` say one and the same of every input of one sign, whatever their scale."""
    model = net()
    nn.init.uniform_(model[0].weight, least, most)
    assert how in treat(model, "0", start=True).detail


@pytest.mark.parametrize("how", ["constant", "nan", "large"])
def test_nothing_is_drawn_anew_or_rescaled_in_a_run_under_way(how):
    model = net()
    with torch.no_grad():
        values = {"constant": torch.tensor(0.1), "nan": torch.tensor(math.nan), "large": 1e8 * model[0].weight}
        model[0].weight.copy_(values[how])
    before = copy.deepcopy(model.state_dict())
    outcome = treat(model, "0")
    assert not outcome.applied and outcome.layers == () and "in a run under way" in outcome.detail
    assert same(before, model.state_dict())


@pytest.mark.parametrize(("method", "how"), [("redraw", "Kaiming"), ("rescale", "rescaled")])
def test_a_way_that_was_asked_for_by_name_is_taken_in_a_run_under_way_too(method, how):
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(1e8)
    assert how in treat(model, "0", remedy=Reinitialize(method=method)).detail
    assert size(model[0].weight) == pytest.approx(math.sqrt(2 / 27), rel=0.1)


@pytest.mark.parametrize(
    ("activation", "scheme"),
    [(nn.ReLU(), "Kaiming"), (nn.Tanh(), "Xavier"), (nn.SELU(), "LeCun"), (nn.GELU(), "Kaiming")],
)
def test_a_redraw_fits_the_activation(activation, scheme):
    model = nn.Sequential(nn.Linear(64, 64), activation, nn.Linear(64, 2))
    assert scheme in treat(model, "0", remedy=Reinitialize(method="redraw")).detail
    assert "LeCun" in treat(model, "2", remedy=Reinitialize(method="redraw")).detail
    assert size(model[0].bias) == 0.0


def test_recurrent_matrices_are_orthogonal_gate_by_gate():
    model = nn.Sequential(nn.LSTM(8, 16))
    nn.init.constant_(model[0].weight_hh_l0, 1.0)
    bias = model[0].bias_hh_l0.detach().clone()
    treat(model, "0", remedy=Reinitialize(method="redraw"))
    for gate in model[0].weight_hh_l0.detach().chunk(4):
        assert torch.allclose(gate @ gate.T, torch.eye(16), atol=1e-5)
    assert torch.equal(bias, model[0].bias_hh_l0)


def test_transformer_layers_get_a_truncated_normal():
    model = nn.TransformerEncoderLayer(64, 4, 128)
    treat(model, "self_attn", "linear1", "norm1", remedy=Reinitialize(method="redraw"))
    assert float(model.linear1.weight.detach().abs().max()) <= 2 * size(model.linear1.weight) * 1.3
    assert size(model.self_attn.in_proj_weight) == pytest.approx(0.02 * math.sqrt(768 / 64), rel=0.2)
    assert torch.equal(model.norm1.weight, torch.ones(64))


def test_embeddings_keep_their_padding_row():
    model = nn.Sequential(nn.Embedding(10, 8, padding_idx=2))
    treat(model, "0", remedy=Reinitialize(method="redraw"))
    assert not model[0].weight[2].any() and model[0].weight[3].any()


def test_damage_in_the_middle_of_a_run_is_restored():
    model = net()
    kept = keep(model)
    with torch.no_grad():
        model[0].weight.add_(torch.randn_like(model[0].weight))
        model[1].running_var.fill_(1e30)
    outcome = treat(model, "0", snapshot=kept)
    assert "step 3" in outcome.detail
    assert torch.equal(model[0].weight, kept.parameters["0.weight"])
    assert torch.equal(model[1].running_var, kept.buffers["1.running_var"])


@pytest.mark.parametrize(("growth", "step"), [(24.0, 2), (1.5, 3)])
def test_damage_that_began_before_the_newest_snapshot_is_restored_from_the_one_before(growth, step):
    model = net()
    before = dataclasses.replace(keep(model), step=2)
    with torch.no_grad():
        model[0].weight.mul_(growth)
        kept = keep(model)
        model[0].weight.mul_(30.0)
    assert f"step {step}" in treat(model, "0", snapshot=kept, before=before).detail
    source = before if step == 2 else kept
    assert torch.equal(model[0].weight, source.parameters["0.weight"])


def test_a_snapshot_that_is_as_bad_is_not_restored():
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(1e4)
    assert not treat(model, "0", snapshot=keep(model)).applied, "it did not move since"
    spoilt = keep(net())
    spoilt.parameters["0.weight"][0] = math.nan
    assert not treat(model, "0", snapshot=spoilt).applied and model[0].weight.isfinite().all()
    assert "rescaled" in treat(model, "0", snapshot=keep(model), start=True).detail
    refused = treat(model, "0", snapshot=spoilt, remedy=Reinitialize(method="restore"))
    assert not refused.applied and "snapshot" in refused.detail


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("value", [1e30, math.inf, math.nan])
def test_stray_elements_are_zeroed_and_the_others_kept(value, start):
    model = net()
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight[1, 2, 0, 0] = value
    assert "1 stray" in treat(model, "0", start=start).detail
    before[1, 2, 0, 0] = 0.0
    assert torch.equal(before, model[0].weight)


def test_a_restored_layer_gets_the_optimizers_state_of_then():
    """A fresh state would make the first update of RMSprop ten times as large as the usual one."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)
    for _ in range(20):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    store = SnapshotStore()
    store.take(20, dict(model.named_parameters()), {}, optimizer)
    kept = copy.deepcopy(optimizer.state[model[0].weight])
    with torch.no_grad():
        model[0].weight.normal_(0.0, 30.0)
        optimizer.state[model[0].weight]["square_avg"].fill_(math.inf)
    treat(model, "0", optimizer=optimizer, snapshot=store.latest)
    assert same(optimizer.state[model[0].weight], kept)


@pytest.mark.parametrize("fused", [False, True])
def test_the_optimizer_forgets_the_layer_alone(fused):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=fused)
    for _ in range(20):
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    treat(model, "0", optimizer=optimizer, remedy=Reinitialize(method="redraw"))
    assert model[0].weight not in optimizer.state and model[2].weight in optimizer.state
    before = model[0].weight.detach().clone()
    for _ in range(15):
        optimizer.step()
        change = float((model[0].weight.detach() - before).abs().max())
        assert change < 1.5e-3, "a stale step count makes the updates several times the learning rate"
        before = model[0].weight.detach().clone()


def test_the_draw_is_private_and_repeatable():
    first, second = net(), net()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    treat(first, "0", remedy=Reinitialize(method="redraw"))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    treat(second, "0", remedy=Reinitialize(method="redraw"))
    assert torch.equal(first[0].weight, second[0].weight)


def test_nothing_else_is_touched():
    model = net()
    before = copy.deepcopy(model.state_dict())
    treat(model, "4", remedy=Reinitialize(method="redraw"))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"4.weight", "4.bias"}


def test_frozen_layers_are_left_unless_they_are_not_finite():
    model = net()
    model[0].requires_grad_(False)
    kept = keep(model)
    for start in (True, False):
        assert not treat(model, "0", start=start).applied
        with torch.no_grad():
            model[0].weight.fill_(math.nan)
        assert treat(model, "0", start=start, snapshot=kept).applied
        assert torch.equal(model[0].weight, kept.parameters["0.weight"])


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrised_weights(wrap):
    model = nn.Sequential(wrap(nn.Linear(32, 32)), nn.ReLU(), nn.Linear(32, 2))
    assert treat(model, "0", remedy=Reinitialize(method="redraw")).applied
    assert model[0].weight.isfinite().all() and 0.0 < size(model[0].weight) < 1.0
    model(torch.randn(2, 32)).sum().backward()


def test_custom_layers_are_divided_by_their_gain():
    class Custom(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.full((4, 4), 50.0))

    model = nn.Sequential(Custom())
    assert not treat(model, "0", start=True).applied
    assert not treat(model, "0", gain=100.0).applied
    assert treat(model, "0", gain=100.0, start=True).applied and size(model[0].matrix) == pytest.approx(0.5)


def test_batch_and_unknown_layers_are_passed_over():
    assert not treat(net(), "batch", "no.such.layer").applied
    assert not treat(net()).applied


def test_parametrised_weights_that_are_sharded_are_refused():
    model = net()
    nn.utils.parametrizations.weight_norm(model[0])
    original = model[0].parametrizations.weight.original0
    original.full_tensor = lambda: original
    outcome = treat(model, "0")
    assert not outcome.applied and "sharded" in outcome.detail


def test_patterns_and_limits():
    model = net()
    assert Reinitialize(only=["0", "4"], exclude=["4"]).check_layers(model) == {"0"}
    assert not treat(model, "4", remedy=Reinitialize(exclude=["4"])).applied
    assert treat(model, "4", "0", remedy=Reinitialize(max_layers=1, method="redraw")).layers == ("4",)
    with pytest.raises(ValueError, match=r"'head\*' matches no layer.*0, 1, 4"):
        Reinitialize(only=["head*"]).check_layers(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method must be one of .* got 'guess'"),
        ({"max_layers": 0}, "max_layers .* got 0"),
        ({"only": "head"}, "only .* got 'head'"),
        ({"exclude": [""]}, "exclude .* got"),
        ({"seed": -1}, "seed .* got -1"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Reinitialize(**options)
