"""What the stages of the guard hand to each other: small, frozen, typed records.

Every record can be written to the journal as JSON with :func:`to_json`; none of them holds a tensor.
"""

from lightning_gradguard.records.accused import AccusedBatch
from lightning_gradguard.records.checkpoint import CheckpointRecord
from lightning_gradguard.records.incident import Action, Decision, Incident, Outcome, StepReport, TrialRecord
from lightning_gradguard.records.measured import FloatArray, GradientStatistics, plain_statistics, statistics_from
from lightning_gradguard.records.plain import incident_from_json, to_json
from lightning_gradguard.records.verdict import (
    BATCH,
    GENTLE,
    LOSS,
    MACHINE,
    OPTIMIZER,
    Form,
    Suspect,
    Verdict,
    verdict_from_json,
)
from lightning_gradguard.records.window import Window
from lightning_gradguard.records.witnessed import WITNESSES, Testimony

__all__ = [
    "BATCH",
    "GENTLE",
    "LOSS",
    "MACHINE",
    "OPTIMIZER",
    "WITNESSES",
    "AccusedBatch",
    "Action",
    "CheckpointRecord",
    "Decision",
    "FloatArray",
    "Form",
    "GradientStatistics",
    "Incident",
    "Outcome",
    "StepReport",
    "Suspect",
    "Testimony",
    "TrialRecord",
    "Verdict",
    "Window",
    "incident_from_json",
    "plain_statistics",
    "statistics_from",
    "to_json",
    "verdict_from_json",
]
