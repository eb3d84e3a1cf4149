"""Journals that were cut off, altered or made to harm: what can be read is read, and nothing is executed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard.cli import main
from lightning_gradguard.diagnostics import Journal, read_journal
from lightning_gradguard_tensorboard.story import parse_event
from lightning_gradguard_tensorboard.wire import parse_layers, parse_tag
from tests.diagnostics.examples import HOSTILE, incident, window

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    journal = Journal(tmp_path_factory.mktemp("journal"))
    for tick in range(4):
        journal.window(window(tick))
    journal.incident(incident(), "opened")
    journal.notice(60, HOSTILE)
    journal.close()
    return journal.path.read_bytes()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("altered") / "gradguard.jsonl"


def told(path: Path) -> int:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main(["report", str(path.parent)])


@given(data=st.data())
def test_a_journal_altered_at_any_byte_is_read_as_far_as_it_goes(data: Any, whole: bytes, path: Path) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["flip", "drop", "cut", "insert"]))
        if how == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "drop":
            del content[at : at + data.draw(st.integers(1, 60))]
        elif how == "insert":
            content[at:at] = data.draw(st.binary(max_size=20))
        else:
            del content[at:]
        if not content:
            break
    path.write_bytes(bytes(content))
    contents = read_journal(path)
    assert contents.unreadable <= content.count(b"\n") + 1
    assert told(path) in (0, 1, 3)


@given(entry=JSON, event=st.sampled_from(["start", "layers", "window", "opened", "acted", "closed", "notice", "other"]))
def test_any_json_in_the_place_of_a_line_is_read_or_reported(entry: Any, event: str, path: Path) -> None:
    lines = [
        entry,
        {"event": event, "incident": entry, "names": entry, "step": entry, "message": entry, "optimizer": entry},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    contents = read_journal(path)
    assert contents.unreadable <= 2
    assert told(path) in (0, 1, 3)


@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_the_tab_takes_any_bytes(content: bytes) -> None:
    event = parse_event(1, 0.0, 0, content)
    assert event is None or isinstance(event.payload, dict)
    names, _ = parse_layers(content)
    assert all(isinstance(name, str) for name in names)
    parse_tag(content.decode("latin-1"))


class Bomb:
    """What leaves a directory behind when it is unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


@pytest.mark.fault("a journal with a pickle that executes something")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bomb_in_a_journal_is_never_executed(protocol: int, whole: bytes, path: Path, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(str(tmp_path / "boom")), protocol=protocol)
    text = json.dumps({"event": "notice", "step": 1, "message": bomb.decode("latin-1")}).encode()
    path.write_bytes(bomb + b"\n" + whole + text + b"\n" + bomb)
    contents = read_journal(path)
    assert len(contents.windows) == 4 and len(contents.incidents) == 1
    assert told(path) == 3
    parse_event(1, 0.0, 0, bomb)
    parse_layers(bomb)
    assert not (tmp_path / "boom").exists()


@pytest.mark.fault("a journal that was cut off")
@pytest.mark.parametrize("seed", range(20))
def test_a_journal_that_was_cut_off_loses_its_last_line_only(seed: int, whole: bytes, path: Path) -> None:
    cut = random.Random(seed).randrange(1, len(whole))
    path.write_bytes(whole[:cut])
    contents = read_journal(path)
    assert contents.unreadable <= 1
    complete = whole[:cut].count(b"\n")
    read = len(contents.windows) + len(contents.incidents) + len(contents.notices) + contents.sessions
    names = sum(b'"event":"layers"' in line for line in whole[:cut].splitlines()[:complete])
    assert read + names + contents.unreadable >= complete
