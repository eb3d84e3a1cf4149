"""Numbers of an optimizer that are odd, and what they are brought to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import Guard
from lightning_gradguard.attribution.optimizer_numbers import at_fault, mend, odd_number, put_back


def weights(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [torch.zeros(2, dtype=dtype, requires_grad=True)]


def adam(betas: Any, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights(), betas=betas, **more)


class Lion(torch.optim.Optimizer):
    """Betas, and no second moment."""

    def __init__(self, betas: tuple[float, float]) -> None:
        super().__init__(weights(), {"lr": 0.1, "betas": betas})


def test_an_optimizer_with_an_odd_number_is_the_suspect() -> None:
    [suspect] = at_fault(torch.optim.Adam(weights(torch.float16)))
    assert (suspect.layer, suspect.part, suspect.kind) == ("optimizer", "optimizer", "eps")
    assert "eps=1e-8 is 0 in float16" in suspect.reason and not suspect.is_layer and not suspect.is_module
    assert at_fault(torch.optim.Adam(weights())) == ()


@pytest.mark.parametrize(
    ("dtype", "eps", "expected"),
    [
        (torch.float32, 1e-8, False),
        (torch.bfloat16, 1e-8, False),
        (torch.float16, 1e-8, True),
        (torch.float16, 1e-4, False),
        (torch.float16, 0.0, True),
        (torch.float32, 0.0, True),
    ],
)
def test_an_eps_that_is_nothing_is_named(dtype: torch.dtype, eps: float, expected: bool) -> None:
    said = odd_number(torch.optim.Adam(weights(dtype), eps=eps))
    assert (said is not None) == expected
    assert said is None or ("eps=1e-8 is 0 in float16" if eps else "eps=0, so that an update divides by 0") in said


def test_rows_of_an_embedding_that_no_batch_has_used_stay_finite_without_an_eps() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(300, 8), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2, eps=0.0)
    guard = Guard(network)
    guard.attach(optimizer)
    for _ in range(60):
        words = torch.randint(0, 300, (32,))
        loss = (network(words)[:, 0] - words.float().sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        guard.before_step(optimizer, loss=loss, batch=words)
        optimizer.step()
    assert guard.incidents[0].culprit == "optimizer" and all(bool(p.isfinite().all()) for p in network.parameters())


def test_over_the_new_eps_a_gradient_whose_square_is_nothing_stays_below_one() -> None:
    optimizer = torch.optim.Adam(weights(torch.float16), eps=1e-8)
    (one,) = mend(optimizer)
    assert str(one) == "eps 1e-8 -> 2.44e-4" and odd_number(optimizer) is None
    gradients = torch.logspace(-7, 0, 2000).half()
    lost = gradients[gradients**2 == 0.0].float()
    assert lost.numel() > 100 and lost.max() / one.usable < 1.0


@pytest.mark.parametrize(
    ("optimizer", "name", "usable"),
    [
        (torch.optim.LBFGS(weights()), "line_search_fn", "strong_wolfe"),
        (torch.optim.SGD(weights(), lr=0.1, momentum=0.999), "momentum", 0.9),
        (torch.optim.SGD(weights(), lr=0.1, momentum=1.0), "momentum", 0.9),
        (torch.optim.RMSprop(weights(), momentum=0.99), "momentum", 0.9),
        (adam((0.99, 0.999)), "betas", (0.9, 0.999)),
        (adam((0.99, 0.9999)), "betas", (0.9, 0.9999)),
        (adam((0.999, 0.9)), "betas", (0.9, 0.999)),
        (adam((0.95, 0.5)), "betas", (0.9, 0.999)),
        (torch.optim.Adagrad(weights(torch.float16)), "eps", 2.0**-12),
    ],
)
def test_each_is_brought_to_a_usable_one_and_back(optimizer: Any, name: str, usable: Any) -> None:
    (group,) = optimizer.param_groups
    before = group[name]
    assert odd_number(optimizer)
    mended = mend(optimizer)
    assert [one.name for one in mended] == [name] and group[name] == usable
    assert odd_number(optimizer) is None and mend(optimizer) == []
    put_back(optimizer, mended)
    assert group[name] == before


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.LBFGS(weights(), line_search_fn="strong_wolfe"),
        torch.optim.SGD(weights(torch.float16), lr=0.1, momentum=0.98),
        torch.optim.SGD(weights(), lr=0.1, momentum=1),
        adam((0.9, 0.999)),
        adam((0.9, 0.95)),
        adam((0.0, 0.0)),
        adam((0.5, 0.9)),
        adam((torch.tensor(0.999), torch.tensor(0.9)), lr=torch.tensor(0.1), foreach=False),
        Lion((0.99, 0.9)),
        torch.optim.Adafactor(weights(torch.float16)),
        torch.optim.Rprop(weights()),
    ],
)
def test_others_are_let_be(optimizer: Any) -> None:
    assert odd_number(optimizer) is None and mend(optimizer) == []


def test_every_group_is_mended_and_what_somebody_has_written_since_stays() -> None:
    groups = [{"params": weights(), "momentum": m} for m in (0.999, 0.5, 0.99)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert odd_number(optimizer) == (
        "momentum=0.999: each update repeats the last 1,000 gradients; "
        "momentum=0.99: each update repeats the last 100 gradients"
    )
    mended = mend(optimizer)
    assert [g["momentum"] for g in optimizer.param_groups] == [0.9, 0.5, 0.9]
    optimizer.param_groups[0]["momentum"] = 0.7
    del optimizer.param_groups[2]
    put_back(optimizer, mended)
    assert [g["momentum"] for g in optimizer.param_groups] == [0.7, 0.5]


def test_two_numbers_of_one_group_are_both_told() -> None:
    optimizer = torch.optim.Adam(weights(torch.float16), betas=(0.999, 0.9))
    assert [str(one) for one in mend(optimizer)] == ["eps 1e-8 -> 2.44e-4", "betas (0.999, 0.9) -> (0.9, 0.999)"]
