"""A checkpoint taken at any point of an incident and resumed ends bit-identical to the uninterrupted run."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_gradguard import GradGuard, Policy, SnapshotStore
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.guard import Guard
from lightning_gradguard.remedies import Augment, Regularize, SwapActivation
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, through_a_file, trainer

EPOCH = 20
ADAMW = partial(torch.optim.AdamW, lr=0.01)
STEP = partial(torch.optim.lr_scheduler.StepLR, step_size=15, gamma=0.8)


class Keep(Callback):
    """Save a checkpoint at the end of each epoch."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"{trainer.current_epoch}.ckpt")


class Sick(Net):
    """A run whose loss is multiplied at some steps, so that the weights are accused and not the batch."""

    def __init__(self, network: nn.Module, sick: dict[int, float], *, validate: bool = False) -> None:
        super().__init__(network, ADAMW, STEP)
        self.sick = sick

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.sick.get(self.trainer.global_step, 1.0)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.network(batch[0] * 100.0)


def guard(optional: bool = False, in_checkpoint: bool = True) -> GradGuard:
    policy = Policy(patience=2, calm=30)
    more = [Regularize(steps=15), Augment(steps=15), SwapActivation()] if optional else []
    return GradGuard(
        journal=False,
        policy=policy,
        snapshots=SnapshotStore(every=10, in_checkpoint=in_checkpoint),
        remedies=[*default_remedies(), *more],
    )


def fit(
    sick: dict[int, float],
    root: Path,
    *,
    epochs: int,
    ckpt: Any = None,
    validate: bool = False,
    optional: bool = False,
    in_checkpoint: bool = True,
) -> Any:
    module, watcher = Sick(mlp(norm=True), sick), guard(optional, in_checkpoint)
    run = trainer(root, callbacks=[watcher, Keep()], max_epochs=epochs, num_sanity_val_steps=0)
    run.fit(module, loader(regression(EPOCH)), loader(regression(3)) if validate else None, ckpt_path=ckpt)
    return frozen_copy(run), watcher


def spikes(*steps: int) -> dict[int, float]:
    return dict.fromkeys(steps, 100000.0)


# Epochs end after steps 19 and 39: each of these incidents is open at one or both.
INCIDENTS = {
    "calm": {},
    "right after a NaN": {19: math.nan},
    "between two NaN": {18: math.nan, 19: math.nan, 20: math.nan},
    "before a rollback": spikes(39, 40, 41, 42),
    "in the middle of a back-off": spikes(30, 31, 32, 33, 34),
    "over two epoch ends": spikes(*range(17, 24), *range(37, 43)),
    "from the very first step": {0: math.nan, 1: math.nan} | spikes(18, 19, 20),
}


@pytest.mark.cell("Trainer", "checkpoint and resume at every point of an incident", "healthy", "sick")
@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("name", INCIDENTS)
def test_a_resumed_run_ends_like_the_uninterrupted_one(name: str, validate: bool, tmp_path: Path) -> None:
    sick = INCIDENTS[name]
    whole, first = fit(sick, tmp_path / "whole", epochs=4, validate=validate)
    assert bool(first.incidents) is bool(sick)
    for epoch in (0, 1):
        checkpoint = tmp_path / "whole" / f"{epoch}.ckpt"
        resumed, second = fit(sick, tmp_path / "resumed", epochs=4, ckpt=checkpoint, validate=validate)
        assert same(whole, resumed)
        assert same(second.state_dict(), first.state_dict())


def held(checkpoint: Path) -> Any:
    """Return the snapshots that a checkpoint holds, and the bytes of all tensors of the guard in it."""
    found = torch.load(checkpoint, weights_only=False)["callbacks"]["GradGuard{'mode': 'guard'}"]
    tensors = [t for t in tree_leaves(found) if isinstance(t, Tensor)]
    return found["lanes"]["0"]["snapshots"]["kept"], sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("name", ["calm", "right after a NaN"])
def test_by_default_a_checkpoint_outside_an_incident_holds_no_snapshot_and_is_resumed_bit_by_bit(
    name: str, tmp_path: Path
) -> None:
    """Where a run goes back after that, it may go back to the checkpoint's own weights, where the other has an older copy."""
    sick = {} if name == "calm" else {step + 20: by for step, by in INCIDENTS[name].items() if math.isnan(by)}
    whole, first = fit(sick, tmp_path / "whole", epochs=4, in_checkpoint=False)
    assert held(tmp_path / "whole" / "0.ckpt") == ([], 0)
    resumed, second = fit(sick, tmp_path / "resumed", epochs=4, ckpt=tmp_path / "whole" / "0.ckpt", in_checkpoint=False)
    assert same(whole, resumed)
    assert same(second.state_dict(), first.state_dict())


@pytest.mark.parametrize("name", ["between two NaN", "before a rollback", "over two epoch ends"])
def test_by_default_a_checkpoint_in_an_incident_carries_the_last_good_snapshot(name: str, tmp_path: Path) -> None:
    sick = INCIDENTS[name]
    _, first = fit(sick, tmp_path / "whole", epochs=4, in_checkpoint=False)
    at = 0 if name != "before a rollback" else 1
    checkpoint = tmp_path / "whole" / f"{at}.ckpt"
    (kept, *more), _ = held(checkpoint)
    assert more == [] and all(bool(value.isfinite().all()) for value in kept["parameters"].values())
    ends, second = fit(sick, tmp_path / "resumed", epochs=4, ckpt=checkpoint, in_checkpoint=False)
    assert all(bool(t.isfinite().all()) for t in tree_leaves(ends) if isinstance(t, Tensor))
    assert [i.step for i in second.incidents] == [i.step for i in first.incidents]


