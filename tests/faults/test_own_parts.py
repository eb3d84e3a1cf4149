"""A user's own detector, remedy or sink that fails: a clear error that names it, or one warning."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_gradguard import GradGuard
from lightning_gradguard.defaults import default_detectors, default_remedies
from lightning_gradguard.detectors import Detector
from lightning_gradguard.diagnostics import Sink
from lightning_gradguard.errors import GuardError
from lightning_gradguard.records import Outcome, Verdict
from lightning_gradguard.remedies import Remedy, RemedyContext
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, through_a_file, trainer
from tests.faults.victims import ADAMW

BAD = 30


class Broken:
    """Raise in one method, or return something strange from it; all others do nothing."""

    def __init__(self, *, method: str = "", returns: Any = None) -> None:
        self.method, self.returns = method, returns

    def at(self, method: str, usual: Any = None) -> Any:
        if method != self.method:
            return usual
        if self.returns is None:
            raise ZeroDivisionError("a mistake of the user's own")
        return self.returns


class OwnDetector(Broken, Detector):
    name = "users-own"

    def judge(self, statistics: Any, baseline: Any) -> Verdict | None:
        return self.at("judge")

    def accept(self, statistics: Any, baseline: Any) -> None:
        self.at("accept")

    def reject(self, statistics: Any) -> None:
        self.at("reject")

    def limit(self, baseline: Any) -> float:
        return self.at("limit", math.inf)

    def state_dict(self) -> dict[str, Any]:
        return self.at("state_dict", {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at("load_state_dict")


class OwnRemedy(Broken, Remedy):
    # In the place of the one that answers the bad batch; what it would do goes on until it fails.
    name = "skip"

    def check(self, module: Any) -> None:
        self.at("check")

    def apply(self, context: RemedyContext) -> Outcome:
        found = self.at("apply", Outcome("skip", True, "skipped", (), 0.0))
        for p in context.parameters.values():
            p.grad = None
        return found

    def before_update(self, context: RemedyContext) -> None:
        self.at("before_update")

    def after_update(self) -> None:
        self.at("after_update")

    def state_dict(self) -> dict[str, Any]:
        return self.at("state_dict", {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at("load_state_dict")


class OwnSink(Broken, Sink):
    def window(self, *_: Any) -> None:
        self.at("window")

    def incident(self, *_: Any) -> None:
        self.at("incident")

    def notice(self, *_: Any) -> None:
        self.at("notice")

    def epoch(self) -> None:
        self.at("epoch")

    def close(self) -> None:
        self.at("close")


def methods(kind: type, contract: type) -> list[str]:
    return [
        name
        for name in vars(contract)
        if not name.startswith("_") and callable(getattr(contract, name)) and name in vars(kind)
    ]


class Round(Callback):
    """Save the guard's state in mid-run, and load it into the same guard."""

    def __init__(self, guard: GradGuard) -> None:
        self.guard = guard

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 10:
            self.guard.load_state_dict(through_a_file(self.guard.state_dict()))


class Joins(Callback):
    """Add a sink to those of the Trainer."""

    def __init__(self, guard: GradGuard, sink: Sink) -> None:
        self.guard, self.sink = guard, sink

    def on_train_start(self, *_: Any) -> None:
        self.guard.guard.sinks.append(self.sink)


def fit(
    root: Path, guard: GradGuard | None, *callbacks: Callback, bad: bool = True
) -> tuple[dict[str, Any], list[str]]:
    batches = regression(60)
    batches = spoil(batches, BAD) if bad else [b for i, b in enumerate(batches) if i != BAD]
    run = trainer(root, callbacks=[*([guard] if guard else []), *callbacks])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(Net(mlp(norm=True), ADAMW), loader(batches))
    return frozen_copy(run), [str(w.message) for w in caught if "GradGuard" in str(w.message)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fit(tmp_path_factory.mktemp("plain"), None, bad=False)[0]


CASES: list[Any] = [
    *((OwnDetector, {"method": m}) for m in methods(OwnDetector, Detector)),
    *((OwnRemedy, {"method": m}) for m in methods(OwnRemedy, Remedy)),
    (OwnDetector, {"method": "judge", "returns": True}),
    (OwnDetector, {"method": "limit", "returns": "none"}),
    (OwnDetector, {"method": "state_dict", "returns": 3}),
    (OwnRemedy, {"method": "apply", "returns": "done"}),
]


def guard_with(kind: Any, options: dict[str, Any], on_error: Any) -> GradGuard:
    part = kind(**options)
    detectors, remedies = default_detectors(), default_remedies()
    if isinstance(part, Detector):
        detectors.insert(0, part)
    else:
        remedies = [part if r.name == part.name else r for r in remedies]
    return GradGuard(detectors=detectors, remedies=remedies, on_error=on_error, journal=False)


def test_every_method_of_the_contracts_is_tried() -> None:
    assert len(methods(OwnDetector, Detector)) == 6 and len(methods(OwnRemedy, Remedy)) == 6
    assert len(methods(OwnSink, Sink)) == 5


@pytest.mark.fault("an exception in a user's own detector or remedy")
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_an_error_names_the_part_that_failed(kind: Any, options: Any, tmp_path: Path) -> None:
    guard = guard_with(kind, options, "raise")
    names = "detector 'users-own'" if kind is OwnDetector else "remedy 'skip'"
    with pytest.raises(GuardError, match=names) as error:
        fit(tmp_path, guard, Round(guard))
    assert "returns" in options or "a mistake of the user's own" in str(error.value)


@pytest.mark.fault("the same under on_error='warn'")
# A configuration that does not fit the module is told before training, not isolated.
@pytest.mark.parametrize(("kind", "options"), [c for c in CASES if c[1]["method"] != "check"], ids=str)
def test_an_isolated_part_is_left_out_and_the_rest_goes_on(
    kind: Any, options: Any, undisturbed: Any, tmp_path: Path
) -> None:
    guard = guard_with(kind, options, "warn")
    end, warned = fit(tmp_path, guard, Round(guard))
    assert all(bool(value.isfinite().all()) for value in end["weights"].values()) or kind is OwnRemedy
    if kind is OwnDetector:
        assert same(end, undisturbed)
        assert [i.step for i in guard.incidents] == [BAD]
    assert sum("users-own" in w or "'skip'" in w for w in warned) == 1
    assert not torch.is_anomaly_enabled()


@pytest.mark.fault("an exception in a user's own sink")
@pytest.mark.parametrize("method", methods(OwnSink, Sink))
def test_a_sink_that_fails_costs_one_warning_that_names_it(method: str, undisturbed: Any, tmp_path: Path) -> None:
    guard = GradGuard(journal=False, log_every=5)
    end, warned = fit(tmp_path, guard, Joins(guard, OwnSink(method=method)))
    assert same(end, undisturbed)
    # Nothing was to be noticed in this run.
    assert len(warned) == (method != "notice") and all("OwnSink" in w and "a mistake" in w for w in warned)
