"""Decision traces: what went into detectors and policy at each step of many runs, and what came out.

``python -m benchmarks.traces --record`` does the runs and writes the traces; ``--compare`` feeds what they hold to the
package as it is now, without training anything, and prints where it comes to other verdicts and decisions.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lightning_gradguard import GradGuard
from lightning_gradguard.attribution.signal import Signal
from lightning_gradguard.defaults import default_detectors, default_remedies
from lightning_gradguard.diagnostics.recorder import Recorder
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.parts import Parts
from lightning_gradguard.policy import Policy
from lightning_gradguard.records import Decision, GradientStatistics, Outcome, Suspect, Verdict
from lightning_gradguard.remedies import Initialize, Remedy, RemedyContext, Rollback
from lightning_gradguard.snapshots import SnapshotStore
from lightning_gradguard.snapshots.norm_buffers import RunningStatistics
from lightning_gradguard.statistics.update_ratio import build_up
from lightning_gradguard.step import Run, Step, StepInputs, StepReport, judging, learning, treating
from lightning_gradguard.step.measuring import context_of

FILE = Path(__file__).parents[1] / "tests" / "fixtures" / "traces.jsonl.gz"
LONGEST, HEALTHY = 600, 10
"""Steps of the longest runs that are recorded, and number of healthy runs of the field trial among them."""

HEARD = judging.heard

Row = dict[str, Any]
"""One step. Into the decision go the fields of the statistics, ``nonfinite`` as a count, and

- ``build_up``: how many times larger the predicted update becomes as momentum fills;
- ``made``: the rate that the update was made with, where a remedy had lowered it;
- ``fresh``: True where parameters were added or taken away, so that what was learned was forgotten;
- ``untouched`` and ``drawn``, in the first row: whether nobody had trained the module, and whether its weights looked
  like draws;
- ``signal``: what became of the batch on its way, as ``[source, growth, variation]``, where its layers were measured;
- ``suspects``: for each question that was asked, the suspects as ``[layer, score, broken, part]``;
- ``done``: what remedies did, as ``[remedy, applied, coefficient]``.

Out of it come ``heard``, all verdicts of the detectors, and ``verdict``, the one acted on, as ``[form, detector, alarm,
examine]``, and ``decision``, as ``[remedies, cause]``. What is None, False or empty is left out.
"""


@dataclass(frozen=True, slots=True)
class Trace:
    """The steps of one optimizer of one run."""

    run: str
    optimizer: int
    steps: list[Row]


# -- the adapter: all that knows how the package comes to a decision ---------------------------------------------------

PLAIN = [f.name for f in dataclasses.fields(GradientStatistics) if f.name not in ("names", "norms", "nonfinite")]


def outputs(heard: Iterable[Verdict], verdict: Verdict | None, decision: Decision | None) -> Row:
    """Reduce what came out of a step to what is compared."""

    def flat(v: Verdict) -> list[Any]:
        return [v.form, v.detector, v.alarm, v.examine]

    return {
        "heard": [flat(v) for v in heard],
        "verdict": flat(verdict) if verdict else None,
        "decision": [list(decision.remedies), decision.cause] if decision else None,
    }


def record(run: Callable[[], object]) -> dict[int, list[Row]]:
    """Do a guarded run, and return the steps of each of its optimizers."""
    traces: dict[int, list[Row]] = {}
    groups: dict[OptimizerTrack, Any] = {}
    now: Row = {}
    step, judge, rate, suspects, agreed, far = (
        Step.go_on,
        judging.heard,
        OptimizerTrack.rate,
        judging.suspects,
        judging.agreed,
        treating.moved_too_far,
    )

    def listen(track: OptimizerTrack, statistics: GradientStatistics) -> list[Verdict]:
        now["heard"] = judge(track, statistics)
        return now["heard"]

    def note_rate(track: OptimizerTrack) -> float | None:
        now["made"] = rate(track)
        return now["made"]

    def ask_all(*args: Any, ask: str = "all", **known: Any) -> tuple[Suspect, ...]:
        # All that may be asked, since another version may ask something else.
        found = {each: suspects(*args, ask=each, **known) for each in ("batch", "changes", "all")}
        now["suspects"] = {k: [[b.layer, b.score, b.broken, b.part] for b in v] for k, v in found.items()}
        return found[ask]

    def note_move(track: OptimizerTrack) -> bool:
        now["moved_too_far"] = found = far(track)
        return found

    def note_signal(*args: Any) -> Signal:
        found = agreed(*args)
        now["signal"] = [found.source, found.growth, found.variation]
        return found

    def note_step(self: Step, track: OptimizerTrack, context: RemedyContext, *args: Any) -> StepReport:
        now.clear()
        report, s = step(self, track, context, *args), context.statistics
        row = {key: getattr(s, key) for key in PLAIN}
        row |= {"nonfinite": len(s.nonfinite) or None, "suspects": now.get("suspects"), "signal": now.get("signal")}
        if track.steps == 1:
            row |= {"untouched": track.untouched, "drawn": track.fresh}
        row["made"] = made if (made := now.get("made")) != s.rate else None
        row["moved_too_far"] = now.get("moved_too_far")
        row["build_up"] = build_up(track.optimizer) if s.update_ratio is not None else None
        row["fresh"] = groups.setdefault(track, track.trained.groups) != track.trained.groups
        row["done"] = [[o.remedy, o.applied, o.coefficient] for o in report.outcomes]
        row |= outputs(now.get("heard", []), report.verdict, report.decision)
        groups[track] = track.trained.groups
        traces.setdefault(track.index, []).append(
            {k: v for k, v in row.items() if v is not None and v is not False and v != []}
        )
        return report

    with (
        patch.object(Step, "go_on", note_step),
        patch.object(judging, "heard", listen),
        patch.object(OptimizerTrack, "rate", note_rate),
        patch.object(judging, "suspects", ask_all),
        patch.object(judging, "agreed", note_signal),
        patch.object(treating, "moved_too_far", note_move),
    ):
        run()
    return traces


class Echo(Remedy):
    """Stand in for a remedy, and say that it did what it did when the trace was recorded."""

    name: ClassVar[str] = ""
    uses_snapshots: ClassVar[bool] = True

    def __init__(self, name: str, replay: Replay) -> None:
        self.name = name  # type: ignore[misc]
        self.replay = replay

    def apply(self, context: RemedyContext) -> Outcome:
        """Return the recorded outcome; one that was not called for then is taken to succeed."""
        done = {name: rest for name, *rest in self.replay.row.get("done", ())}
        applied, coefficient = done.get(self.name, (True, 0.0 if self.name == "skip" else 1.0))
        return Outcome(self.name, applied, "", (), coefficient)


class Draws(Initialize):
    """Stand in for the initialisation of a whole network, which uses up the next batch as well."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.echo, self.pending = Echo(self.name, replay), False

    @property
    def at_work(self) -> bool:
        """Whether the next batch is used to measure."""
        return self.pending

    def apply(self, context: RemedyContext) -> Outcome:
        """Return the recorded outcome."""
        outcome = self.echo.apply(context)
        self.pending = outcome.applied
        return outcome

    def finish(self, mean: Any = None) -> str:
        """Be done with the batch."""
        self.pending = False
        return ""


