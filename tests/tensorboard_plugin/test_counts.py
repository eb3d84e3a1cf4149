"""Console, bar, report and tab count alike, in a run that was killed and resumed from before one of its incidents."""

from __future__ import annotations

import copy
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from test_backend import Local
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_gradguard import Guard
from lightning_gradguard.diagnostics import Console, Journal, TensorBoardSink
from lightning_gradguard.diagnostics.bar import BarWord
from lightning_gradguard.report import read_stories, render_text
from lightning_gradguard_tensorboard.pieces import plain_text
from tests.builders import mlp


class Run:
    """A loop whose batches are bad at some steps; each may be gone through again."""

    def __init__(self, folder: Path, writer: SummaryWriter) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = mlp()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02)
        self.bar = BarWord()
        self.sinks = [Console(), Journal(folder, run="one"), TensorBoardSink(writer, heatmap=False), self.bar]
        self.guard = Guard(self.model, sinks=self.sinks)
        self.guard.attach(self.optimizer)

    def state(self) -> Any:
        return copy.deepcopy([one.state_dict() for one in (self.model, self.optimizer, self.guard)])

    def load(self, state: Any) -> None:
        for one, saved in zip((self.model, self.optimizer, self.guard), state, strict=True):
            one.load_state_dict(saved)

    def go(self, start: int, end: int, bad: set[int]) -> None:
        for step in range(start, end):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(16, self.model[0].in_features, generator=generator)  # type: ignore[index]
            y = torch.tanh(x.sum(1, keepdim=True)) * (1e4 if step in bad else 1.0)
            self.optimizer.zero_grad()
            loss = (self.model(x) - y).square().mean()
            loss.backward()
            self.guard.before_step(self.optimizer, loss=loss, batch_index=step)
            self.optimizer.step()


def test_all_count_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lightning_gradguard")
    folder = tmp_path / "run"
    with SummaryWriter(str(folder)) as writer:
        first = Run(folder, writer)
        first.go(0, 251, {200})
        state = first.state()
        first.go(251, 400, {300})
        second = Run(folder, writer)
        second.load(state)
        second.go(251, 512, {310, 420, *range(500, 512)})
        second.guard.close()
    assert second.bar.word == "1 incident open, 15 skipped", "steps 200, 310, 420 and the last twelve"
    opened = [one for one in caplog.messages if re.search(r"incident \d+ at step", one)]
    (story,) = read_stories(folder / "gradguard.jsonl", tmp_path)
    words = "5 incidents in 512 steps; the last: recurrent at step 500; 16 steps skipped"
    assert "still open after 12 alarming steps" in caplog.text and "still open after 12 alarming" in render_text(story)
    assert len(opened) == 5 and words in story.headline.text, "what was done before it was killed counts too"
    assert words in render_text(story) and len(re.findall(r"^  Incident", render_text(story), re.MULTILINE)) == 5
    assert second.guard.incidents[-1].alarms == 12 == story.contents.incidents[-1].alarms
    tab = Local(tmp_path).json("/story", run="run")
    assert words in plain_text(tab["verdict"]["words"])
    of_tab, of_report = (
        [(one["number"], one["step"], one["alarms"]) for one in told] for told in (tab["incidents"], story.records)
    )
    assert of_tab == of_report
