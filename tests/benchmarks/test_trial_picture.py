"""The picture of trials is drawn from what the guard did."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import trial_picture


def test_a_short_run_is_trained_and_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    net = trial_picture.SETTINGS[0].net
    setting = trial_picture.Setting("Short", net, 10.0, 0, 40)
    guarded, alone = (trial_picture.train(setting, guarded=act) for act in (True, False))
    assert len(guarded.losses) == len(guarded.rates) == setting.steps
    assert all(math.isnan(guarded.rates[step]) for step in guarded.skipped) and set(guarded.back) <= set(
        guarded.skipped
    )
    assert not alone.skipped and not alone.trials
    path = tmp_path / "images" / "trial.png"
    trial_picture.draw([setting], [(guarded, alone)], path)
    assert path.read_bytes()[:4] == b"\x89PNG"
