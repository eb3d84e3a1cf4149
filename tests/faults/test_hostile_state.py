"""Checkpoints that were cut off, altered or made to harm: a clear error, nothing changed and nothing executed."""

from __future__ import annotations

import copy
import math
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gradguard import GradGuard
from lightning_gradguard.errors import GuardError
from lightning_gradguard.guard import Guard
from tests.builders import SAFELY, Net, loader, mlp, regression, same, spoil, through_a_file, trainer
from tests.faults.victims import ADAMW


def trained(steps: int = 45) -> tuple[nn.Module, torch.optim.Optimizer, Guard]:
    network = mlp(norm=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    guard = Guard(network)
    for batch in spoil(regression(45), 30, 44)[:steps]:
        step(network, optimizer, guard, batch)
    return network, optimizer, guard


def step(network: nn.Module, optimizer: Any, guard: Guard, batch: Any) -> None:
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(network(batch[0]), batch[1])
    loss.backward()
    guard.before_step(optimizer, loss=loss, batch=batch)
    optimizer.step()


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """The state of a run in mid-incident, with snapshots."""
    return through_a_file(trained()[2].state_dict())


def paths(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value that is nested in the state."""
    if path:
        yield path
    for key, value in state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ():
        yield from paths(value, (*path, key))


def altered(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(state)
    *way, last = path
    place = changed
    for key in way:
        place = place[key]
    if value is GONE:
        del place[last]
    else:
        place[last] = value
    return changed


class Gone:
    def __repr__(self) -> str:
        return "GONE"


GONE = Gone()
STRANGE = [GONE, None, "x", [], {}, [None], {"x": 1}, b"\x80", torch.zeros(2, 2), math.nan]


@given(data=st.data())
def test_a_state_that_was_altered_is_refused_before_anything_is_touched_or_does_no_harm(good: Any, data: Any) -> None:
    network, optimizer, guard = mlp(norm=True), None, None
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    guard = Guard(network)
    guard.attach(optimizer)
    before = copy.deepcopy(guard.state_dict())
    path, value = data.draw(st.sampled_from(list(paths(good)))), data.draw(st.sampled_from(STRANGE))
    changed, strict = altered(good, path, value), data.draw(st.booleans())
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            guard.load_state_dict(changed, strict=strict)
        assert sum("forgotten" in str(one.message) for one in told) <= 1
    except GuardError:
        assert strict
        assert same(guard.state_dict(), before)
        return
    for batch in spoil(regression(12), 4):
        step(network, optimizer, guard, batch)
    through_a_file(guard.state_dict())


@pytest.mark.fault("a checkpoint's state of another kind, version or shape")
@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("version",), 99, "version 99.*reads version"),
        (("version",), GONE, "version is missing"),
        (("lanes",), [], "lanes should be a dict"),
        (("lanes", "0"), None, r"lanes\.0 should be a dict"),
        (("lanes", "0", "policy", "strikes"), "many", r"policy\.strikes should be a int"),
        (("lanes", "0", "memory", "baseline"), {}, r"baseline\.count is missing"),
        (("lanes", "0", "memory", "detectors", "drift"), 3, "detector 'drift' failed"),
        (("lanes", "0", "remedies", "backoff", "bad"), "low", "remedy 'backoff' failed"),
        (("lanes", "0", "trial"), [{"cause": "rate"}], "treatment"),
        (("lanes", "0", "batches", "peaks"), [3], "not iterable"),
        (("lanes", "0", "treating", "untreated"), [3], r"treating\.untreated should be a dict"),
        (("lanes", "0", "treating", "before"), GONE, r"treating\.before is missing"),
        (("lanes", "0", "snapshots", "kept", 0, "parameters", "0.weight"), torch.zeros(3, 8), r"shape of 0\.weight is"),
        (("lanes", "0", "snapshots", "kept", 0, "parameters", "0.weight"), [1.0], "should be a Tensor"),
        (("lanes", "0", "snapshots", "kept", 0, "extra"), {}, r"extra\.baseline is missing"),
        (("lanes", "0", "meter", "peaks"), [], "different lengths"),
        (("incidents", 0, "step"), "soon", r"incidents\[0\].*step"),
        (("lanes", "0", "incident", "form"), 7, "incident"),
    ],
    ids=str,
)
def test_the_error_says_what_does_not_fit(path: Any, value: Any, told: str, good: Any) -> None:
    network, _, guard = trained(5)
    before = copy.deepcopy(guard.state_dict())
    weights = copy.deepcopy(network.state_dict())
    with pytest.raises(GuardError, match=told):
        guard.load_state_dict(altered(good, path, value), strict=True)
    assert same(guard.state_dict(), before) and same(dict(network.state_dict()), dict(weights))


@pytest.mark.parametrize("state", [None, 3, [], {}, "x"])
def test_what_is_no_state_at_all_is_refused(state: Any) -> None:
    with pytest.raises(GuardError, match="saved state cannot be used"):
        Guard(mlp()).load_state_dict(state, strict=True)


def test_the_state_of_another_module_is_refused(good: Any) -> None:
    other = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))
    with pytest.raises(GuardError, match=r"shape of .* is \(.*\) there and \(.*\) in the module"):
        Guard(other).load_state_dict(good, strict=True)


# -- files


class Bomb:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def checkpoint(root: Path) -> tuple[Path, str]:
    guard = GradGuard(journal=False)
    fit = trainer(root, callbacks=[guard])
    fit.fit(Net(mlp(), ADAMW), loader(spoil(regression(30), 20)))
    fit.save_checkpoint(root / "good.ckpt")
    return root / "good.ckpt", guard.state_key


def resume(root: Path, path: Path) -> Any:
    fit = trainer(root, callbacks=[GradGuard(journal=False)], max_epochs=2)
    fit.fit(Net(mlp(), ADAMW), loader(regression(30)), ckpt_path=path, **SAFELY)
    return fit


@pytest.mark.fault("a checkpoint with a pickle that executes something")
@pytest.mark.skipif(not SAFELY, reason="this Lightning cannot be told to load a checkpoint safely")
@pytest.mark.parametrize("where", ["in the state", "as a key", "beside the state"])
def test_a_bomb_in_a_checkpoint_is_never_executed(where: str, tmp_path: Path) -> None:
    path, key = checkpoint(tmp_path)
    content = torch.load(path, weights_only=True)
    bomb = Bomb(tmp_path / "boom")
    if where == "in the state":
        content["callbacks"][key]["incidents"].append(bomb)
    elif where == "as a key":
        content["callbacks"][key]["lanes"][bomb] = {}
    else:
        content["callbacks"]["GradGuard"] = bomb
    torch.save(content, path)
    with pytest.raises(pickle.UnpicklingError):
        resume(tmp_path, path)
    assert not (tmp_path / "boom").exists()
    # The bomb is a live one.
    torch.load(path, weights_only=False)
    assert (tmp_path / "boom").exists()


@pytest.mark.fault("a checkpoint that was cut off")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_checkpoint_that_was_cut_off_is_an_error(share: float, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((RuntimeError, EOFError, OSError, pickle.UnpicklingError)):
        resume(tmp_path, path)


@pytest.mark.fault("a checkpoint whose guard state was altered")
def test_what_was_altered_in_a_checkpoint_is_forgotten_and_training_goes_on(tmp_path: Path) -> None:
    path, key = checkpoint(tmp_path)
    content = torch.load(path, weights_only=True)
    content["callbacks"][key]["lanes"]["0"]["policy"]["_held"] = "long"
    torch.save(content, path)
    with pytest.warns(RuntimeWarning, match="forgotten.*policy of optimizer 0"):
        assert resume(tmp_path, path).global_step == 60


def test_a_sound_checkpoint_is_resumed(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    assert resume(tmp_path, path).global_step == 60
