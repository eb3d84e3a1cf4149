"""What is built and installed.

The source archive holds its tests, the wheel works in an environment without this checkout.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SKIPPED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "lightning_logs", "node_modules"
)
ADDRESS = "https://example.org/lightning_gradguard"
RELATIVE = re.compile(r"\]\((?![a-z]+:|#)")
BUILD = "from setuptools import build_meta as b; print(b.build_sdist('out')); print(b.build_wheel('out'))"
TRAIN = """
import importlib.metadata, logging, sys, torch, {twin} as pl
from lightning_gradguard import GradGuard
assert "site-packages" in sys.modules["lightning_gradguard"].__file__
class M(pl.LightningModule):
    def __init__(self): super().__init__(); self.net = torch.nn.Linear(8, 1)
    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean() * (float("nan") if index == 9 else 1)
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.05)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(160, 8)), batch_size=8)
run = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
run.fit(M(), data)
assert [[i.step for i in c.incidents] for c in run.callbacks if isinstance(c, GradGuard)] == [[9]]
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the source archive and the wheel, built from a copy of the checkout."""
    copy = tmp_path_factory.mktemp("copy") / "source"
    shutil.copytree(ROOT, copy, ignore=SKIPPED)
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True)
    yield copy / "out"
    shutil.rmtree(copy)


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, and what it depends on."""
    where = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(where)], check=True)
    found = where / "bin" / "python"
    wheel = next(built.glob("*.whl"))
    subprocess.run([str(found), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    # The dependencies of the tests' own environment, without what links it to this checkout.
    site = next(where.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return found


def run(python: Path, *arguments: str, at: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([str(python), *arguments], cwd=at, env={**kept, **variables}, capture_output=True, text=True)


def test_the_source_archive_holds_what_its_tests_need(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("tests", "benchmarks", "examples", "docs"):
        wanted = {
            file.relative_to(ROOT).as_posix()
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and "_build" not in file.parts and not {"__pycache__", "runs"} & set(file.parts)
        }
        assert wanted - held == set()
    assert {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "README.md",
        "setup.py",
        "ruff.toml",
        "tox.ini",
        "setup.cfg",
        "pyproject.toml",
    } <= held


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        held = archive.namelist()
    tops = {name.partition("/")[0] for name in held}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "lightning_gradguard",
        "lightning_gradguard_tensorboard",
    }
    for package in ("lightning_gradguard", "lightning_gradguard_tensorboard"):
        files = [f for f in (ROOT / package).rglob("*") if f.is_file() and "__pycache__" not in f.parts]
        assert {f.relative_to(ROOT).as_posix() for f in files} <= set(held)


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_page_on_an_index_has_no_link_that_leads_nowhere(built: Path) -> None:
    page = metadata(next(built.glob("*.whl"))).get_payload()
    assert "GradGuard()" in page and not RELATIVE.search(page) and "![" not in page


def test_where_the_address_is_known_links_are_absolute(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    shutil.copytree(ROOT, copy, ignore=SKIPPED)
    only_wheel = "from setuptools import build_meta as b; b.build_wheel('out')"
    variables = {**os.environ, "GRADGUARD_ADDRESS": f"{ADDRESS}/"}
    subprocess.run([sys.executable, "-c", only_wheel], cwd=copy, env=variables, check=True, capture_output=True)
    found = metadata(next((copy / "out").glob("*.whl")))
    links = dict(url.split(", ") for url in found.get_all("Project-URL", []))
    assert {"Source", "Issues", "Documentation", "Changelog", "Compatibility"} == set(links)
    page = found.get_payload()
    assert (
        not RELATIVE.search(page)
        and f"![The GradGuard tab of TensorBoard after the guarded run of the example]({ADDRESS}/raw/" in page
    )
    targets = re.findall(rf"{ADDRESS}/(?:blob|raw)/main/([^)#\s]+)", "\n".join([page, *links.values()]))
    assert len(targets) > 10 and all((ROOT / target).exists() for target in targets)


def test_the_classifiers_are_those_of_the_pythons_that_are_tested(built: Path) -> None:
    told = metadata(next(built.glob("*.whl"))).get_all("Classifier", [])
    pythons = {
        line.rpartition(" ")[2].replace(".", "")
        for line in told
        if line.startswith("Programming Language :: Python :: 3.")
    }
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    assert pythons == set(re.findall(r"\bpy(3\d+)", tox.partition("env_list =")[2].partition("\n")[0]))


def test_the_changelog_tells_of_this_version() -> None:
    from lightning_gradguard import __version__

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?({re.escape(__version__)}|Unreleased)", text, re.MULTILINE)


def test_the_index_would_take_it(built: Path) -> None:
    pytest.importorskip("twine")
    files = [str(file) for file in built.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_command_is_installed(python: Path, tmp_path: Path) -> None:
    from lightning_gradguard import __version__

    done = run(python.parent / "lightning-gradguard", "--version", at=tmp_path)
    assert done.stdout == f"lightning-gradguard {__version__}\n", done.stderr


@pytest.mark.parametrize("twin", ["lightning.pytorch", "pytorch_lightning"])
def test_opting_in_needs_no_code(twin: str, python: Path, tmp_path: Path) -> None:
    if twin == "pytorch_lightning":
        pytest.importorskip(twin)
    done = run(python, "-c", TRAIN.format(twin=twin), at=tmp_path, LIGHTNING_GRADGUARD="1")
    assert done.returncode == 0, done.stderr