class Replay:
    """Fresh detectors, baseline and policy, to which the package's own flow feeds recorded steps.

    What the flow would learn from the module is played back: statistics, suspects, and what remedies did.
    """

    def __init__(self) -> None:
        self.row: Row = {}
        self.heard: list[Verdict] = []
        module = nn.Module()
        self.run = Run("guard", Recorder((), 10**9))
        self.run.module, self.run.running = module, RunningStatistics(module)
        self.host = Step(self.run)
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
        parts = Parts(default_detectors(), (), Policy(), SnapshotStore())
        self.track = track = OptimizerTrack(0, module, optimizer, parts)
        # A rollback touches only the snapshots, which hold what was known then.
        own = {"rollback": Rollback(), "initialize": Draws(self)}
        track.remedies.adopt([own.get(r.name) or Echo(r.name, self) for r in default_remedies()])
        track.rate = lambda: self.row.get("made", self.row.get("rate"))  # type: ignore[method-assign]
        track.refresh()

    def step(self, row: Row) -> Row:
        """Return what comes out of a step now."""
        self.row, self.heard, track = row, [], self.track
        if track.steps == 0:
            track.untouched = track.snapshots.pinned = row.get("untouched", False)
            track._drawn = row.get("drawn", False)
        if row.get("fresh"):
            track.trained.groups = [(-1, -1)]
            track.refresh()
        if "build_up" in row:
            track.baseline.updates.looked = row.get("rate", 0.0)
        statistics = GradientStatistics(
            names=(),
            norms=np.zeros(0),
            nonfinite=(("", 1),) * row.get("nonfinite", 0),
            **{key: row[key] for key in PLAIN if key in row},
        )
        measured = (self,) if "signal" in row else ()
        with (
            patch.object(judging, "heard", self._heard),
            patch.object(judging, "suspects", self._suspects),
            patch.object(treating, "moved_too_far", lambda track: row.get("moved_too_far", False)),
            patch.object(self.run.investigation, "readings", lambda optimizer: measured),
            patch.object(judging, "signal", lambda readings: Signal(*row["signal"])),
            patch.object(learning, "build_up", lambda optimizer: row.get("build_up", 1.0)),
        ):
            report = self.host.go_on(track, context_of(self.run, track, statistics), StepInputs())
        return outputs(self.heard, report.verdict, report.decision)

    def _heard(self, track: OptimizerTrack, statistics: GradientStatistics) -> list[Verdict]:
        self.heard = HEARD(track, statistics)
        return self.heard

    def _suspects(self, *args: Any, ask: str = "all", **known: Any) -> tuple[Suspect, ...]:
        # Where nothing was asked when the trace was recorded, nobody is suspected.
        found = self.row.get("suspects", {}).get(ask, ())
        return tuple(Suspect(layer, score, "", broken=broken, part=part) for layer, score, broken, part in found)


# -- comparison --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step of a trace at which something else comes out: the verdicts of the detectors, or the decision."""

    trace: Trace
    what: str
    step: int
    old: str
    new: str