def test_a_run_resumed_right_before_trouble_goes_back_to_the_checkpoint_s_own_weights(tmp_path: Path) -> None:
    fit({}, tmp_path / "whole", epochs=1, in_checkpoint=False)
    checkpoint = tmp_path / "whole" / "0.ckpt"
    _, watcher = fit(spikes(*range(21, 27)), tmp_path, epochs=2, ckpt=checkpoint, in_checkpoint=False)
    went = [o.back_to for i in watcher.incidents for a in i.actions for o in a.outcomes if o.back_to is not None]
    assert went and set(went) <= {20}


def test_the_incidents_above_try_the_remedies(tmp_path: Path) -> None:
    tried = set()
    for name, sick in INCIDENTS.items():
        _, watcher = fit(sick, tmp_path / name, epochs=4)
        tried |= {remedy for incident in watcher.incidents for remedy in incident.remedies}
    assert {"skip", "backoff", "rollback"} <= tried


@pytest.mark.parametrize("name", ["in the middle of a back-off", "over two epoch ends", "calm"])
def test_what_lasts_for_a_while_lasts_over_a_checkpoint(name: str, tmp_path: Path) -> None:
    sick = INCIDENTS[name]
    whole, first = fit(sick, tmp_path / "whole", epochs=4, optional=True)
    plain, _ = fit(sick, tmp_path / "plain", epochs=4)
    tried = {remedy for incident in first.incidents for remedy in incident.remedies}
    assert ({"regularize", "augment"} <= tried) is bool(sick)
    assert same(whole, plain) is not bool(sick), "they change a sick run, and a calm one not at all"
    for epoch in (0, 1):
        checkpoint = tmp_path / "whole" / f"{epoch}.ckpt"
        resumed, second = fit(sick, tmp_path / "resumed", epochs=4, ckpt=checkpoint, optional=True)
        assert same(whole, resumed)
        assert same(second.state_dict(), first.state_dict())


def test_a_run_that_ended_in_mid_incident_can_be_prolonged(tmp_path: Path) -> None:
    sick = spikes(*range(37, 43))
    whole, _ = fit(sick, tmp_path / "whole", epochs=4)
    module, watcher = Sick(mlp(norm=True), sick), guard()
    run = trainer(tmp_path, callbacks=[watcher], max_epochs=2)
    run.fit(module, loader(regression(EPOCH)))
    run.save_checkpoint(tmp_path / "end.ckpt")
    resumed, _ = fit(sick, tmp_path / "resumed", epochs=4, ckpt=tmp_path / "end.ckpt")
    assert same(whole, resumed)


def step(guard: Guard, network: nn.Module, optimizer: Any, batch: tuple[Tensor, Tensor]) -> Any:
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(network(batch[0]), batch[1])
    loss.backward()
    report = guard.before_step(optimizer, loss=loss, batch=batch)
    optimizer.step()
    return report


@pytest.mark.parametrize("cut", [1, 9, 21, 22, 24, 27])
def test_a_plain_loop_resumes_at_any_step(cut: int) -> None:
    batches = spoil(regression(50), 20, 21, 26)
    batches[23] = (batches[23][0] * 1e4, batches[23][1])

    def make() -> Any:
        network = mlp(norm=True)
        return network, torch.optim.Adam(network.parameters(), lr=0.01), Guard(network)

    network, optimizer, guard = make()
    saved: Any = None
    for index, batch in enumerate(batches):
        if index == cut:
            saved = through_a_file([network.state_dict(), optimizer.state_dict(), guard.state_dict()])
        step(guard, network, optimizer, batch)
    again, its_optimizer, its_guard = make()
    for part, state in zip((again, its_optimizer, its_guard), saved, strict=True):
        part.load_state_dict(state)
    its_guard.attach(its_optimizer)
    for batch in batches[cut:]:
        step(its_guard, again, its_optimizer, batch)
    assert same(network.state_dict(), again.state_dict())
    assert same(guard.state_dict(), its_guard.state_dict())


def test_a_state_taken_before_all_optimizers_have_stepped_keeps_the_others_memory() -> None:
    def make() -> Any:
        parts = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])
        return Guard(parts), [(part, torch.optim.SGD(part.parameters(), lr=0.01)) for part in parts]

    guard, pairs = make()
    for batch in regression(20):
        for network, optimizer in pairs:
            step(guard, network, optimizer, batch)
    state = through_a_file(guard.state_dict())
    again, pairs = make()
    again.load_state_dict(state)
    step(again, *pairs[0], regression(1)[0])
    assert same(again.state_dict()["lanes"]["1"], state["lanes"]["1"])


def test_detectors_may_change_between_save_and_load() -> None:
    from lightning_gradguard.detectors import Drift, NonFinite, Spike

    network = mlp()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    guard = Guard(network, detectors=[NonFinite(), Spike(), Drift()])
    for batch in regression(60):
        step(guard, network, optimizer, batch)
    fewer = Guard(network, detectors=[Drift(), NonFinite()])
    fewer.load_state_dict(through_a_file(guard.state_dict()))
    track = fewer.attach(optimizer)
    assert same(next(iter(track.detectors)).state_dict(), list(guard.attach(optimizer).detectors)[2].state_dict())


def test_a_state_with_an_armed_probe_can_be_loaded_before_the_module_is_known() -> None:
    network = mlp()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    guard = Guard(network)
    for batch in spoil(regression(20), 19):
        step(guard, network, optimizer, batch)
    state = guard.state_dict()
    assert state["armed"]
    later = Guard()
    later.load_state_dict(state)
    later.bind(network)
    later.attach(optimizer)
    assert later.state_dict()["armed"]
