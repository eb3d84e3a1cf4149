import pytest
import torch
from torch import nn

from lightning_gradguard.witnesses import RouterLoad
from lightning_gradguard.witnesses.router_load import busiest
from tests.witnesses.scenes import Attending, batches, train


def test_an_even_load_is_one_and_a_collapsed_router_the_number_of_experts():
    even = 9.0 * torch.eye(4).repeat(5, 1).reshape(5, 4, 4)
    assert float(busiest(even)) == 1.0
    assert float(busiest(torch.tensor([9.0, 1.0, 0.0, 0.0]).expand(3, 7, 4))) == 4.0
    assert float(busiest(torch.tensor([9.0, 1.0, 0.0, 0.0]).expand(3, 7, 4), top_k=2)) == 2.0
    assert float(busiest(even, top_k=9)) == 1.0, "no token goes to more experts than there are"


def test_it_moves_when_a_router_collapses():
    network = Attending()

    def before(step):
        if step >= 150:
            with torch.no_grad():
                network.router.bias[2] = 30.0

    _, windows = train(network, batches(200), witnesses=[RouterLoad(modules=["router"])], before=before)
    seen = [(w.step, t.value, t.where) for w in windows.all for t in w.witnessed if t.witness == "router_load"]
    assert {where for _, _, where in seen} == {"router"}
    assert all(value == 4.0 for step, value, _ in seen if step > 156)
    assert max(value for step, value, _ in seen if step < 150) < 3.5


def test_the_first_tensor_of_what_a_router_returns_counts():
    witness = RouterLoad(modules=[nn.Linear], top_k=1)
    assert float(witness.read(nn.Identity(), (), {}, (torch.eye(3), torch.ones(3)))) == 1.0
    assert witness.read(nn.Identity(), (), {}, "no tensor") is None


def test_top_k_is_a_count():
    with pytest.raises(ValueError, match="top_k"):
        RouterLoad(top_k=0)
