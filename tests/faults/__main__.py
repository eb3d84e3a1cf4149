"""Run every test of this folder and write the fault table: ``python -m tests.faults [FILE]``.

A run counts as tried when its test ran, and as lost when the test failed: the run did not end as it should have. Each
row is made of the tests that carry ``@pytest.mark.fault(what)``, one run for each set of parameters.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "docs" / "compatibility" / "faults.md"
HEAD = """<!-- Written by `python -m tests.faults`. -->

Each run was broken on purpose, for real: a signal, a full device, a limit on memory. It is lost if it did not end as \
the
test of that fault demands, which is for a killed run: bit-identical to the undisturbed one after a resume.

| fault | runs tried | runs lost |
|---|---:|---:|
"""


class FaultTable:
    """Count tests by the fault that they carry."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._faults: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note which test stands for which fault."""
        for item in items:
            if (mark := item.get_closest_marker("fault")) is not None:
                self._faults[item.nodeid] = mark.args[0]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count one test, by its call or by what kept it from being called."""
        fault = self._faults.get(report.nodeid)
        if fault is None or not (report.when == "call" or report.outcome != "passed"):
            return
        if report.skipped:
            self.skipped[fault] += 1
        else:
            self.tried[fault] += report.when == "call"
            self.lost[fault] += report.failed

    def text(self) -> str:
        """Return the table, one row a fault in the order in which they were tried."""
        rows = [f"| {what} | {self.tried[what]} | {self.lost[what]} |" for what in dict.fromkeys(self._faults.values())]
        rows.append(f"| **all** | **{self.tried.total()}** | **{self.lost.total()}** |")
        notes = [f"\n{what}: {count} could not be tried on this machine.\n" for what, count in self.skipped.items()]
        return HEAD + "\n".join(rows) + "\n" + "".join(notes)


def main() -> int:
    """Run the tests, the slow ones too, and write the table if none was left out."""
    table = FaultTable()
    status = pytest.main(["-q", "-m", "slow or not slow", str(Path(__file__).parent)], plugins=[table])
    if status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        target = Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(table.text())
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