def differences(trace: Trace) -> Iterator[Difference]:
    """Yield at most one difference in the verdicts and one in the decision, after which the two runs would part."""
    replay, differ = Replay(), False
    for row in trace.steps:
        new = replay.step(row)
        parted = not same(row.get("decision"), new["decision"])
        if not differ and (row.get("heard", []), row.get("verdict")) != (new["heard"], new["verdict"]):
            differ = True
            yield Difference(trace, "verdict", row["step"], said(row), said(new))
        if parted:
            yield Difference(trace, "decision", row["step"], decided(row), decided(new))
            return


def same(a: list[Any] | None, b: list[Any] | None) -> bool:
    """Tell whether two decisions agree."""
    return a == b


def said(row: Row) -> str:
    """Put the verdicts of a step into words; the one acted on, where it is none of the detectors', comes last."""
    heard, verdict = row.get("heard", []), row.get("verdict")
    more = [verdict] if verdict and verdict not in heard else []
    return "; ".join(_words(v) + (" *" if v == verdict else "") for v in heard + more) or "–"


def _words(verdict: list[Any]) -> str:
    form, detector, *flags = verdict
    return " ".join([f"{form} ({detector})", *(n for n, f in zip(("alarm", "examine"), flags, strict=True) if f)])


def decided(row: Row) -> str:
    """Put the decision of a step into words."""
    if not row.get("decision"):
        return "–"
    remedies, cause = row["decision"]
    return ("+".join(remedies) or "nothing") + (f" ({cause})" if cause else "")


def table(found: Iterable[Difference]) -> str:
    """Write differences as Markdown."""
    lines = ["| run | what | step | then | now |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {d.trace.run}{f' #{d.trace.optimizer}' if d.trace.optimizer else ''} | {d.what} | {d.step} "
        f"| {d.old} | {d.new} |"
        for d in found
    ]
    return "\n".join(lines)


# -- the runs that are recorded, and their file ------------------------------------------------------------------------


def quiet() -> GradGuard:
    """Return a guard that leaves no file."""
    return GradGuard(journal=False)


def runs() -> dict[str, Callable[[], object]]:
    """Name the runs: the sick ones of zoo and field trial that are short, and a few healthy ones; none that is held
    out."""
    from benchmarks.field.__main__ import held_out
    from benchmarks.field.healthy import healthy_runs
    from benchmarks.field.sick import scaled_loss, sick_runs
    from benchmarks.field.training import Run, Trouble, train
    from benchmarks.zoo.case import cases
    from benchmarks.zoo.runner import Job, execute

    zoo = [c for c in cases(held_out="exclude") if c.max_steps <= LONGEST]
    field = [r for r in sick_runs() if r.steps <= LONGEST and not held_out(r.name)]
    healthy = [r for r in healthy_runs() if not held_out(r.name)]
    # Mild enough to be clipped, alone and in a row.
    mild = Trouble("loss x30 now and then", loss=scaled_loss({60, 110, 160, *range(210, 216)}.__contains__, 30))
    clipped = Run(
        "regression, adam 1e-3: loss x30",
        next(r.recipe for r in healthy if r.recipe.name == "regression"),
        "adam 1e-3",
        trouble=mild,
    )
    found: dict[str, Callable[[], object]] = {}
    for case in zoo:
        found[f"zoo: {case.name}"] = partial(execute, Job(case.name, "benchmarks.traces:quiet", 0))
    for run in (*field, *healthy[:: len(healthy) // HEALTHY][:HEALTHY], clipped):
        found[f"field: {run.name}"] = partial(train, run, True)
    return found


def write(traces: Iterable[Trace], file: Path) -> None:
    """Write traces, one a line; the same ones give the same bytes."""
    text = "".join(json.dumps(dataclasses.asdict(trace), separators=(",", ":")) + "\n" for trace in traces)
    file.write_bytes(gzip.compress(text.encode(), mtime=0))


def read(file: Path = FILE) -> list[Trace]:
    """Read traces."""
    return [Trace(**json.loads(line)) for line in gzip.decompress(file.read_bytes()).splitlines()]


def main(arguments: list[str] | None = None) -> int:
    """Record or compare, as asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", action="store_true", help="do the runs and write the traces anew (some minutes)")
    what.add_argument("--compare", action="store_true", help="print where another verdict or decision comes out now")
    parser.add_argument("--file", type=Path, default=FILE, help="the traces")
    options = parser.parse_args(arguments)
    if options.record:
        warnings.filterwarnings("ignore")
        logging.disable(logging.ERROR)
        torch.set_num_threads(1)  # so that the runs can be repeated
        done = ((name, record(run)) for name, run in tqdm(runs().items(), unit="run"))
        write(
            (Trace(name, index, steps) for name, tracks in done for index, steps in sorted(tracks.items())),
            options.file,
        )
    traces = read(options.file)
    found = [difference for trace in traces for difference in differences(trace)]
    print(table(found))
    print(f"\n{len({d.trace.run for d in found})} of {len({t.run for t in traces})} runs differ.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
