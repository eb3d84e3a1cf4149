"""Train a model of each library that is installed, and write the table from what passed."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest

from tests.compatibility.matrix import CROSS, NOT_RUN, ROOT, TICK
from tests.ecosystem.test_libraries import LIBRARIES

TABLE = ROOT / "docs" / "compatibility" / "ecosystem.md"
MARKS = {"passed": TICK, "failed": CROSS, "skipped": NOT_RUN}
KINDS = {"test_a_healthy_run_ends_bit_identical": 0, "test_a_sick_run_ends_with_finite_weights": 1}


class Outcomes:
    """A pytest plugin that notes how the tests of each library ended."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {name: [NOT_RUN, NOT_RUN] for name in LIBRARIES}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        """Note how one phase of a test ended."""
        report = yield
        name, _, library = item.name.removesuffix("]").partition("[")
        if (report.when == "call" or report.failed) and library in self.found and name in KINDS:
            self.found[library][KINDS[name]] = MARKS[report.outcome]
        return report


def table(found: dict[str, list[str]]) -> str:
    """Return the table as Markdown."""
    rows = [f"| {name} | {_version(name)} | {' | '.join(marks)} |" for name, marks in found.items()]
    return "\n".join(["| library | version | healthy | sick |", "|---|---|---|---|", *rows, ""])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def main() -> int:
    """Return pytest's exit status."""
    outcomes = Outcomes()
    status = pytest.main(
        ["-q", "-m", "ecosystem", str(ROOT / "tests" / "ecosystem"), *sys.argv[1:]], plugins=[outcomes]
    )
    TABLE.write_text(table(outcomes.found), encoding="utf-8")
    print(f"wrote {TABLE.relative_to(ROOT)}")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
