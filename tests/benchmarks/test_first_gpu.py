"""The first half hour on a GPU, in short form on the simulated device."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.first_gpu import __main__ as first_gpu


def test_every_part_runs_on_the_simulated_device_and_finds_nothing_wrong(tmp_path: Path) -> None:
    told: list[str] = []
    found = first_gpu.run(first_gpu.Place(real=False), tmp_path / "found.json", told=told.append)
    assert first_gpu.verdicts(found) == []
    assert list(found) == list(first_gpu.PARTS)
    assert told[-1].strip() == "all as it should be"
    assert json.loads((tmp_path / "found.json").read_text())["machine"]["card"] == "simulated"
    assert all(one["left"] >= 50 for one in found["calm"].values())


def test_what_is_wrong_is_told_and_the_other_parts_run() -> None:
    def fails(place: first_gpu.Place) -> dict[str, object]:
        raise RuntimeError("CUDA error")

    parts = {"calm": fails, "machine": first_gpu.machine}
    before, first_gpu.PARTS = first_gpu.PARTS, parts  # type: ignore[assignment]
    try:
        found = first_gpu.run(first_gpu.Place(real=False), told=lambda line: None)
    finally:
        first_gpu.PARTS = before
    assert first_gpu.verdicts(found) == ["calm: RuntimeError('CUDA error')"]
    assert found["machine"]["card"] == "simulated"


def test_no_part_begins_when_the_time_is_up() -> None:
    found = first_gpu.run(first_gpu.Place(real=False), budget=-1.0, told=lambda line: None)
    assert all(part == {"left out": "the time was up"} for part in found.values())
