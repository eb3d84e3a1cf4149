"""Copies of the state, and the way back to them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lightning_gradguard import SnapshotStore
from lightning_gradguard.defaults import default_remedies
from lightning_gradguard.diagnostics import Sink
from lightning_gradguard.policy import Trial
from lightning_gradguard.remedies import LearningRateBackoff
from lightning_gradguard.step.copying import captured, copy, expect_as_then, make_up, put_back, worth_copying
from tests.builders import same
from tests.step.loop import Loop


def test_where_nothing_reads_copies_none_are_taken() -> None:
    loop = Loop(snapshots=SnapshotStore(every=1))
    found = loop.measured().statistics
    assert worth_copying(loop.track, 1000, found)
    loop.track.remedies.adopt([r for r in default_remedies() if not r.uses_snapshots])
    assert not worth_copying(loop.track, 1000, found)


def test_going_back_takes_weights_and_expectations_back() -> None:
    loop = Loop()
    kept, weights = captured(loop.run, loop.track), {k: v.clone() for k, v in loop.network.state_dict().items()}
    norms = loop.track.baseline.state_dict()
    for _ in range(10):
        loop.step()
    assert not same(weights, dict(loop.network.state_dict()))
    assert kept is not None
    put_back(loop.track, kept)
    assert same(weights, dict(loop.network.state_dict())) and same(norms, loop.track.baseline.state_dict())


def test_what_is_known_of_rates_outlasts_going_back() -> None:
    loop = Loop()
    kept = captured(loop.run, loop.track)
    assert kept is not None
    loop.track.baseline.updates.ratio, loop.track.baseline.updates.convicted = 3.0, True
    expect_as_then(loop.track, kept, look=False)
    assert loop.track.baseline.updates.ratio == 3.0 and loop.track.baseline.updates.convicted


def test_a_store_that_keeps_none_copies_nothing() -> None:
    loop = Loop()
    loop.track.snapshots.keep = 0
    before = loop.track.snapshots.latest
    with torch.no_grad():
        next(loop.network.parameters()).add_(1.0)
    copy(loop.run, loop.track, loop.track.steps)
    assert loop.track.snapshots.latest is before


def test_a_rate_that_climbs_is_followed_by_copies_of_the_best() -> None:
    loop = Loop(steps=100)
    found, store = loop.measured().statistics, loop.track.snapshots
    store.schedule.due, store.schedule.taken = 10_000, 90
    losses = loop.track.baseline.losses
    best = dataclasses.replace(found, loss=losses.best_level)
    while not losses.at_best:
        losses.accept(losses.best_level)
    assert not worth_copying(loop.track, 101, best)
    loop.track.baseline.updates.convicted = True
    backoff = loop.track.remedies["backoff"]
    assert isinstance(backoff, LearningRateBackoff)
    backoff.bracket.convict(1.0)
    assert worth_copying(loop.track, 101, best)
    assert not worth_copying(loop.track, 99, best), "ten steps lie between two"
    worse = dataclasses.replace(found, loss=2.0 * losses.best_level + 1.0)
    assert not worth_copying(loop.track, 101, worse)


@pytest.mark.parametrize("kept", [True, False])
def test_a_trial_that_is_resumed_without_its_copy_says_so_once(kept: bool) -> None:
    said: list[tuple[int, str]] = []

    class Listens(Sink):
        def notice(self, step: int, message: str) -> None:
            said.append((step, message))

    loop = Loop()
    loop.run.recorder.sinks.append(Listens())
    treatment, store = loop.track.treatment, loop.track.snapshots
    treatment.trial = Trial("learning rate", ("rollback", "backoff"), loop.track.steps, before=[1.0], trouble=[9.0])
    treatment.untreated = captured(loop.run, loop.track)
    state = treatment.state_dict()
    treatment.load_state_dict(state, ())
    make_up(loop.run, loop.track)
    assert not said, "all is there"
    state["treating"]["untreated"] = []
    treatment.load_state_dict(state, ())
    if not kept:
        store.load_state_dict({**store.state_dict(), "kept": []})
    make_up(loop.run, loop.track)
    make_up(loop.run, loop.track)
    ((step, message),) = said
    assert step == loop.track.number and "its weights cannot be taken back" in message
    assert ("its own stand in" in message) is not kept and not store.missing
    store.keep = 0
    treatment.load_state_dict(state, ())
    make_up(loop.run, loop.track)
    assert len(said) == 1, "who switched copies off knows"
