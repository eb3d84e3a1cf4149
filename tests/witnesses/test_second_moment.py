import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_gradguard.detectors import NonFinite
from lightning_gradguard.witnesses.second_moment import SecondMoment, root_mean_ratio
from lightning_gradguard.witnesses.witness import WitnessContext
from tests.builders import mlp, regression
from tests.diagnostics.examples import window
from tests.witnesses.scenes import train

MAKERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-4),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_it_is_about_one_in_a_healthy_run(make):
    _, windows = train(mlp(), regression(300), make=make)
    late = windows.of("second_moment")[-20:]
    assert len(late) == 20 and 0.2 < np.median(late) < 3.0 and max(late) < 10.0


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adamax], ids=lambda k: k.__name__)
def test_nothing_is_said_of_an_optimizer_without_one(make):
    _, windows = train(mlp(), regression(80), make=lambda p: make(p, lr=1e-3))
    assert windows.of("second_moment") == [] and windows.of("update_ratio")


def test_the_number_is_that_of_the_formula():
    g, v = np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.25, 1.0, 0.0, 0.0])
    found = root_mean_ratio(g, v, np.array([0, 2]), correction=np.array([0.5, 1.0]), eps=np.array([1e-8, 0.1]))
    assert found == pytest.approx([math.sqrt((1 / 0.5 + 4 / 2) / 2), math.sqrt((9 / 0.01) / 2)])


def test_a_sample_finds_what_all_elements_say():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(128, 130))
    optimizer = torch.optim.Adam([weight], lr=1e-3)
    for _ in range(40):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    weight.grad = 7.0 * torch.randn_like(weight)
    witness = SecondMoment()
    witness.look(WitnessContext({"w": weight}, optimizer, ["w"], [weight.grad * 1024.0], torch.tensor(1024.0)))
    moment = optimizer.state[weight]["exp_avg_sq"] / (1.0 - 0.999**40)
    exact = float((weight.grad.square() / moment).mean().sqrt())
    assert exact > 5.0
    assert witness.take(window()) == {"w": pytest.approx(exact, rel=0.15)}
    assert witness.take(window()) == {}, "what was taken is forgotten"


def test_it_rises_where_gradients_leave_what_the_moment_knows_and_is_evidence():
    """A loss that is scaled anew is followed by the moment after a thousand steps only."""
    scale = {"now": 1.0}
    data = regression(320)
    data[309] = (data[309][0] * math.nan, data[309][1])

    def before(step):
        scale["now"] = 1.0 if step < 300 else 30.0

    def loss_of(output, target):
        return nn.functional.l1_loss(output, target) * scale["now"]

    guard, windows = train(mlp(), data, before=before, loss_of=loss_of, mode="watch", detectors=[NonFinite()])
    seen = [(w.step, t.value) for w in windows.all for t in w.witnessed if t.witness == "second_moment"]
    healthy = [value for step, value in seen if 150 < step < 300]
    assert next(value for step, value in seen if 304 < step < 309) > 5.0 * float(np.median(healthy))
    [told] = [one for one in guard.incidents[0].witnessed if one.witness == "second_moment"]
    assert told.where in ("0.weight", "2.weight") and told.value > 5.0 * told.usual
