"""The benchmark of attribution runs, and its targets hold on a small sample."""

from __future__ import annotations

from benchmarks import attribution


def test_culprits_are_named_and_healthy_models_are_not(capsys):
    chosen = ["MLP (He)", "residual MLP", "CNN + BatchNorm", "GPT (tied)", "RNN"]
    faults = ["x 100", "all 1", "noise x 30, later", "bit flip, later"]
    result = attribution.main(["--trials", "2", "--architectures", *chosen, "--faults", *faults])
    assert result["first"] >= 0.95
    assert result["accused"] == 0
    assert "ours 1st" in capsys.readouterr().out
