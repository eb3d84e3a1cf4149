"""CONTRIBUTING.md shows how to add a detector, a remedy and a sink; here each is added, by that page, to a copy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS: list[str] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FILES = {block.splitlines()[0][2:]: block for block in BLOCKS if block.startswith("# lightning_gradguard/")}
KINDS = {
    path: match[1] for path, block in FILES.items() if (match := re.search(r"^class (\w+)\(", block, re.MULTILINE))
}


def insert(file: Path, before: str, line: str) -> None:
    """Put a line before the first one that begins so."""
    head, found, tail = file.read_text().partition(f"\n{before}")
    assert found, f"{file}: no line begins with {before}"
    file.write_text(f"{head}\n{line}{found}{tail}")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do what the page says, in a copy of the package and its tests."""
    root = tmp_path_factory.mktemp("contributed")
    for name in ("lightning_gradguard", "lightning_gradguard_tensorboard", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "states", "*.png"))
    for name in ("CONTRIBUTING.md", "tox.ini", "setup.cfg", "ruff.toml"):
        shutil.copy(ROOT / name, root / name)
    for path, block in FILES.items():
        (root / path).write_text(block.partition("\n")[2])
        folder, kind = Path(path).parent, KINDS[path]
        front = root / folder / "__init__.py"
        insert(front, "__all__ = [", f"from {'.'.join(Path(path).with_suffix('').parts)} import {kind}\n")
        names = re.search(r"__all__ = \[(.*?)\]", front.read_text(), re.DOTALL)
        assert names is not None
        known = sorted([*re.findall(r'"(\w+)"', names[1]), kind])
        front.write_text(front.read_text().replace(names[0], "__all__ = [" + ", ".join(f'"{n}"' for n in known) + "]"))
        frozen = root / "tests" / "test_architecture.py"
        frozen.write_text(frozen.read_text().replace(f"    {folder.name}: {{", f'    {folder.name}: {{"{kind}", ', 1))
    return root


def run(root: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_page_adds_one_of_each() -> None:
    assert [Path(path).parent.name for path in FILES] == ["detectors", "remedies", "diagnostics"]


def test_what_is_added_by_the_page_keeps_every_contract(copy: Path) -> None:
    new = " or ".join(KINDS.values())
    told = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_contracts.py", "-k", new)
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None and int(passed[1]) >= 12, told


def test_what_is_added_by_the_page_keeps_the_house_in_order(copy: Path) -> None:
    asked = "public or one_way or abstract_or_final or one_idea or on_a_screen"
    run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_architecture.py", "-k", asked)


TRAINING = """
import torch
from lightning_gradguard import Guard
from lightning_gradguard.detectors import Ceiling
from lightning_gradguard.diagnostics import Tally
from lightning_gradguard.remedies import Halve
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
guard = {construction}
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(50):
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 4)) - torch.randn(8, 1)).square().mean()
    (loss * (300.0 if step == 40 else 1.0)).backward()
    guard.before_step(optimizer, loss=loss)
    optimizer.step()
assert guard._run.recorder.sinks[-1].opened == 1 and guard.incidents[0].remedies == ("halve",)
"""


def test_what_is_added_by_the_page_works(copy: Path) -> None:
    (construction,) = re.findall(r"`(Guard\(model.*?)`", PAGE)
    run(copy, "-c", TRAINING.format(construction=construction))


def test_the_page_is_short() -> None:
    """Half a page of text; code and drawing aside."""
    told = re.sub(r"```.*?```", "", PAGE.partition("## The house")[2], flags=re.DOTALL)
    assert len([line for line in told.splitlines() if line.strip()]) <= 30 and len(PAGE.splitlines()) <= 110


def test_what_is_added_by_the_page_is_clean(copy: Path) -> None:
    pytest.importorskip("ruff", reason="only developers have it")
    run(copy, "-m", "ruff", "check", "--quiet", *FILES)
    run(copy, "-m", "ruff", "format", "--check", "--quiet", *FILES)
