"""Start TensorBoard on synthetic logs as a user would, whether or not this distribution is installed."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points as entry_points_of
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker, wherever the suite's own configuration may be."""
    config.addinivalue_line("markers", "browser: needs Debian's chromium and the playwright package")


@pytest.fixture(scope="session")
def entry_points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that announces the plugin as the installed distribution would."""
    folder = tmp_path_factory.mktemp("site")
    if any(known.name == "gradguard" for known in entry_points_of(group="tensorboard_plugins")):
        return folder  # It is installed, and TensorBoard refuses to start where a plugin is announced twice.
    info = folder / "gradguard_under_test-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gradguard-under-test\nVersion: 0\n")
    config = (ROOT / "setup.cfg").read_text()
    declared = re.search(r"tensorboard_plugins =\n\s+(.+)\n", config)
    assert declared, "setup.cfg declares no TensorBoard plugin"
    (info / "entry_points.txt").write_text(f"[tensorboard_plugins]\n{declared[1]}\n")
    return folder


@pytest.fixture(scope="session")
def serve(entry_points: Path) -> Callable[..., object]:
    """A context manager that runs TensorBoard on a folder and gives its address."""

    @contextmanager
    def running(logdir: Path, *, fast: bool = True, reload: int = 0) -> Iterator[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        path = os.pathsep.join([str(entry_points), str(ROOT)])
        command = [
            sys.executable, "-m", "tensorboard.main", "--logdir", logdir.name, "--port", str(port),
            "--host", "127.0.0.1", "--load_fast", "true" if fast else "false", "--reload_interval", str(reload),
        ]  # fmt: skip
        # From where the folder lies: its name is shown on every picture, its path is nobody's business.
        with subprocess.Popen(
            command,
            cwd=logdir.parent,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                address = f"http://127.0.0.1:{port}"
                for _ in range(300):
                    assert process.poll() is None, "TensorBoard did not start"
                    try:
                        with urllib.request.urlopen(f"{address}/data/environment", timeout=1):
                            break
                    except OSError:
                        time.sleep(0.1)
                yield address
            finally:
                process.terminate()

    return running
