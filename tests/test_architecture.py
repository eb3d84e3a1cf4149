"""The shape of the package: what may import what, and which names are public."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys

import pytest

import lightning_gradguard
from lightning_gradguard import attribution, detectors, diagnostics, evidence, remedies, replay, witnesses
from tests import mirror
from tests.architecture import PACKAGE, RANKS, ROOT, drawn, imports, inner


def test_imports_flow_one_way() -> None:
    against = [
        f"{path} imports {target}"
        for path, own, target in inner()
        if own in RANKS and own != target and not RANKS.get(target, 99) < RANKS[own]
    ]
    assert against == []


def test_the_drawing_is_that_of_the_code() -> None:
    assert drawn() in (ROOT.parent / "CONTRIBUTING.md").read_text(), "python -m tests.architecture draws it anew"


def test_every_part_of_the_river_exists() -> None:
    assert set(RANKS) <= {path.name.removesuffix(".py") for path in ROOT.iterdir()}


def test_outer_parts_are_imported_by_nobody_inside() -> None:
    outer = {own for _, own, _ in inner()} - set(RANKS) - {"__init__"}
    wrong = [f"{p} imports {t}" for p, own, t in inner() if t in outer and own in RANKS]
    assert wrong == []


def test_nobody_below_the_step_receives_the_track() -> None:
    """A stage gets the values it needs, and returns what is to be learned."""
    below = [
        room
        for room, rank in RANKS.items()
        if rank < RANKS["step"] and room not in ("optimizer_track", "track_state", "checkpoint", "tracks")
    ]
    files = [f for room in below for f in (*ROOT.glob(f"{room}.py"), *ROOT.glob(f"{room}/**/*.py"))]
    assert len(files) > 50
    names = {
        f"{f.relative_to(ROOT)}: {node.arg}"
        for f in files
        for node in ast.walk(ast.parse(f.read_text()))
        if isinstance(node, ast.arg)
        and (node.arg == "track" or (node.annotation is not None and "OptimizerTrack" in ast.unparse(node.annotation)))
    }
    assert names == set()


def test_only_the_callback_and_its_twins_import_lightning() -> None:
    users = {
        file.relative_to(ROOT).parts[0]
        for file in ROOT.rglob("*.py")
        if any(m.split(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric") for m in imports(file))
    }
    assert users == {"callback.py", "trainer"}, "for type checkers"
    both = {file.name for file in ROOT.rglob("*.py") if '"pytorch_lightning"' in file.read_text()}
    assert both == {"twins.py"}


def test_only_diagnostics_import_tensorboard() -> None:
    users = {
        file.relative_to(ROOT).parts[0]
        for file in ROOT.rglob("*.py")
        if any(m.split(".")[0] == "tensorboard" or m.startswith("torch.utils.tensorboard") for m in imports(file))
    }
    assert users == {"diagnostics"}


PUBLIC = {
    lightning_gradguard: {
        *(
            "GradGuard",
            "Guard",
            "GuardError",
            "Incident",
            "Policy",
            "SnapshotStore",
            "StepReport",
            "TrainingDiverged",
            "default_detectors",
            "default_remedies",
        ),
        "show",
    },
    detectors: {
        *(
            "BadStart",
            "Detector",
            "Drift",
            "LossSpike",
            "NonFinite",
            "Overshoot",
            "Spike",
            "OptimizerStateCorruption",
            "Vanishing",
        ),
    },
    remedies: {
        *(
            "Augment",
            "ClearGradients",
            "Clip",
            "Initialize",
            "LearningRateBackoff",
            "Regularize",
            "Reinitialize",
            "Remedy",
            "Rollback",
            "RemedyContext",
            "Skip",
        ),
        *("SwapActivation", "TuneOptimizer", "restore_activations"),
    },
    evidence: {"Bundle", "BundleError", "Evidence", "Pass", "read_bundle"},
    witnesses: {"AttentionLogits", "RouterLoad", "Witness"},
    replay: {"Answer", "ReplayError", "replay"},
    attribution: {"LayerReading", "Probe", "blame", "expected_rms", "layer_of"},
    diagnostics: {
        *("AlertSink", "Webhook"),
        *("Console", "Event", "Journal", "JournalContents", "MetricsSink", "Notice", "Problem", "Sink"),
        *("TensorBoardSink", "pinned_link", "read_journal", "read_runs", "scalars"),
    },
}


@pytest.mark.parametrize("package", PUBLIC, ids=lambda p: p.__name__)
def test_the_public_names_are_these(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert set(names) == PUBLIC[package]  # type: ignore[index]
    assert sorted(names) == list(names)
    assert all(hasattr(package, name) for name in names)


@pytest.mark.parametrize("base", [detectors.Detector, remedies.Remedy, diagnostics.Sink])
def test_contracts_are_abstract_or_final(base: type) -> None:
    """No concrete class is derived from, so a method is looked up in one place at most."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith(PACKAGE):
            assert [s for s in kind.__subclasses__() if s.__module__.startswith(PACKAGE)] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = [f.name for f in ROOT.rglob("*.py") if not ast.get_docstring(ast.parse(f.read_text()))]
    assert silent == []


