"""What every detector, remedy and sink promises. They are found by walking the package: a new one is held to it too."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import lightning_gradguard
from lightning_gradguard import GradGuard, Guard, Policy, SnapshotStore
from lightning_gradguard.detectors import Detector
from lightning_gradguard.diagnostics import Sink
from lightning_gradguard.history.baseline import Baseline
from lightning_gradguard.records import Action, Decision, Incident, Outcome, Suspect, Verdict, Window
from lightning_gradguard.remedies import Remedy
from tests.builders import context_for, same, statistics, taught, through_a_file


def modules() -> Iterator[types.ModuleType]:
    for found in pkgutil.walk_packages(lightning_gradguard.__path__, "lightning_gradguard."):
        if not found.name.startswith("lightning_gradguard.integrations."):  # those need what an extra brings
            yield importlib.import_module(found.name)


def discovered(base: type) -> list[Any]:
    classes = {value for module in modules() for value in vars(module).values() if isinstance(value, type)}
    mine = [c for c in classes if base in c.__mro__ and not inspect.isabstract(c) and c is not base]
    return sorted(mine, key=lambda c: c.__name__)


class Writer:
    """Stands in for a SummaryWriter."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: Writer()


DETECTORS, REMEDIES, SINKS = discovered(Detector), discovered(Remedy), discovered(Sink)
# Sinks that cannot be built from nothing, and the least that they need.
NEEDED: dict[str, Callable[[Path], tuple[Any, ...]]] = {
    "AlertSink": lambda root: (lambda **told: None,),
    "Journal": lambda root: (root,),
    "Listener": lambda root: (lambda incident, event: None,),
    "MetricsSink": lambda root: (lambda metrics, step: None,),
    "TensorBoardSink": lambda root: (Writer(),),
}


def build(kind: Any, root: Path | None = None) -> Any:
    return kind(*NEEDED[kind.__name__](root or Path())) if kind.__name__ in NEEDED else kind()


def test_the_walk_finds_what_the_guard_uses() -> None:
    guard = Guard()
    assert {type(d) for d in guard._parts.detectors} <= set(DETECTORS)
    assert {type(r) for r in guard._parts.remedies} <= set(REMEDIES)
    assert len(SINKS) >= 4


@pytest.mark.parametrize("kind", [*DETECTORS, *REMEDIES], ids=lambda k: k.__name__)
def test_each_has_a_name_of_its_own_and_takes_keywords_only(kind: Any) -> None:
    assert sum(other.name == kind.name for other in [*DETECTORS, *REMEDIES]) == 1
    parameters = list(inspect.signature(kind).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)


@pytest.mark.parametrize("kind", [*DETECTORS, *REMEDIES], ids=lambda k: k.__name__)
def test_state_round_trips_through_a_safe_file(kind: Any) -> None:
    first, second = build(kind), build(kind)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert same(first.state_dict(), second.state_dict())
    assert vars(first).keys() == vars(second).keys()


# -- arguments


def numeric(kind: Any) -> Iterator[tuple[str, bool, bool]]:
    """Name each numeric parameter, whether it is whole, and whether it may be None."""
    hints = typing.get_type_hints(kind.__init__)
    for name in inspect.signature(kind).parameters:
        options = [*typing.get_args(hints[name]), hints[name]]
        if int in options or float in options:
            yield name, float not in options, type(None) in options


CONFIGURED = [*DETECTORS, *REMEDIES, *SINKS, Policy, SnapshotStore, Guard, GradGuard]
PARAMETERS = [(kind, *found) for kind in CONFIGURED for found in numeric(kind)]


@pytest.mark.parametrize(("kind", "name", "whole", "optional"), PARAMETERS, ids=str)
def test_numbers_out_of_range_are_refused_by_name(kind: Any, name: str, whole: bool, optional: bool) -> None:
    needed = NEEDED[kind.__name__](Path()) if kind.__name__ in NEEDED else ()
    wrong: list[Any] = [math.nan, "7", [1]] + [1.5] * whole + [None] * (not optional) + [-1] * (name != "seed")
    for value in wrong:
        with pytest.raises(ValueError, match="must be") as error:
            kind(*needed, **{name: value})
        message = str(error.value)
        assert message.startswith(name), message
        assert repr(value) in message, message


def test_there_are_parameters_to_refuse() -> None:
    assert len(PARAMETERS) > 15


