"""State that survives an upgrade: what every version has saved can be resumed, and no key changes unnoticed."""

from __future__ import annotations

import copy
import hashlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard import GradGuard, Guard
from lightning_gradguard.checkpoint import VERSION
from lightning_gradguard.detectors import Spike
from tests.builders import SAFELY, loader, mlp, regression, same, spoil, trainer
from tests.fixtures import make
from tests.fixtures.golden import NAN, OPEN, STATES, go_on, trained

TREES = {11: "2d224e29a5fcfe69"}
"""Hash of the keys of a state of this version. Where this fails, add a version and its migration to
``checkpoint/migration.py``, change this line, and write a golden state with ``python -m tests.fixtures.golden``."""
OLD = {
    "version_1": "4f694df",
    "version_2_first": "053c1cb",
    "version_2_last": "d87dd49",
    "version_3": "f999297",
    "version_4": "04c690b",
    "version_5": "5ccbaa2",
    "version_6": "0656666",
    "version_7": "95fcedc",
    "version_8": "4713c2c",
    "version_9": "68e3425",
    "version_10": "79bea86",
}
"""Commits that the golden states of earlier versions were written by, or that write such: the last ones before the
package had rooms, before it had a simulated device, and before states had defaults, among them."""


NAMED = frozenset({"parameters", "buffers", "optimizer_state"})
"""What has the names of a module's tensors for keys."""


def keys(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict) and path.rpartition(".")[2] not in NAMED:
        return {f"{path}: dict"}.union(*(keys(found, f"{path}.{key}") for key, found in value.items()))
    if isinstance(value, (list, tuple)):
        return {f"{path}: list"}.union(*(keys(found, f"{path}[]") for found in value))
    return {f"{path}: {type(value).__name__}"}


def tree() -> str:
    # Types of a track before its first step, and keys of one in mid-incident, which has incidents and snapshots too.
    beginning, later = keys(fresh()[2].state_dict()), keys(trained()[2].state_dict())
    lines = sorted(beginning | {line.partition(":")[0] for line in later})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Guard]:
    network = mlp(norm=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    guard = Guard(network)
    guard.attach(optimizer)
    return network, optimizer, guard


def test_the_version_moves_with_the_keys() -> None:
    assert tree() == TREES[VERSION]


@pytest.mark.parametrize("place", ["incidents", "lanes.0.snapshots.kept", "lanes.0.memory"])
def test_a_new_key_is_seen_wherever_it_is(place: str) -> None:
    state = copy.deepcopy(trained()[2].state_dict())
    before, found = keys(state), state
    for key in place.split("."):
        found = found[key]
    (found[0] if isinstance(found, list) else found)["new"] = 0
    assert len(keys(state) - before) == 1


def resume(path: Path) -> tuple[list[str], Guard]:
    saved = torch.load(path, weights_only=True)
    network, optimizer, guard = fresh()
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        guard.load_state_dict(saved["guard"])
    go_on(network, optimizer, guard, spoil(regression(60, seed=2), 40))
    assert all(bool(p.isfinite().all()) for p in network.parameters())
    return [str(one.message) for one in told if "GradGuard" in str(one.message)], guard


@pytest.mark.parametrize("path", sorted(STATES.glob("*.pt")), ids=lambda path: path.stem)
def test_a_golden_state_is_resumed(path: Path) -> None:
    told, guard = resume(path)
    assert len(told) <= 1
    assert [incident.step for incident in guard.incidents][:2] == [NAN, OPEN]
    assert all(incident.closed is not None for incident in guard.incidents[:2])
    assert len(guard.incidents) >= 3  # The NaN after the upgrade was seen too.


RUNS = {
    "4f694df": "older version",
    "053c1cb": None,
    "d87dd49": None,
}
"""Commits whose Trainers wrote ``fixtures/checkpoints``, and what is warned of: the one that the GPU path was first
looked at on, the last before the package had rooms, and the last before it had a simulated device."""


@pytest.mark.parametrize("commit", RUNS)
def test_a_trainer_goes_on_from_a_checkpoint_of_an_earlier_commit(commit: str, tmp_path: Path) -> None:
    watcher, learner = GradGuard(journal=False), make.module()
    run = trainer(tmp_path, callbacks=[watcher], max_epochs=2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run.fit(
            learner,
            loader(spoil(regression(make.STEPS, seed=2), 40)),
            ckpt_path=make.CHECKPOINTS / f"{commit}.ckpt",
            **SAFELY,
        )
    about = [str(one.message) for one in told if "GradGuard" in str(one.message)]
    assert len(about) == (RUNS[commit] is not None) and all(str(RUNS[commit]) in one for one in about)
    assert run.global_step == 2 * make.STEPS
    assert {make.NAN, make.HUGE[0], make.STEPS + 40} <= {incident.step for incident in watcher.incidents}
    assert all(bool(p.isfinite().all()) for p in learner.parameters())


def test_there_is_a_golden_state_of_each_old_version() -> None:
    assert {path.stem for path in STATES.glob("*.pt")} == {*OLD, f"version_{VERSION}"}


def test_there_is_a_golden_state_of_this_version_and_it_fits_whole() -> None:
    told, _ = resume(STATES / f"version_{VERSION}.pt")
    assert told == []


def test_what_is_new_takes_its_default() -> None:
    network, optimizer, guard = trained()
    state = copy.deepcopy(guard.state_dict())
    del state["lanes"]["0"]["memory"]["baseline"]["high_water"], state["lanes"]["0"]["watchful"]
    other = Guard(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(state)
    track = other.attach(optimizer)
    assert track.watchful == 0 and track.steps == 60
    assert track.baseline.count == guard.attach(optimizer).baseline.count


def test_what_does_not_fit_is_named_in_one_warning_and_the_rest_is_kept() -> None:
    network, optimizer, guard = trained()
    state = copy.deepcopy(guard.state_dict())
    state["lanes"]["0"]["batches"] = 3
    state["lanes"]["0"]["incident"] = {"number": "one"}
    other = Guard(network)
    with pytest.warns(RuntimeWarning, match="incident of optimizer 0.*batches of optimizer 0") as told:
        other.load_state_dict(state)
    assert len(told) == 1
    track = other.attach(optimizer)
    assert track.incident is None and track.baseline.count == guard.attach(optimizer).baseline.count
    assert all(incident.closed is not None for incident in other.incidents)
    assert not track.snapshots.empty, "it was written in an incident"


def test_without_what_was_learned_a_trained_network_is_not_taken_for_a_fresh_one() -> None:
    network, optimizer, guard = trained()
    state = copy.deepcopy(guard.state_dict())
    state["lanes"]["0"]["memory"]["baseline"]["of_another_version"] = 1
    other = Guard(network)
    other.attach(optimizer)
    with pytest.warns(RuntimeWarning, match="all of optimizer 0"):
        other.load_state_dict(state)
    assert not other.attach(optimizer).untouched


def test_a_detector_that_is_new_starts_afresh_and_one_that_is_gone_is_not_missed() -> None:
    network, _, guard = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Guard(network, detectors=[Spike()]).load_state_dict(guard.state_dict())
        few = Guard(network, detectors=[Spike()])
        few.attach(torch.optim.SGD(network.parameters(), lr=0.1))
        Guard(network).load_state_dict(few.state_dict())


def test_a_whole_state_is_taken_as_it_is() -> None:
    network, _, guard = trained()
    other = Guard(network)
    other.load_state_dict(guard.state_dict())
    assert same(other.state_dict(), guard.state_dict())
