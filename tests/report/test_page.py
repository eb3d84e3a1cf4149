import dataclasses
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from lightning_gradguard.diagnostics import Journal
from lightning_gradguard.report import find_journals, read_story, render_page, render_text
from tests.diagnostics.examples import HOSTILE, incident, window


def story(directory, *, ticks=10, incidents=(), **changes):
    journal = Journal(directory)
    for tick in range(ticks):
        journal.window(window(tick, **changes))
    for case in incidents:
        journal.incident(case, "opened" if case.closed is None else "closed")
    journal.close()
    return read_story(journal.path, directory.parent)


class Balance(HTMLParser):
    """Collect tags and attributes, and check that what opens closes."""

    def __init__(self, page):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("level", "words", "incidents", "changes"),
    [
        ("good", "No incident in 250 steps", (), {}),
        ("good", "GradScaler skipped 3 steps by itself", (), {"overflows": 3, "norm_before": 0.0, "norm_peak": 0.0}),
        ("good", "no alarm for 209 steps since step 40.", (incident(closed=52, helped=True),), {}),
        ("bad", "still open at step 249, the last seen", (incident(),), {}),
        ("bad", "did not help", (incident(closed=52, helped=False),), {}),
        ("bad", "non-finite or over its limit since step 0", (), {"norm_peak": math.nan}),
        ("bad", "non-finite or over its limit", (incident(closed=52, helped=True),), {"norm_peak": math.inf}),
    ],
)
def test_the_verdict_is_the_worse_one_in_doubt(tmp_path, level, words, incidents, changes):
    head = story(tmp_path / "run", incidents=incidents, **changes).headline
    assert head.level == level and words in head.text


def test_an_empty_journal_says_so(tmp_path):
    (tmp_path / "gradguard.jsonl").write_text("")
    told = read_story(tmp_path / "gradguard.jsonl", tmp_path)
    assert told.headline.level == "unknown" and "Nothing was recorded" in render_text(told)
    assert "there is no chart" in render_page([told])


def test_the_text_tells_the_newest_incident_first(tmp_path):
    cases = (incident(closed=52, helped=True), incident(2, 90, closed=99, helped=True))
    text = render_text(story(tmp_path / "run", incidents=cases))
    assert text.index("Incident 2 at step 90") < text.index("Incident 1 at step 40")
    assert "2 incidents in 250 steps; the last: non-finite at step 90, first in conv2; 1 step clipped" in text
    assert "\x1b" not in text and "\x1b[32m" in render_text(story(tmp_path / "other", incidents=cases), color=True)


def test_the_page_is_whole_and_self_contained(tmp_path):
    page = render_page([story(tmp_path / "run", incidents=(incident(closed=52, helped=True),))])
    tags = Balance(page)
    assert tags.open == []
    assert {"svg", "image", "article", "table"} <= {tag for tag, _ in tags.seen} and "script" not in dict(tags.seen)
    links = [value for _, attrs in tags.seen for name, value in attrs.items() if name in ("href", "src")]
    assert links and all(link.startswith(("data:image/png", "#incident-")) for link in links)
    assert 'id="incident-0-1-40"' in page and "prefers-color-scheme: dark" in page
    assert "http" not in page.replace("http-equiv", "")


def test_hostile_names_do_no_harm(tmp_path):
    case = incident(layer=HOSTILE, form='"><script>')
    told = story(tmp_path / '<script>"x"', incidents=(case,), layers=(HOSTILE, '"><script>'))
    page, text = render_page([told]), render_text(told)
    assert Balance(page).open == [] and "<script" not in page
    assert all(line.isprintable() for line in text.splitlines())


def test_norms_of_every_kind_can_be_drawn(tmp_path):
    for name, norm in [("nan", math.nan), ("inf", math.inf), ("zero", 0.0), ("huge", 1e300), ("tiny", 1e-300)]:
        changes = {"norm_peak": norm, "typical": norm, "limit": norm, "layer_peaks": np.full(3, norm)}
        told = story(tmp_path / name, incidents=(incident(step=10**9),), **changes)
        page = render_page([told])
        assert Balance(page).open == [] and "nan" not in page.split("<figure>")[1].split("</svg>")[0].lower()
        assert render_text(told)


def test_one_column_and_a_thousand_layers(tmp_path):
    layers = tuple(f"l{i}" for i in range(1000))
    assert Balance(render_page([story(tmp_path / "run", ticks=1, layers=layers)])).open == []


def test_damage_is_said(tmp_path):
    told = story(tmp_path / "run")
    path = tmp_path / "run" / "gradguard.jsonl"
    path.write_bytes(path.read_bytes()[:-5] + b"\n{\x00\n")
    told = read_story(path, tmp_path)
    assert told.contents.unreadable == 2
    assert "line 13" in render_text(told) and "Not shown" in render_page([told])


def test_of_what_is_no_journal_one_sentence_is_said(tmp_path):
    path = tmp_path / "train.log"
    path.write_text("epoch 1\n" * 3000)
    text = render_text(read_story(path, tmp_path))
    assert "none of 3,000 lines could be read: is it a journal? line 1 is not JSON" in text and "line 2" not in text


def test_journals_are_found_at_any_depth(tmp_path):
    for name in ("b/version_0", "a/version_1"):
        story(tmp_path / name, ticks=1)
    assert [p.parent.name for p in find_journals(tmp_path)] == ["version_1", "version_0"]
    assert find_journals(tmp_path / "a/version_1/gradguard.jsonl") == [tmp_path / "a/version_1/gradguard.jsonl"]
    assert find_journals(tmp_path / "missing") == []


def test_several_optimizers_have_charts_of_their_own(tmp_path):
    journal = Journal(tmp_path)
    for tick in range(4):
        journal.window(window(tick, optimizer=tick % 2))
    journal.incident(dataclasses.replace(incident(), optimizer=1), "opened")
    journal.close()
    assert render_page([read_story(journal.path, tmp_path)]).count("<figure>") == 2
