"""Where each module is tested: ``python -m tests.mirror`` lists those without a test file of their own name.

A module ``room/name.py`` is tested in ``tests/room/test_name.py``. What is tested elsewhere is listed here, with where.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "lightning_gradguard", ROOT / "tests"

RECORD = "holds no logic: fields that are filled and read elsewhere"
CONTRACT = "tests/test_contracts.py"
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("witnesses/modules", "witnesses/witness", "step/witnessing"), "tests/witnesses/test_stand.py"),
    **dict.fromkeys(
        ("records/accused", "records/witnessed", "records/checkpoint", "records/measured", "records/window"), RECORD
    ),
    **dict.fromkeys(("policy/act", "policy/case", "device_gate/reading", "step/run"), RECORD),
    **dict.fromkeys(("detectors/detector", "remedies/remedy", "diagnostics/sink"), CONTRACT),
    # One question that several modules answer together is asked of the one that asks them.
    **dict.fromkeys(
        (f"attribution/{name}" for name in ("agreement", "displacement", "gains", "outliers", "weights")),
        "tests/attribution/test_suspects.py",
    ),
    **dict.fromkeys(("attribution/reading", "attribution/signal"), "tests/attribution/test_cause.py"),
    "attribution/investigation": "tests/attribution/test_probe.py",
    **dict.fromkeys(("checkpoint/rehearsal", "checkpoint/shape"), "tests/faults/test_hostile_state.py"),
    "arriving": "tests/device/test_calm.py",
    "defaults": "tests/test_tracks.py",
    "errors": "tests/faults/test_own_parts.py",
    "guarded_step": "tests/test_guard.py",
    "learning_rate": "tests/compatibility/test_schedulers.py",
    "optimizer_track": "tests/test_tracks.py",
    "parts": "tests/test_configuration.py",
    "session": "tests/test_resume.py",
    **dict.fromkeys(("diagnostics/alerts", "diagnostics/delivery"), "tests/diagnostics/test_webhook.py"),
    **dict.fromkeys(("diagnostics/decode", "diagnostics/markdown"), "tests/diagnostics/test_wording.py"),
    "diagnostics/journal_reader": "tests/diagnostics/test_journal.py",
    "diagnostics/listener": "tests/test_configuration.py",
    "diagnostics/tab": "tests/diagnostics/test_tensorboard.py",
    "diagnostics/tags": "tests/diagnostics/test_scalars.py",
    **dict.fromkeys(
        (f"evidence/{name}" for name in ("bundle", "collecting", "hand", "settings", "versions")),
        "tests/evidence/test_keeper.py",
    ),
    "evidence/accused": "tests/step/test_leaving_out.py",
    "evidence/healthy_copy": "tests/evidence/test_checkpoints.py",
    "integrations/accelerate": "tests/integrations/test_transformers.py",
    **dict.fromkeys(("layers/initialization", "layers/trained"), "tests/remedies/test_initialize.py"),
    "records/incident": "tests/records/test_plain.py",
    **dict.fromkeys(("remedies/layer_scale", "remedies/repair"), "tests/remedies/test_reinitialize.py"),
    **dict.fromkeys(
        (f"replay/{name}" for name in ("answer", "command", "diagnosis")),
        "tests/replay/test_six_faults.py",
    ),
    **dict.fromkeys(("replay/operation", "replay/origin"), "tests/replay/test_walk.py"),
    **dict.fromkeys(
        (f"report/{name}" for name in ("chart", "heatmap", "svg", "terminal", "trials")),
        "tests/report/test_page.py",
    ),
    "report/checkpoints": "tests/evidence/test_checkpoints.py",
    **dict.fromkeys(
        (f"snapshots/{name}" for name in ("copier", "planning", "snapshot")),
        "tests/snapshots/test_store.py",
    ),
    "snapshots/shards": "tests/strategies/test_fsdp2.py",
    "step/deferrable": "tests/test_deferred_step.py",
    "step/halting": "tests/replay/test_halt.py",
    "step/keeping": "tests/evidence/test_keeper.py",
    "step/replicas": "tests/strategies/test_ddp_machine.py",
    # All that needs a Trainer is tested with one.
    **dict.fromkeys(
        (f"trainer/{name}" for name in ("ending", "evidence_place", "processes", "record", "refusal")),
        "tests/test_callback.py",
    ),
    **dict.fromkeys(("trainer/checkpoints", "trainer/marking"), "tests/evidence/test_checkpoints.py"),
    "treatment/own_verdicts": "tests/step/test_treating.py",
}


def modules() -> set[str]:
    """Return the modules that hold code: not what a folder hands out."""
    files = (file.relative_to(PACKAGE).with_suffix("") for file in PACKAGE.rglob("*.py"))
    return {file.as_posix() for file in files if not file.name.startswith("__")}


def unmirrored() -> set[str]:
    """Return the modules without a test file of their own name."""
    return {one for one in modules() if not (TESTS / Path(one).parent / f"test_{Path(one).name}.py").exists()}


if __name__ == "__main__":
    found = unmirrored()
    print(f"{len(modules()) - len(found)} of {len(modules())} modules have a test file of their own name; the others:")
    print("\n".join(f"{one:32} {ELSEWHERE.get(one, 'nowhere')}" for one in sorted(found)))
