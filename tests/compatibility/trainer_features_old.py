"""What else runs in a Trainer: compiled and tied modules, averaged weights, checkpoints, tuners, the command line."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn

from lightning_gradguard import GradGuard
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, trainer

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)


def never_seen(make: Any, optimizer: Any, root: Path, **options: Any) -> None:
    """Assert that a NaN batch leaves no trace: the run ends as one that never saw the batch, unguarded."""
    batches, ends = regression(40), []
    for chosen, guards in ((spoil(batches, 20), [GradGuard(journal=False)]), (batches[:20] + batches[21:], [])):
        fit = trainer(root, callbacks=guards, **options)
        fit.fit(Net(make(), optimizer), loader(chosen))
        ends.append(frozen_copy(fit))
        assert all([i.culprit for i in guard.incidents] == ["batch"] for guard in guards)
    assert same(*ends)


# -- modules


class Tied(nn.Module):
    """Two uses of one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.encode, self.decode, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 1)
        self.decode.weight = nn.Parameter(self.encode.weight.detach().t().clone())
        self.again = nn.Linear(8, 16)
        self.again.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.decode(self.again(self.decode(self.encode(x).relu()).relu())))
        return y


def compiled() -> Any:
    return torch.compile(mlp(), backend="eager")


def partly() -> nn.Module:
    network = mlp()
    return nn.Sequential(torch.compile(network[0], backend="eager"), *network[1:])


@pytest.mark.parametrize("make", [compiled, partly, Tied])
def test_a_nan_leaves_no_trace_in(make: Any, tmp_path: Path) -> None:
    never_seen(make, SGD, tmp_path)


@pytest.mark.parametrize("make", [partly, Tied])
def test_a_bad_layer_is_mended_in(make: Any, tmp_path: Path) -> None:
    network = make()
    with torch.no_grad():
        next(network.parameters()).mul_(1e6)
    guard = GradGuard(journal=False)
    trainer(tmp_path, callbacks=[guard]).fit(Net(network, ADAM), loader(regression(60)))
    assert "reinitialize" in guard.incidents[0].remedies
    # Either user of a tied weight may be named: what is mended is the same tensor.
    assert guard.incidents[0].culprit in (["network.0"] if make is partly else ["network.encode", "network.again"])
    assert float(next(network.parameters()).detach().abs().max()) < 10.0


# -- optimizers


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.Adam, lr=torch.tensor(0.01), foreach=False),
        partial(torch.optim.AdamW, lr=0.01, foreach=True),
        partial(torch.optim.AdamW, lr=0.01, fused=True, amsgrad=True),
        partial(torch.optim.RMSprop, lr=0.001, momentum=0.5, centered=True),
        partial(torch.optim.Adagrad, lr=0.01),
    ],
    ids=str,
)
def test_a_nan_leaves_no_trace_under(optimizer: Any, tmp_path: Path) -> None:
    never_seen(mlp, optimizer, tmp_path)


# -- callbacks


class Averages(WeightAveraging):
    """An exponential moving average of the weights, of every step."""

    def __init__(self) -> None:
        super().__init__(avg_fn=get_ema_avg_fn(0.9))


def test_averaged_weights_stay_finite(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[GradGuard(journal=False), Averages()])
    module = Net(mlp(), SGD)
    fit.fit(module, loader(spoil(regression(40), 20)))
    assert all(p.isfinite().all() for p in module.parameters())


def test_averaging_beside_a_guard_changes_no_bit_of_a_healthy_run(tmp_path: Path) -> None:
    ends = []
    for guards in ([], [GradGuard(journal=False)]):
        fit = trainer(tmp_path, callbacks=[*guards, Averages()])
        fit.fit(Net(mlp(), ADAM), loader(regression(40)))
        ends.append(frozen_copy(fit))
    assert same(*ends)


class Scored(Net):
    """A module that logs its loss, which is what the best checkpoint is chosen by."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


def test_every_checkpoint_beside_a_guard_holds_finite_weights(tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path / "saved", monitor="loss", save_top_k=-1, every_n_train_steps=1)
    fit = trainer(tmp_path, callbacks=[GradGuard(journal=False), saves], enable_checkpointing=True)
    fit.fit(Scored(mlp(), SGD), loader(spoil(regression(30), 20, 21)))
    files = sorted((tmp_path / "saved").glob("*.ckpt"))
    assert len(files) >= 28
    for file in files:
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


class Rated(Net):
    """A module with a learning rate that a tuner can set."""

    def __init__(self) -> None:
        super().__init__(mlp(), None)
        self.lr = 1e-3

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def test_the_rate_finder_is_left_alone(tmp_path: Path) -> None:
    found = []
    for guards in ([], [GradGuard(journal=False)]):
        fit, module = trainer(tmp_path, callbacks=guards), Rated()
        finder = Tuner(fit).lr_find(module, loader(regression(60)), num_training=50, max_lr=10.0)
        assert finder is not None
        found.append(finder.suggestion())
        fit.fit(module, loader(spoil(regression(40), 20)))
        assert not guards or [i.step for i in guards[0].incidents] == [20]
    assert found[0] == found[1]


# -- the command line


class Configured(Net):
    """A module that the command line can build."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(mlp(), partial(torch.optim.Adam, lr=lr))

    def train_dataloader(self) -> Any:
        return loader(spoil(regression(30), 20, value=math.nan))


YAML = """
trainer:
  max_epochs: 1
  logger: false
  accelerator: cpu
  enable_checkpointing: false
  enable_progress_bar: false
  default_root_dir: {root}
  callbacks:
    - class_path: lightning_gradguard.GradGuard
      init_args:
        journal: false
        on_exhausted: continue
        detectors:
          - class_path: lightning_gradguard.detectors.NonFinite
          - class_path: lightning_gradguard.detectors.Spike
            init_args: {{factor: 20.0}}
        remedies:
          - class_path: lightning_gradguard.remedies.Skip
          - class_path: lightning_gradguard.remedies.Clip
            init_args: {{algorithm: adaptive, clip_factor: 0.02}}
        policy:
          class_path: lightning_gradguard.Policy
          init_args: {{patience: 7}}
        snapshots:
          class_path: lightning_gradguard.SnapshotStore
          init_args: {{every: 30}}
"""


def test_the_command_line_builds_nested_detectors_and_remedies(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    file = tmp_path / "run.yaml"
    file.write_text(YAML.format(root=tmp_path))
    cli = LightningCLI(Configured, args=["fit", "--config", str(file)], save_config_callback=None)
    guard = next(c for c in cli.trainer.callbacks if isinstance(c, GradGuard))
    assert [type(d).__name__ for d in guard.guard._detectors] == ["NonFinite", "Spike"]
    assert guard.guard._detectors[1].factor == 20.0
    assert guard.guard._remedies[1].clip_factor == 0.02
    assert guard.guard._policy.patience == 7 and guard.guard._snapshots.every == 30
    assert [i.step for i in guard.incidents] == [20]
