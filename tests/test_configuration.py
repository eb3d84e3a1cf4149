"""A tour of the configuration: what is wrong is said at construction in one sentence, what is right shows itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_gradguard
from lightning_gradguard import (
    GradGuard,
    Guard,
    Policy,
    SnapshotStore,
    __version__,
    cli,
    default_detectors,
    default_remedies,
)
from lightning_gradguard.detectors import Detector, LossSpike, Spike
from lightning_gradguard.diagnostics import Journal, Sink
from lightning_gradguard.remedies import Clip, LearningRateBackoff, Skip
from tests.builders import Net, loader, mlp, regression, spoil, trainer


class Nameless(Detector):
    """A user's detector that has no name."""

    def judge(self, statistics: Any, baseline: Any) -> None:
        """Find nothing."""


class Collects(Sink):
    """A user's sink."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []

    def incident(self, incident: Any, event: Any) -> None:
        """Keep its step."""
        self.told.append((incident.step, event))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"detectors": Spike()}, r"detectors must be a list of instances of Detector, got Spike\(\)"),
        ({"detectors": [Spike]}, "detectors must hold instances of Detector, got <class"),
        (
            {"detectors": [Nameless()]},
            "detectors must each have a name, a string, as a class attribute; Nameless has ''",
        ),
        ({"detectors": [Spike(), Spike()]}, "detectors must not hold two of the same name, got 'spike' twice"),
        ({"remedies": "clip"}, "remedies must be a list of instances of Remedy, got 'clip'"),
        ({"remedies": ["clip"]}, "remedies must hold instances of Remedy, got 'clip'"),
        ({"policy": "gentle"}, "policy must be an instance of Policy, got 'gentle'"),
        ({"snapshots": 100}, "snapshots must be an instance of SnapshotStore, got 100"),
        ({"journal": "runs"}, "journal must be True or False, got 'runs'"),
        ({"histograms": "yes"}, "histograms must be True or False, got 'yes'"),
        ({"progress_bar": 1}, "progress_bar must be True or False, got 1"),
        ({"exclude": "drift"}, "exclude must be a list of patterns, got 'drift'"),
        (
            {"exclude": ["drfit"]},
            "exclude must match names of detectors \\(.*, drift.*\\) or of remedies \\(.*, skip.*\\), got 'drfit'$",
        ),
        (
            {"exclude": ["sudden"]},
            "exclude .*, got 'sudden', which is a form of trouble and not the name of a detector$",
        ),
        ({"exclude": ["model.head"]}, "exclude .*, got 'model.head'; layers are named to Reinitialize"),
        ({"exclude": [Spike()]}, "exclude .*, got Spike\\(\\), whose name is 'spike'$"),
        ({"sinks": Collects()}, "sinks must be a list of instances of Sink, got <"),
        ({"on_incident": "mail"}, "on_incident must be a function, got 'mail'"),
        ({"mode": "Guard"}, "mode must be one of 'guard', 'halt', 'watch', got 'Guard'"),
        ({"log_every": 0}, "log_every must be a whole number >= 1, got 0"),
        ({"on_exhausted": None}, "on_exhausted must be one of 'stop', 'raise', 'continue', got None"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}") as error:
        GradGuard(**options)
    assert "\n" not in str(error.value)


def test_parts_show_themselves_as_they_are_constructed() -> None:
    assert repr(Spike(factor=20.0)) == "Spike(factor=20.0)" and repr(Spike()) == "Spike()"
    assert repr(Clip(algorithm="value")) == "Clip(algorithm='value')" and repr(LearningRateBackoff()).endswith(
        "Backoff()"
    )
    assert repr(Policy(patience=5)) == "Policy(patience=5)"
    assert repr(SnapshotStore(every=7)) == "SnapshotStore(every=7)"
    guard = GradGuard(detectors=[Spike(factor=9.0)], remedies=[Skip()], mode="watch")
    assert repr(guard) == (
        "GradGuard(mode='watch', detectors=['spike'], remedies=['skip'], policy=Policy(), snapshots=SnapshotStore())"
    )


def test_leaving_one_out_is_a_line() -> None:
    guard = Guard(exclude=["drift", "*spike", "re*"])
    assert [d.name for d in guard._parts.detectors] == [
        d.name for d in default_detectors() if d.name not in ("drift", "spike", "loss-spike")
    ]
    assert {r.name for r in default_remedies()} - {r.name for r in guard._parts.remedies} == {"reinitialize"}


@pytest.mark.parametrize("options", [{"detectors": []}, {"detectors": [Spike()], "exclude": ["spike"]}])
def test_who_leaves_every_detector_out_is_told_so_before_training(options: dict[str, Any]) -> None:
    with pytest.warns(RuntimeWarning, match="no detector is left: nothing is watched for"):
        Guard(**options)


@pytest.mark.parametrize("word", ["loss-leap", "LossSpike", "loss-spike"])
def test_a_detector_is_left_out_by_the_name_of_its_class_too(word: str) -> None:
    left = {type(detector) for detector in Guard(exclude=[word])._parts.detectors}
    assert left == {type(detector) for detector in default_detectors()} - {LossSpike}


def test_sinks_and_a_function_of_ones_own_are_told_besides_in_every_run(tmp_path: Path) -> None:
    given, added, heard = Collects(), Collects(), list[tuple[int, str]]()
    guard = GradGuard(sinks=[given], on_incident=lambda incident, event: heard.append((incident.step, event)))
    guard.guard.sinks.append(added)
    for _ in range(2):
        trainer(tmp_path, callbacks=[guard]).fit(Net(mlp(), torch.optim.SGD), loader(spoil(regression(50), 20)))
    assert given.told == added.told == heard
    assert heard[:2] == [(20, "opened"), (20, "closed")] and len(heard) == 4
    assert (tmp_path / "gradguard.jsonl").exists(), "the defaults are there too"


def test_a_function_that_fails_costs_no_run(tmp_path: Path) -> None:
    def fails(incident: Any, event: Any) -> None:
        raise ConnectionError("no network")

    run = trainer(tmp_path, callbacks=[GradGuard(on_incident=fails)])
    with pytest.warns(RuntimeWarning, match="Listener failed and is switched off.*no network"):
        run.fit(Net(mlp(), torch.optim.SGD), loader(spoil(regression(30), 20)))
    assert run.global_step == 30


def test_the_command_line_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"lightning-gradguard {__version__}\n"


def test_what_is_no_module_and_no_path_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^module must be an instance of Module, got 3$"):
        Guard(3)  # type: ignore[arg-type]
    for call, name in ((Journal, "directory"), (lightning_gradguard.show, "run_dir")):
        with pytest.raises(ValueError, match=f"^{name} must be a path, got 3$"):
            call(3)  # type: ignore[arg-type, operator]
