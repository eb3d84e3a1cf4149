"""The table of libraries is what its command writes."""

from __future__ import annotations

import pytest

from tests.compatibility.matrix import CROSS, TICK
from tests.ecosystem import __main__ as command
from tests.ecosystem.libraries import LIBRARIES


def test_the_table_names_every_library_and_at_least_ten_were_tried() -> None:
    rows = command.known(command.TABLE.read_text(encoding="utf-8"))
    assert list(rows) == list(LIBRARIES)
    assert command.table(rows) == command.TABLE.read_text(encoding="utf-8")
    assert sum(row[1:] == (TICK, TICK) for row in rows.values()) >= 10
    assert not any(CROSS in row for row in rows.values())


def test_a_name_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["ecosystem", "dart"])
    with pytest.raises(SystemExit):
        command.main()
    assert "not dart" in capsys.readouterr().err
