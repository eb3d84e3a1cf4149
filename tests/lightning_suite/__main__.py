"""Run Lightning's tests with a guard in every Trainer; what fails is run without one, and with idle callbacks.

What passes without a guard may still ask for an exact list of callbacks, of files or of metrics: so what only the guard
fails is run again beside a callback that does nothing, and beside one that does nothing but write as many files and
metrics. What passes with all of them is the guard's own fault.

Nothing is fetched: a checkout of Lightning's repository, of the version that is installed, is given. Each file of tests
is one step, noted in a state file, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from tests.lightning_suite.plugin import VARIABLE

ROOT = Path(__file__).parents[2]
OTHERS = ("none", "nothing", "writes")
FOLDERS = ("loops", "trainer", "callbacks", "checkpointing", "tuner", "core", "models")


def run(suite: Path, tests: list[str], ours: str, timeout: float) -> dict[str, str]:
    """Return the outcome of each test, by id, with the guard, a callback that does nothing, or none in every
    Trainer."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "outcomes.xml"
        options = ["-q", "-p", "tests.lightning_suite.plugin", "-p", "no:cacheprovider", f"--junitxml={file}"]
        asked = {VARIABLE: ours, "LIGHTNING_GRADGUARD": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{suite}"}
        command = [sys.executable, "-m", "pytest", *options, *tests]
        try:
            subprocess.run(command, cwd=suite, env={**os.environ, **asked}, capture_output=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return dict.fromkeys(tests, "timeout")
        if not file.exists():
            return dict.fromkeys(tests, "crash")
        return {_id(case): _outcome(case) for case in ET.parse(file).iter("testcase")}


def _id(case: ET.Element) -> str:
    path, name = case.get("classname", ""), case.get("name", "")
    if not path:  # A file that could not be imported.
        return f"{name.rpartition('tests_pytorch.')[2].replace('.', '/')}.py"
    return f"{path.rpartition('tests_pytorch.')[2].replace('.', '/')}.py::{name}"


def _outcome(case: ET.Element) -> str:
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def examine(suite: Path, file: str, timeout: float) -> dict[str, dict[str, str]]:
    """Return the outcomes of a file with the guard; of what fails, also those without, and with idle callbacks."""
    found = {"guard": run(suite, [file], "guard", timeout)}
    failed = [test for test, outcome in found["guard"].items() if outcome not in ("passed", "skipped")]
    for other in OTHERS if failed else ():
        found[other] = run(suite, failed, other, timeout)
        if file in failed:  # It was cut off as a whole, and so are the others, or they are not.
            whole = found[other].get(file, "passed")
            found[other] = {file: "passed" if whole in ("passed", "skipped") else whole}
        failed = [test for test in failed if found[other].get(test) == "passed"]
        if not failed:
            break
    return found


def culprits(found: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return of each test that fails with the guard what else it fails with first; the guard, if with it alone."""
    bad = [test for test, outcome in found["guard"].items() if outcome not in ("passed", "skipped")]
    return {test: next((o for o in OTHERS if found.get(o, {}).get(test) != "passed"), "guard") for test in bad}


def guilty(found: dict[str, dict[str, str]]) -> list[str]:
    """Return the tests that fail with the guard only."""
    return [test for test, culprit in culprits(found).items() if culprit == "guard"]


def main() -> int:
    """Return how many tests fail with the guard only, at most 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.lightning_suite", description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of Lightning's repository")
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help="folders, or files, below tests/tests_pytorch")
    parser.add_argument("--state", type=Path, default=Path("lightning_suite.json"), help="what has been run so far")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for a file of tests")
    options = parser.parse_args()
    suite = options.checkout / "tests" / "tests_pytorch"
    state = json.loads(options.state.read_text()) if options.state.exists() else {}
    paths = [path for folder in options.folders for path in sorted((suite / folder).rglob("test_*.py"))]
    paths += [suite / name for name in options.folders if (suite / name).is_file()]
    for path in paths:
        file = path.relative_to(suite).as_posix()
        if file not in state:
            state[file] = examine(suite, file, options.timeout)
            options.state.write_text(json.dumps(state, indent=1))
        outcomes = list(state[file]["guard"].values())
        print(f"{file}: {outcomes.count('passed')} passed, guard only: {guilty(state[file]) or 'none'}", flush=True)
    counts = Counter(outcome for found in state.values() for outcome in found["guard"].values())
    why = Counter(culprit for found in state.values() for culprit in culprits(found).values())
    only = [test for found in state.values() for test in guilty(found)]
    print(f"with the guard {counts['passed']} passed, {counts['skipped']} were skipped, {sum(why.values())} failed:")
    print(f"  {why['none']} of these without it too, {why['nothing']} with a callback that does nothing,", end=" ")
    print(f"{why['writes']} with one that writes as many files and metrics; with the guard only {len(only)}:")
    print(*only, sep="\n")
    return int(bool(only))


if __name__ == "__main__":
    sys.exit(main())
