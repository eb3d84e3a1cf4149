import math

import pytest
import torch
from torch import nn

from tests.builders import mlp, regression
from tests.witnesses.scenes import train

MAKERS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-4),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_it_is_taken_once_a_window_for_any_optimizer_and_still_in_a_healthy_run(make):
    guard, windows = train(mlp(), regression(300), make=make)
    ratios = windows.of("update_ratio")
    assert len(ratios) >= len(windows.all) - 8, "windows of a single step see no update"
    late = ratios[-20:]
    assert min(late) > 0.0 and max(late) < 10.0 * sorted(late)[len(late) // 2]
    assert all(track.witnesses.testify() == () for track in guard._tracks)


def test_a_leap_of_the_update_is_seen_before_the_gradient_and_is_evidence():
    """A rate that leaps makes an update too large; the gradient follows, and the incident names who moved."""
    network, held = mlp(), {}

    def make(parameters):
        held["optimizer"] = torch.optim.Adam(parameters, lr=1e-3)
        return held["optimizer"]

    def before(step):
        held["optimizer"].param_groups[0]["lr"] = 1e-3 if step < 200 else 0.05

    data = regression(260)
    data[231] = (data[231][0], data[231][1] + 1e4)
    guard, windows = train(network, data, make=make, before=before, mode="watch")
    assert windows.of("update_ratio")[-1] > 10.0 * windows.of("update_ratio")[30]
    [incident] = [one for one in guard.incidents if one.step <= 231][:1]
    told = {one.witness: one for one in incident.witnessed}
    assert told["update_ratio"].where in ("0", "2") and told["update_ratio"].value > 10.0 * told["update_ratio"].usual


def test_biases_and_gains_do_not_count():
    network = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 1))
    _, windows = train(network, regression(60))
    assert {told.where for window in windows.all for told in window.witnessed} <= {"0", "2", "0.weight", "2.weight"}
    assert all(math.isfinite(ratio) for ratio in windows.of("update_ratio"))
