"""What a notebook and a terminal show of a run: a verdict, a static picture, a word beside the bar."""

from __future__ import annotations

import dataclasses
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

import lightning_gradguard
from lightning_gradguard import GradGuard
from lightning_gradguard.cli import main, watch
from lightning_gradguard.diagnostics import Journal
from lightning_gradguard.diagnostics.bar import BarWord
from tests.diagnostics.examples import HOSTILE, incident, window
from tests.diagnostics.test_trials_told import ALL_TAKEN_BACK, CALM, SECOND_KEPT
from tests.tensorboard_plugin.stories import Regression, bad_layer_at, train


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.depth = 0
        self.feed(page)
        assert self.depth == 0, "what opens closes"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        self.depth += tag != "br"

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1


def write(folder: Path, **changes: Any) -> Path:
    journal = Journal(folder)
    for tick in range(20):
        journal.window(window(tick, loss_low=0.1, loss_high=0.4, loss_mean=0.2, **changes))
    journal.incident(dataclasses.replace(SECOND_KEPT, step=40), "closed")
    journal.close()
    return journal.path


def test_a_notebook_shows_the_verdict_and_a_static_picture(tmp_path: Path) -> None:
    shown = lightning_gradguard.show(write(tmp_path / "run").parent)
    page = shown._repr_html_()
    tags = Tags(page).seen
    assert {"svg", "image", "rect"} <= set(tags) and not {"script", "style", "link", "iframe"} & set(tags)
    assert "Recovering" in page and "Did it help?" in page and "taken back" in page
    assert 'fill="none" stroke="#24406b"' in page.replace(
        'stroke="#24406b" fill="none"', 'fill="none" stroke="#24406b"'
    )
    assert "Recovering" in repr(shown) and "\x1b" not in repr(shown)


def test_nothing_to_show_is_said(tmp_path: Path) -> None:
    assert repr(lightning_gradguard.show(tmp_path)) == "no journal was found"
    assert "No journal" in lightning_gradguard.show(tmp_path)._repr_html_()


@pytest.mark.parametrize(
    "one", [CALM, SECOND_KEPT, ALL_TAKEN_BACK, incident(), incident(layer=HOSTILE, form="<script>")]
)
def test_an_incident_has_a_card(one: Any) -> None:
    page = one._repr_html_()
    tags = Tags(page).seen
    assert "script" not in tags and "incident" in page.lower()
    assert ("svg" in tags) == bool(one.trials)


def test_an_incident_whose_losses_are_unknown_has_no_picture() -> None:
    nan = dict.fromkeys(("before", "trouble", "after"), math.nan)
    one = dataclasses.replace(SECOND_KEPT, trials=(dataclasses.replace(SECOND_KEPT.trials[0], **nan),))
    assert "svg" not in Tags(one._repr_html_()).seen


def test_the_callback_shows_its_run(tmp_path: Path) -> None:
    guard = GradGuard()
    assert "no incident so far" in guard._repr_html_()
    train(tmp_path, "run", Regression(bad_layer_at(120, "blocks.1.2"), blocks=2), 200, guard)
    page = guard._repr_html_()
    assert "blocks.1.2" in page and "restored the layer" in page and "svg" in Tags(page).seen


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_a_word_beside_the_bar_and_nowhere_else(tmp_path: Path, kind: Any, capsys: Any) -> None:
    seen: list[str] = []

    class Bar(kind):  # type: ignore[misc]
        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            seen.append(self.get_metrics(trainer, module)["gg"])
            assert "gg" not in trainer.callback_metrics
            super().on_train_batch_end(trainer, module, *rest)

    bar = Bar()
    from torch.utils.data import DataLoader

    from tests.tensorboard_plugin.stories import Stream

    trainer = Trainer(
        callbacks=[bar, GradGuard(progress_bar=True)],
        default_root_dir=tmp_path,
        logger=False,
        max_epochs=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression(bad_layer_at(60, "blocks.1.2"), blocks=2), DataLoader(Stream(120), batch_size=None))
    assert seen[0] == "ok" and any(word.startswith("1 incident open") for word in seen)
    assert seen[-1].endswith("skipped") and "open" not in seen[-1]
    assert "get_metrics" not in vars(bar), "given back"


def test_a_bar_says_how_it_goes() -> None:
    word = BarWord()
    word.window(window(0, skipped=0, clipped=2))
    assert word.word == "2 clipped"
    word.window(window(0, optimizer=1, skipped=3, clipped=0))
    assert word.word == "3 skipped, 2 clipped"


def test_a_run_is_followed_in_a_terminal(tmp_path: Path, capsys: Any) -> None:
    assert watch(tmp_path, every=0.01, color=False, rounds=2) == 0
    assert capsys.readouterr().out.count("Waiting for a journal") == 1, "nothing new is not said again"
    write(tmp_path / "run")
    assert watch(tmp_path, every=0.01, color=False, rounds=3) == 0
    told = capsys.readouterr().out
    assert told.count("Recovering") == 1 and "Did it help?" in told and "log10 loss" in told
    assert all(len(line) < 200 for line in told.splitlines())


def test_following_has_its_arguments_checked(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["follow", ".", "--every", "0"])
    assert "at least 0.1 seconds" in capsys.readouterr().err