@pytest.mark.parametrize("kind", [Guard, GradGuard])
@pytest.mark.parametrize("name", ["mode", "on_exhausted", "on_error"])
def test_words_out_of_range_are_refused_by_name(kind: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be one of .*, got 'sometimes'"):
        kind(**{name: "sometimes"})


@pytest.mark.parametrize("name", ["detectors", "remedies"])
def test_lists_of_strangers_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must hold instances of .*, got 3"):
        GradGuard(**{name: [3]})
    kind = {"detectors": DETECTORS, "remedies": REMEDIES}[name][0]
    with pytest.raises(ValueError, match=rf"^{name} must not hold two"):
        GradGuard(**{name: [kind(), kind()]})


# -- detectors

NORMS = st.one_of(st.floats(1e-40, 1e150), st.sampled_from([0.0, math.nan, math.inf]), st.just(1.0))
LOSSES = st.one_of(st.none(), st.floats(allow_nan=True, width=32), st.just(1.0))
STEPS = st.lists(st.tuples(NORMS, LOSSES, st.sampled_from(["accept", "reject", "accept"])), max_size=120)


def feed(detector: Detector, steps: list[Any], baseline: Baseline) -> list[Verdict | None]:
    verdicts = []
    for index, (norm, loss, what) in enumerate(steps):
        seen = statistics(norm, step=index, loss=loss)
        before = copy.deepcopy((detector.state_dict(), baseline.state_dict()))
        verdict = detector.judge(seen, baseline)
        assert same((detector.state_dict(), baseline.state_dict()), before), "judging must teach nothing"
        verdicts.append(verdict)
        if what == "accept" and seen.finite:
            baseline.accept(norm, loss)
            detector.accept(seen, baseline)
        else:
            detector.reject(seen)
        assert detector.limit(baseline) > 0
    return verdicts


def told(verdicts: list[Verdict | None]) -> list[str]:
    return [repr(verdict) for verdict in verdicts]


@pytest.mark.parametrize("kind", DETECTORS, ids=lambda k: k.__name__)
@given(steps=STEPS, cut=st.integers(0, 120))
def test_a_detector_never_raises_and_resumes_at_any_point(kind: Any, steps: list[Any], cut: int) -> None:
    whole = feed(kind(), steps, Baseline())
    first, baseline = kind(), Baseline()
    before = feed(first, steps[:cut], baseline)
    second, known = kind(), Baseline()
    second.load_state_dict(through_a_file(first.state_dict()))
    known.load_state_dict(through_a_file(baseline.state_dict()))
    after = feed(second, [(*s,) for s in steps[cut:]], known)
    assert told(whole) == told(before + after)


@pytest.mark.parametrize("kind", DETECTORS, ids=lambda k: k.__name__)
@given(steps=STEPS)
def test_a_detector_never_learns_from_what_was_rejected(kind: Any, steps: list[Any]) -> None:
    kept = [s for s in steps if s[2] == "accept" and math.isfinite(s[0])]
    every = feed(detector := kind(), steps, baseline := Baseline())
    some = feed(other := kind(), kept, known := Baseline())
    assert same((detector.state_dict(), baseline.state_dict()), (other.state_dict(), known.state_dict()))
    judged = [v for v, s in zip(every, steps, strict=True) if s[2] == "accept" and math.isfinite(s[0])]
    assert told(judged) == told(some)


@pytest.mark.parametrize("kind", DETECTORS, ids=lambda k: k.__name__)
def test_a_verdict_names_its_detector_and_can_be_written(kind: Any) -> None:
    steps: list[Any] = [(1.0, 1.0, "accept")] * 150 + [(1e9, 1e9, "accept")] * 50
    steps += [(math.nan, math.nan, "reject")] * 30 + [(1e-12, 1.0, "accept")] * 200
    spoken = [v for v in feed(kind(), steps, Baseline()) if v]
    # To a cold start a first NaN must be shown.
    spoken += [v for v in feed(kind(), [(math.nan, 1.0, "reject")], Baseline()) if v]
    # What is wrong with an optimizer's state, and how large updates are, is not in the gradients.
    spoken += [v for v in [kind().judge(statistics(1.0, spoilt="exp_avg is not finite"), taught([1.0] * 20))] if v]
    overshot = taught([1.0] * 40, [2.0] * 9 + [9.0] * 31)
    overshot.updates.ratio = 1.0
    spoken += [v for v in [kind().judge(statistics(1.0, loss=9.0), overshot)] if v]
    assert spoken and all(v.detector == kind.name and v.reason and v.excess > 0 for v in spoken)


# -- remedies


class Odd(nn.Module):
    """Every kind of gradient: dense, sparse, complex, empty, frozen, none, double."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.embedding = nn.Linear(3, 2), nn.Embedding(5, 2, sparse=True)
        self.norm, self.idle = nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.wide = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, scale: float) -> torch.Tensor:
        x = self.norm(self.linear(torch.ones(4, 3))) + self.embedding(torch.tensor([1, 1, 2, 3]))
        loss = (x.sum() + self.phase.abs().sum() + self.empty.sum() + self.wide.float().sum()) * scale
        return typing.cast(torch.Tensor, loss)


@pytest.mark.parametrize("scale", [1.0, 0.0, 1e20, math.nan, math.inf])
@pytest.mark.parametrize("kind", REMEDIES, ids=lambda k: k.__name__)
def test_a_remedy_survives_every_kind_of_gradient(kind: Any, scale: float) -> None:
    module = Odd()
    optimizer = torch.optim.SGD(list(module.parameters()), lr=0.1)
    snapshots = SnapshotStore()
    snapshots.take(0, dict(module.named_parameters()), dict(module.named_buffers()), optimizer)
    module(scale).backward()
    decision = Decision((kind.name,), "for a test")
    blame = (
        Suspect("batch", 1.0, "x"),
        Suspect("linear", 1.0, "x"),
        Suspect("embedding", 1.0, "x"),
        Suspect("gone", 1.0, "x"),
    )
    context = context_for(module, optimizer, decision=decision, snapshots=snapshots, blame=blame, limit=2.0, target=1.0)
    remedy = kind()
    for _ in range(3):
        outcome = remedy.apply(context)
        assert isinstance(outcome, Outcome) and outcome.remedy == kind.name and outcome.detail
        remedy.before_update(context)
        remedy.after_update()
        assert optimizer.param_groups[0]["lr"] == 0.1
    again = kind()
    again.load_state_dict(through_a_file(remedy.state_dict()))
    assert same(again.state_dict(), remedy.state_dict())
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("kind", REMEDIES, ids=lambda k: k.__name__)
def test_a_remedy_survives_a_module_without_any_gradient(kind: Any) -> None:
    module = nn.Linear(2, 2)
    assert kind().apply(context_for(module, target=1.0)).remedy == kind.name


# -- sinks


def window(**changed: Any) -> Window:
    """A window in which everything that can be missing or broken is."""
    values: dict[str, Any] = dict.fromkeys(Window.__dataclass_fields__, 0)
    values |= {"norm_peak": math.nan, "norm_before": math.inf, "norm_after": 0.0, "limit": math.nan}
    values |= {"typical": math.nan, "witnessed": ()}
    values |= {
        "coefficient": 0.0,
        "lr_factor": 1.0,
        "loss": None,
        "layers": (),
        "layer_peaks": np.zeros(0),
        "witnessed": (),
    }
    return Window(**{**values, "layer_nonfinite": np.zeros(0), **changed})


@pytest.mark.parametrize("kind", SINKS, ids=lambda k: k.__name__)
def test_a_sink_takes_whatever_a_broken_run_has_to_tell(kind: Any, tmp_path: Path) -> None:
    sink = build(kind, tmp_path)
    sink.window(window())
    layers = {"layers": ("a", "b"), "layer_peaks": np.array([0.0, 1e300]), "layer_nonfinite": np.ones(2)}
    sink.window(window(tick=1, step=1, loss=math.nan, **layers))
    verdict = Verdict("non-finite", "x", math.nan, math.inf, "why | `not`\n<b>")
    action = Action(3, verdict, Decision((), "nothing"), (Outcome("skip", True, "done"),))
    incident = Incident(1, 0, 3, "non-finite", (action,), (Suspect("batch", math.inf, "bad"),), None, 1)
    for event in ("opened", "acted", "closed"):
        sink.incident(incident, event)
    sink.incident(Incident(2, 0, 4, "sudden"), "opened")
    sink.notice(5, "a sentence")
    sink.close()
