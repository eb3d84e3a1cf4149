"""The overhead benchmark runs, and writes what the documentation shows; how long things take is no test's business."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import overhead, overhead_gpu
from benchmarks.overhead_models import GPT, with_gradients
from benchmarks.overhead_report import CLIP, GUARD, LOWER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("overhead")
    overhead.main(["--quick", "--quiet", "--output", str(output)])
    return output


def test_data_holds_every_contender_of_every_model(folder: Path) -> None:
    data = json.loads((folder / "performance.json").read_text())
    assert len(data["models"]) == 2
    for model in data["models"].values():
        assert {CLIP, LOWER, GUARD, f"{GUARD}: snapshots", f"{GUARD}: windows"} <= set(model["ratio"])
        assert model["ratio"][CLIP] == 1.0
        assert all(math.isfinite(ratio) for ratio in model["ratio"].values())
        assert len(model["first_steps"]) == 5
    for point in data["tensors"] + data["elements"]:
        assert {CLIP, LOWER, GUARD} <= set(point["milliseconds"])
    assert data["import_ms"] > 0


def test_page_names_the_machine_and_every_bar(folder: Path) -> None:
    page = (folder / "performance.md").read_text()
    data = json.loads((folder / "performance.json").read_text())
    assert data["machine"] in page
    assert all(name in page for name in data["models"])
    assert "No GPU was measured" in page
    for name in ("overhead-tensors.png", "overhead-elements.png"):
        assert f"images/{name}" in page
        assert (folder / "images" / name).stat().st_size > 0


def test_a_round_holds_one_snapshot_and_two_windows() -> None:
    model = GPT(8, 1, 16, 8)
    with_gradients(model)
    with overhead.guarded(model) as (guard, _):
        kinds = []
        for _ in range(overhead.PERIOD):
            guard.call()
            kinds.append(guard.kind())
    assert kinds.count("snapshot") == 1
    assert kinds.count("window") == 2


def test_the_gpt_is_the_one_that_was_promised() -> None:
    parameters = list(GPT().parameters())
    assert len(parameters) == 148
    assert 16.5e6 < sum(p.numel() for p in parameters) < 17.5e6


def test_the_language_model_is_the_one_that_was_promised() -> None:
    with torch.device("meta"):
        model = overhead_gpu.Language()
    assert 123e6 < sum(p.numel() for p in model.parameters()) < 126e6


@pytest.mark.parametrize("fused", [False, True])
def test_what_runs_on_a_gpu_runs_on_a_cpu_too(fused: bool) -> None:
    def tiny(device: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
        tokens = torch.randint(32, (2, 9), device=device)
        return overhead_gpu.Language(16, 1, 2, 32, 8).to(device), (tokens[:, :-1], tokens[:, 1:].flatten())

    rounds: list[int] = []
    found = overhead_gpu.measure(tiny, device="cpu", fused=fused, rounds=2, steps=20, told=lambda: rounds.append(1))
    assert len(rounds) == 2
    assert set(found["ratio"]) == set(found["milliseconds"])
    assert found["ratio"][overhead_gpu.PLAIN] == 1.0
    page = overhead_gpu.table({"models": {"tiny": found}})
    assert f"{found['ratio'][overhead_gpu.GUARDED]:.3f}" in page
