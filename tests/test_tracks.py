"""The optimizers of a run, and what was learned of those that are not met yet."""

from __future__ import annotations

import torch

from lightning_gradguard import Policy, SnapshotStore
from lightning_gradguard.defaults import default_detectors, default_remedies
from lightning_gradguard.parts import Parts
from lightning_gradguard.tracks import Tracks
from tests.builders import mlp, same, through_a_file


def tracks() -> Tracks:
    return Tracks(Parts(default_detectors(), default_remedies(), Policy(), SnapshotStore()))


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD(mlp().parameters(), lr=0.1)


def test_optimizers_are_known_by_themselves_and_counted_as_they_come() -> None:
    known, first, second = tracks(), sgd(), sgd()
    assert known.of(first) is None and len(known) == 0
    (one, _), (two, _) = known.meet(mlp(), first), known.meet(mlp(), second)
    assert (one.index, two.index) == (0, 1) and known.of(second) is two and list(known) == [one, two]


def test_what_was_learned_waits_for_the_optimizer_of_the_same_number() -> None:
    known = tracks()
    track, learned = known.meet(mlp(), sgd())
    assert learned is None
    track.steps = 7
    other = tracks()
    other.load_state_dict(through_a_file(known.state_dict()))
    assert same(other.state_dict(), known.state_dict()), "it is saved again though nobody was met"
    assert other.meet(mlp(), sgd())[1]["steps"] == 7
    assert other.meet(mlp(), sgd())[1] is None


def test_leaving_keeps_what_was_learned_and_forgetting_does_not() -> None:
    known, optimizer = tracks(), sgd()
    known.meet(mlp(), optimizer)[0].steps = 7
    known.leave()
    assert len(known) == 0 and known.of(optimizer) is None
    assert known.meet(mlp(), optimizer)[1]["steps"] == 7
    known.leave()
    known.forget()
    assert known.meet(mlp(), optimizer)[1] is None