def test_public_classes_are_documented() -> None:
    for package, names in PUBLIC.items():
        for name in names:
            value = getattr(package, name)
            assert not inspect.isclass(value) or inspect.getdoc(value), name


def test_importing_the_package_loads_nothing_that_only_a_report_needs() -> None:
    told = (
        "import sys, lightning_gradguard; print([m for m in sys.modules if m.startswith('lightning_gradguard.report')])"
    )
    run = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "[]"


STATIC = ROOT.parent / "lightning_gradguard_tensorboard" / "static"


def read() -> dict[str, str]:
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in ROOT.rglob("*.py")}


def test_each_file_is_one_idea() -> None:
    """None is over 250 lines long, and one over 200 says in its docstring why it is one idea."""
    lines = {name: len(text.splitlines()) for name, text in read().items()}
    assert {name for name, count in lines.items() if count > 250} == set()
    long = {name: text for name, text in read().items() if lines[name] > 200}
    silent = {name for name, text in long.items() if "One idea" not in (ast.get_docstring(ast.parse(text)) or "")}
    assert silent == set()


def test_each_file_of_the_page_is_one_idea() -> None:
    """Scripts and style sheets of the tab: as long, and as wide, as the Python may be; ruff has no eye on them."""
    texts = {file.name: file.read_text() for file in STATIC.iterdir()}
    assert {".js", ".css"} == {file.suffix for file in STATIC.iterdir()}
    wide = {
        f"{name}, line {number}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if len(line) > 120
    }
    assert wide == set()
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    assert {name for name, count in lines.items() if count > 250} == set()
    long = {name: text for name, text in texts.items() if lines[name] > 200}
    assert {name for name, text in long.items() if "Longer than 200 lines" not in text} == set()


def test_each_function_fits_on_a_screen() -> None:
    long = {
        f"{name}: {node.name}"
        for name, text in read().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and node.end_lineno - node.lineno >= 45
    }
    assert long == set()


# Constants of one name in two files: each file format has its own version, what both packages must know is written in
# both.
SHARED = {"VERSION", "WINDOW_FIELDS", "LAYERS_PLUGIN", "INCIDENTS_PLUGIN", "WITNESSES"}


def test_constants_that_share_a_name_share_a_meaning() -> None:
    where: dict[str, set[str]] = {}
    for folder in (ROOT, ROOT.parent / "lightning_gradguard_tensorboard"):
        for file in folder.rglob("*.py"):
            for name in re.findall(r"^_?([A-Z][A-Z_0-9]{2,})(?:: [^=]+)? = ", file.read_text(), re.MULTILINE):
                where.setdefault(name, set()).add(file.relative_to(ROOT.parent).as_posix())
    assert {name: files for name, files in where.items() if len(files) > 1 and name not in SHARED} == {}


def test_tests_mirror_the_package() -> None:
    """Each module has a test file of its own name, or is listed with where it is tested; a room is a folder."""
    assert mirror.unmirrored() - set(mirror.ELSEWHERE) == set()
    assert set(mirror.ELSEWHERE) - mirror.unmirrored() == set(), "has a test file of its own by now, or is gone"
    lost = {
        place for place in mirror.ELSEWHERE.values() if place != mirror.RECORD and not (ROOT.parent / place).exists()
    }
    assert lost == set()
    rooms = {folder.name for folder in ROOT.iterdir() if folder.is_dir() and (folder / "__init__.py").exists()}
    assert {room for room in rooms if not (mirror.TESTS / room).is_dir()} == set()


@pytest.mark.parametrize("base", [detectors.Detector, remedies.Remedy])
def test_each_detector_and_remedy_has_a_file_of_tests(base: type) -> None:
    own = [kind.__module__.split(".") for kind in base.__subclasses__() if kind.__module__.startswith(PACKAGE + ".")]
    assert len(own) >= 8
    assert [name for _, room, name in own if not (mirror.TESTS / room / f"test_{name}.py").exists()] == []
