"""What the recorder is told of a step."""

from __future__ import annotations

import dataclasses
import math

from lightning_gradguard.layers.names import compiled, own_parameters
from lightning_gradguard.optimizer_track import OptimizerTrack
from lightning_gradguard.records import Action, GradientStatistics, Suspect, Verdict
from lightning_gradguard.step.run import Run
from lightning_gradguard.step.witnessing import hear

OUTSIDE = "; its gains were measured in eager mode, outside the compiled graph"


def note(run: Run, track: OptimizerTrack, statistics: GradientStatistics, coefficient: float, *, alarm: bool) -> None:
    """Take a step into the window under way, and send the window when it is full."""
    track.last = statistics
    since = None if track.incident is None else track.incident.step
    if not track.sharded:
        track.accumulator.weigh(track.parameters)
    if run.recorder.add(track.accumulator, statistics, coefficient, alarm=alarm, steps=track.steps, since=since):
        log(run, track, statistics, coefficient)


def log(run: Run, track: OptimizerTrack, statistics: GradientStatistics, coefficient: float) -> None:
    """Send the window that ends with this step."""
    # Before there is history the only limit is the number format's, which would stretch every picture by ten decades.
    limit = track.limit() if track.baseline.count else math.inf
    rates = track.rates()
    if statistics.step != track.number:
        # A window that trouble cuts short: the rate of the step at hand is not the one that it was made with.
        rates = math.nan if statistics.rate is None else statistics.rate, *rates[1:]
    window = track.accumulator.window(
        statistics,
        typical=track.baseline.norms.typical,
        optimizer=track.index,
        limit=limit,
        coefficient=coefficient,
        lr_factor=track.remedies.lr_factor,
        incidents=run.recorder.count,
        rates=rates,
        cooled=track.remedies.cooled,
    )
    run.recorder.tell("window", hear(run, track, window))


def notice(run: Run, track: OptimizerTrack, step: int, verdict: Verdict) -> None:
    """Send a verdict that asks for no remedy to the sinks, unless it was sent a short while ago."""
    run.recorder.notice(track.notices, step, verdict)


def record(
    run: Run,
    track: OptimizerTrack,
    action: Action,
    suspects: tuple[Suspect, ...],
    batch_index: int | None,
    *,
    bundle: str = "",
) -> None:
    """Record an alarm, and measure the next batch layer by layer."""
    # In case the trouble is not over. The first time without a trace: a run that lost one batch must go on exactly as
    # if it had never seen it.
    again = track.policy.strikes > 1 or action.verdict.of_a_start or action.decision.look
    outside = run.investigation.outside
    if again or not compiled(run.module):
        run.investigation.arm(track.index, run.module, backward=again and run.acts)
    # The root module has no name.
    suspects = tuple(s if s.layer else dataclasses.replace(s, layer=own_parameters(track.parameters)) for s in suspects)
    if outside:
        suspects = tuple(
            s if s.forward_gain is None else dataclasses.replace(s, reason=s.reason + OUTSIDE) for s in suspects
        )
    if track.incident is None and track.accumulator.steps and track.last is not None:
        # The window under way ends here: what was healthy is not drawn in the colours of what comes now.
        log(run, track, track.last, 1.0)
    track.incident = run.recorder.record(
        track.incident,
        action,
        suspects,
        optimizer=track.index,
        form=track.policy.form(action.verdict, action.step),
        batch_index=batch_index,
        trials=track.treatment.trials,
        bundle=bundle,
        witnessed=track.witnesses.testify() if track.incident is None else (),
    )


def close(run: Run, track: OptimizerTrack, step: int) -> None:
    """Close the open incident, and forget the trouble that it was about."""
    assert track.incident is not None
    if run.evidence is not None and run.evidence.lost(track.incident.bundle):
        track.incident = dataclasses.replace(track.incident, bundle="")  # The disk was full, as a warning has said.
    treatment = track.treatment
    run.recorder.close_incident(track.incident, step, treatment.trials, in_vain=treatment.in_vain)
    track.incident = None
    treatment.close()


def stop(run: Run, track: OptimizerTrack, step: int) -> None:
    """Record that the run ends here because of the open incident, if there is one."""
    if track.incident is None or track.incident.helped is not None:
        return
    # It stays the open one: a loop that goes on regardless must not open a new incident at each step.
    track.incident = dataclasses.replace(track.incident, closed=step, helped=False, stopped=step)
    run.recorder.replace(track.incident)
    run.recorder.tell("incident", track.incident, "closed")
