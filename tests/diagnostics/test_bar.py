"""A word beside the progress bar."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from lightning_gradguard import GradGuard
from lightning_gradguard.diagnostics.bar import BarWord
from lightning_gradguard.records import Outcome
from tests.diagnostics.examples import incident, window
from tests.tensorboard_plugin.stories import Regression, bad_layer_at


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


def test_each_incident_adds_what_was_skipped_in_it() -> None:
    word, outcome = BarWord(), Outcome("skip", True, "skipped the step", coefficient=0.0)
    actions = (dataclasses.replace(incident().actions[0], outcomes=(outcome,)),)
    for number in (1, 2):
        word.incident(incident(number, actions=actions), "opened")
        word.incident(incident(number, actions=actions, closed=60), "closed")
    assert word.word == "2 skipped", "before a window has told of them"
