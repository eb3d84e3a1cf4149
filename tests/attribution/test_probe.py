"""The probe measures what one layer does, changes no number, and takes no model down."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gradguard.attribution import LayerReading, Probe


def look(model: nn.Module, *inputs: object, **options: object) -> dict[str, LayerReading]:
    probe = Probe()
    probe.arm(model)
    total(model(*inputs, **options)).backward()
    probe.disarm()
    assert not probe.armed
    return {reading.layer: reading for reading in probe.readings()}


def total(output: object) -> Tensor:
    if isinstance(output, Tensor):
        return (output.abs() ** 2).sum()
    return sum(total(item) for item in output if item is not None)


def test_gains_are_those_of_the_layer():
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(3.0 * torch.eye(4))
    reading = look(nn.Sequential(nn.Linear(4, 4), layer), torch.randn(5, 4))["1"]
    assert reading.forward_gain == pytest.approx(3.0)
    assert reading.backward_gain == pytest.approx(3.0)
    assert reading.order == 1


def test_backward_gain_leaves_the_other_branch_out():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            nn.init.eye_(self.body.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.body(x) + 1000.0 * x

    assert look(Branching(), torch.randn(5, 4))["body"].backward_gain == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_stock_models_with_inplace_activations_give_bit_identical_gradients(name):
    model, x = torchvision.models.get_model(name, weights=None), torch.randn(2, 3, 32, 32)
    probe, gradients = Probe(), []
    for armed in (False, True):
        if armed:
            probe.arm(model)
        torch.manual_seed(0)  # for the dropout
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    owners = [m for m in model.modules() if list(m.parameters(recurse=False))]
    assert len([r for r in probe.readings() if r.kind != "function"]) == len(owners)


def test_names_the_normalisation_that_follows():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    found = look(model, torch.randn(2, 3, 4, 4))
    assert found["0"].followed_by == "1"
    assert found["3"].followed_by is None


def test_self_attention_keeps_its_path():
    """Query, key and value are one tensor; were only one of them replaced, another code path would run."""
    torch.manual_seed(0)
    model, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 3, 8, requires_grad=True)
    plain = model(x, x, x)[0]
    probe = Probe()
    probe.arm(model)
    assert torch.equal(plain, model(query=x, key=x, value=x)[0])


class Odd(nn.Module):
    """Bare parameters, keyword input, tuple and dict output, a layer used twice, one frozen, one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.twice, self.frozen, self.idle = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)
        self.lstm, self.embedding = nn.LSTM(4, 4, batch_first=True), nn.Embedding(5, 4)

    def forward(self, *, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.twice(input=self.twice(self.embedding(tokens) * self.scale))
        return self.lstm(self.frozen(x))[1][0], {"x": x}


def test_odd_models():
    found = look(lambda_module(Odd()), torch.randint(5, (2, 3)))
    assert set(found) == {"inner.embedding", "inner.twice", "inner.frozen", "inner.lstm"}
    assert found["inner.embedding"].rms_in is None
    assert found["inner.lstm"].backward_gain is not None  # though only its last state was used


def lambda_module(inner: nn.Module) -> nn.Module:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, tokens: Tensor) -> list[Tensor]:
            last, rest = self.inner(tokens=tokens)
            return [last, rest["x"]]

    return Outer()


def test_accumulation_keeps_the_worst_call():
    model, probe = nn.Linear(4, 4, bias=False), Probe()
    probe.arm(model)
    for x in (torch.ones(2, 4), torch.full((2, 4), math.nan), torch.randn(2, 4)):
        model(x).sum().backward()
    with torch.no_grad():
        model.weight.mul_(100.0)
    model(torch.ones(2, 4)).sum().backward()
    (reading,) = probe.readings()
    assert reading.input_finite and reading.forward_gain > 1.0


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU(inplace=True), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=reentrant)

    found = look(Checkpointed(), torch.randn(3, 4, requires_grad=True))
    assert found["body.3"].backward_gain is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_any_precision(dtype):
    found = look(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(dtype), torch.randn(3, 4).to(dtype))
    assert found["1"].forward_gain > 0.0 and found["1"].backward_gain > 0.0


def test_large_finite_values_do_not_overflow():
    layer = nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1e35 / 64)
    probe = Probe()
    probe.arm(layer)
    layer(torch.ones(2, 64))
    (reading,) = probe.readings()
    assert reading.output_finite and reading.forward_gain == pytest.approx(1e35, rel=1e-3)


def test_functional_transforms_and_scripts_are_left_alone():
    model, probe = nn.Linear(3, 1), Probe()
    probe.arm(model)
    state = dict(model.named_parameters())

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (x,)).sum()

    torch.vmap(torch.func.grad(loss), (None, 0))(state, torch.randn(5, 3))
    probe.readings()
    probe.arm(nn.Sequential(torch.jit.script(nn.Linear(2, 2)), nn.Linear(2, 2)))
    probe.disarm()


@pytest.mark.parametrize("early", [True, False])
def test_compiled_modules_run_with_or_without_readings(early):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)), torch.randn(2, 4)
    model[0] = torch.compile(model[0], backend="aot_eager", fullgraph=True)
    if not early:
        model(x)
    assert "2" in look(model, x)
    whole = torch.compile(nn.Linear(4, 4), backend="aot_eager", fullgraph=True)
    look(whole, x)


def test_answers_are_alike_where_the_softmax_of_all_samples_is():
    torch.manual_seed(0)
    head, inputs = nn.Linear(4, 3), torch.randn(50, 4)
    assert (look(head, inputs)[""].answers or 0.0) > 0.01
    with torch.no_grad():
        head.bias[1] += 1e3
    certain = look(head, inputs)[""]
    assert certain.answers == 0.0 and (certain.variation or 0.0) > 1e-4, "the output itself still varies"
    assert look(nn.Linear(4, 1), inputs)[""].answers is None
