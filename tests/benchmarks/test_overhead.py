"""The overhead benchmark runs, and writes what the documentation shows; how long things take is no test's business."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import overhead, overhead_gpu
from benchmarks.overhead_models import GPT, with_gradients
from benchmarks.overhead_report import CLIP, GUARD, LOWER, ONE_SYNC
from benchmarks.overhead_waits import waits


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
        assert model["waits"][CLIP] == model["waits"][GUARD] == 0
        assert model["waits"][ONE_SYNC] == 1
        assert model["waits"]["Lightning grad_norm()"] == model["tensors"]
    for point in data["tensors"] + data["elements"]:
        assert {CLIP, LOWER, GUARD} <= set(point["milliseconds"])
    assert 0 < data["import_ms"] < data["first_import_ms"]
    assert data["record"]["board_bytes"] > 0 and data["record"]["journal_bytes"] > 0


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


@pytest.mark.parametrize(
    ("read", "count"),
    [
        (lambda t: t * 2, 0),
        (lambda t: t.sum().item(), 1),
        (lambda t: bool(t.sum() > 0), 1),
        (lambda t: t.cpu(), 1),
        (lambda t: t.tolist(), 1),
        (lambda t: torch.tensor([t[0], t[1], 1.0]), 2),
    ],
)
def test_waits_are_counted(read: Callable[[torch.Tensor], object], count: int) -> None:
    values = torch.ones(3)
    assert waits(lambda: read(values)) == count


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
