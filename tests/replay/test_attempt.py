"""A step is computed again, and leaves nothing behind."""

from __future__ import annotations

import torch
from torch import nn

from lightning_gradguard.evidence import Bundle, Pass
from lightning_gradguard.replay.attempt import Stage
from tests.builders import mlp, regression


def test_an_attempt_repeats_itself_and_leaves_weights_and_random_numbers_alone() -> None:
    module = nn.Sequential(*mlp(norm=True), nn.Dropout(0.5))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    stage = Stage(module, Bundle(0, norm=1.0), lambda m, b: nn.functional.mse_loss(m(b[0]), b[1]), torch.device("cpu"))
    [batch] = regression(1)
    from lightning_gradguard.evidence.randomness import read

    states = read()
    first = stage.attempt(batch, 0, states)
    torch.rand(5)
    drawn = torch.get_rng_state()
    assert stage.attempt(batch, 0, states) == first
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(
        torch.equal(v, before[k]) for k, v in module.state_dict().items() if "running" not in k and "num" not in k
    )
    assert Pass(None, {}).states is None
