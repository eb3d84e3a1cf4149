"""What else a Trainer does: checkpoints, averages, tuners, loggers, debugging modes, the command line, opting in."""

from __future__ import annotations

import importlib.metadata
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as ready_made
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradguard import GradGuard
from lightning_gradguard.callback import from_environment
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, trainer
from tests.compatibility.matrix import cells
from tests.compatibility.runs import BAD, STEPS, Bursts, finite, fit, thrown_back, unnoticed

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
ADAM = partial(torch.optim.Adam, lr=0.01)
cell = pytest.mark.cell


class Scored(Net):
    """A module that logs its loss and is validated, which is what checkpoints and early stopping go by."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("score", super().training_step(batch, batch_idx))


# -- options of the Trainer

OPTIONS: dict[str, dict[str, Any]] = {
    "`gradient_clip_val`, by norm": {"gradient_clip_val": 0.5},
    "`gradient_clip_val`, by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "`barebones`": {"barebones": True},
    "no logger, no checkpoints": {},
    "`deterministic`": {"deterministic": True},
    "`inference_mode=False`": {"inference_mode": False},
    "`use_distributed_sampler=False`": {"use_distributed_sampler": False},
    "`limit_train_batches`": {"limit_train_batches": 38},
    "a profiler": {"profiler": "simple"},
}


@pytest.fixture(autouse=True)
def _any_order() -> Any:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("options", cells("Trainer", OPTIONS, "healthy", "sick"))
def test_option(options: dict[str, Any], tmp_path: Path) -> None:
    if options.get("barebones"):
        # It refuses what the other runs here switch off.
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        options = {**options, **dict.fromkeys(off)}
    # The limit counts batches, of which the sick run has one more.
    batches = regression(STEPS)
    if "limit_train_batches" in options:
        batches = batches[:38] + batches[:2]
        guard = GradGuard(journal=False)
        ends = [frozen_copy(fit(Net(mlp(), ADAM), batches, tmp_path, g, **options)) for g in ([], [guard])]
        assert same(*ends) and not guard.incidents
        fit(module := Net(mlp(), ADAM), spoil(batches, BAD), tmp_path, [guard], **options)
        assert finite(module.state_dict()) and [i.step for i in guard.incidents] == [BAD]
        return
    unnoticed(lambda: Net(mlp(), ADAM), tmp_path, batches=batches, **options)
    if "gradient_clip_val" in options:
        return  # Which leaves no burst to be thrown back by.
    thrown_back(lambda: Bursts(mlp(), ADAM), tmp_path, **options)


@cell(
    "Trainer",
    "`detect_anomaly`",
    "healthy",
    "sick",
    note="torch raises at the first NaN in a backward pass, as it is asked to",
)
def test_detect_anomaly(tmp_path: Path) -> None:
    batches, guard = regression(STEPS), GradGuard(journal=False)
    ends = [frozen_copy(fit(Net(mlp(), ADAM), batches, tmp_path, g, detect_anomaly=True)) for g in ([], [guard])]
    assert same(*ends) and not guard.incidents
    thrown_back(lambda: Bursts(mlp(), ADAM), tmp_path, detect_anomaly=True)
    module = Net(mlp(), ADAM)
    with pytest.raises(RuntimeError, match="nan values"):
        fit(module, spoil(batches, BAD), tmp_path, [GradGuard(journal=False)], detect_anomaly=True)
    assert finite(module.state_dict())


@cell("Trainer", "`fast_dev_run`", "healthy", "sick", note="one batch; nothing is written")
def test_fast_dev_run(tmp_path: Path) -> None:
    batches = regression(3)
    ends = [frozen_copy(fit(Net(mlp(), ADAM), batches, tmp_path, g, fast_dev_run=True)) for g in ([], [GradGuard()])]
    assert same(*ends)
    run = fit(Net(mlp(), ADAM), spoil(batches, 0), tmp_path, [GradGuard()], fast_dev_run=True)
    assert finite(frozen_copy(run)) and list(tmp_path.iterdir()) == []


@cell("Trainer", "`overfit_batches`", "healthy", "sick", note="a NaN of every second step is skipped every time")
def test_overfit_batches(tmp_path: Path) -> None:
    data, more = regression(2), {"overfit_batches": 2, "max_epochs": 30}
    ends = [frozen_copy(fit(Net(mlp(), ADAM), data, tmp_path, g, **more)) for g in ([], [GradGuard(journal=False)])]
    assert same(*ends)
    end = frozen_copy(fit(Net(mlp(), ADAM), spoil(data, 1), tmp_path, [GradGuard(journal=False)], **more))
    alone = frozen_copy(fit(Net(mlp(), ADAM), data[:1], tmp_path, max_epochs=30, overfit_batches=1))
    assert same(alone, end)


@cell("Trainer", "the sanity check, validation, `limit_val_batches`, `val_check_interval`", "healthy", "sick")
def test_validation(tmp_path: Path) -> None:
    def run(batches: Any, *guards: GradGuard) -> Any:
        more = {"num_sanity_val_steps": 2, "limit_val_batches": 1, "val_check_interval": 7, "max_epochs": 2}
        torch.manual_seed(9)
        done = trainer(tmp_path, callbacks=list(guards), **more)
        # What is validated is no batch to learn from, whatever it holds.
        done.fit(Scored(mlp(norm=True), ADAM), loader(batches), loader(spoil(regression(3), 0, value=math.inf)))
        return frozen_copy(done)

    batches, guard = regression(STEPS), GradGuard(journal=False)
    assert same(run(batches), run(batches, guard)) and not guard.incidents
    assert finite(run(spoil(batches, BAD), guard := GradGuard(journal=False)))
    assert [i.step for i in guard.incidents] == [BAD, BAD + STEPS]


# -- averages


AVERAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "`WeightAveraging`": ("WeightAveraging", {"avg_fn": get_ema_avg_fn(0.9)}),
    "`EMAWeightAveraging`": ("EMAWeightAveraging", {"decay": 0.9}),
    "`StochasticWeightAveraging`": (
        "StochasticWeightAveraging",
        {"swa_lrs": 0.005, "swa_epoch_start": 2, "annealing_epochs": 1},
    ),
}


@pytest.mark.parametrize(
    "spec",
    cells(
        *("Trainer", AVERAGES, "healthy", "sick"),
        notes=dict.fromkeys(AVERAGES, "a skipped step's unchanged weights count once more in the average"),
    ),
)
def test_averages(spec: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    name, options = spec
    if not hasattr(ready_made, name):
        pytest.skip(f"this lightning has no {name}")
    make = partial(getattr(ready_made, name), **options)

    def run(batches: Any, *guards: GradGuard) -> Any:
        return frozen_copy(fit(Net(mlp(), SGD), batches, tmp_path, [*guards, make()], max_epochs=4))

    batches, guard = regression(STEPS), GradGuard(journal=False)
    assert same(run(batches), run(batches, guard)) and not guard.incidents
    # In the end the module has the average's weights.
    assert finite(run(spoil(batches, BAD, BAD + 1), guard := GradGuard(journal=False))) and guard.incidents


# -- what is kept, and when it ends


@cell("Trainer", "`ModelCheckpoint`", "healthy", "sick", note="every checkpoint holds finite weights, the best one too")
def test_checkpoints(tmp_path: Path) -> None:
    def run(name: str, batches: Any, *guards: GradGuard) -> ModelCheckpoint:
        saves = ModelCheckpoint(tmp_path / name, monitor="loss", save_top_k=-1, every_n_train_steps=1)
        fit(Scored(mlp(), SGD), batches, tmp_path, [*guards, saves], enable_checkpointing=True)
        return saves

    batches = regression(30)
    plain, guarded = run("plain", batches), run("guarded", batches, GradGuard(journal=False))
    assert Path(plain.best_model_path).name == Path(guarded.best_model_path).name
    best = [torch.load(saves.best_model_path, weights_only=True)["state_dict"] for saves in (plain, guarded)]
    assert same(*best)
    saves = run("sick", spoil(batches, 20, 21), GradGuard(journal=False))
    files = sorted((tmp_path / "sick").glob("*.ckpt"))
    assert len(files) >= 28 and finite([torch.load(file, weights_only=True)["state_dict"] for file in files])
    assert math.isfinite(float(saves.best_model_score or math.nan))


@cell("Trainer", "`EarlyStopping`", "healthy", "sick")
def test_early_stopping(tmp_path: Path) -> None:
    def run(batches: Any, *guards: GradGuard) -> tuple[int, Any]:
        stops = EarlyStopping("score", patience=2, check_finite=True)
        done = trainer(tmp_path, callbacks=[*guards, stops], max_epochs=6, num_sanity_val_steps=0)
        done.fit(Scored(mlp(), SGD), loader(batches), loader(regression(3, seed=2)))
        return done.global_step, frozen_copy(done)

    batches, guard = regression(STEPS), GradGuard(journal=False)
    plain = run(batches)
    assert same(plain, run(batches, guard)) and not guard.incidents
    # Unguarded the score is NaN after the first epoch, which ends the run.
    assert run(spoil(batches, BAD))[0] == STEPS
    sick = run(spoil(batches, BAD), GradGuard(journal=False))
    assert sick[0] == plain[0] > STEPS and finite(sick[1])


# -- tuners


class Rated(Net):
    """A module with a learning rate that a tuner can set."""

    def __init__(self) -> None:
        super().__init__(mlp(), None)
        self.lr = 1e-3

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@cell("Trainer", "`Tuner.lr_find`", "healthy", "sick", note="Lightning takes callbacks out for the search")
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


class Sized(LightningModule):
    """A module with a batch size that a tuner can set."""

    def __init__(self, *, spoilt: bool = False) -> None:
        super().__init__()
        self.network, self.batch_size, self.spoilt = mlp(), 2, spoilt

    def train_dataloader(self) -> Any:
        batches = spoil(regression(STEPS), BAD) if self.spoilt else regression(STEPS)
        whole = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        return DataLoader(TensorDataset(*whole), batch_size=self.batch_size)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return ADAM(self.parameters())


@cell("Trainer", "`Tuner.scale_batch_size`", "healthy", "sick", note="Lightning takes callbacks out for the search")
def test_the_batch_size_finder(tmp_path: Path) -> None:
    ends = []
    for guards in ([], [GradGuard(journal=False)]):
        run, module = trainer(tmp_path, callbacks=guards), Sized()
        size = Tuner(run).scale_batch_size(module, max_trials=3, steps_per_trial=2)
        torch.manual_seed(9)
        run.fit(module)
        assert not guards or not guards[0].incidents
        ends.append((size, frozen_copy(run)))
    assert same(*ends)
    guard, module = GradGuard(journal=False), Sized(spoilt=True)
    run = trainer(tmp_path, callbacks=[guard])
    found = Tuner(run).scale_batch_size(module, max_trials=3, steps_per_trial=2)
    run.fit(module)
    assert found == ends[0][0] and [i.step for i in guard.incidents] == [8 * BAD // found]
    assert finite(frozen_copy(run))


# -- loggers

LOGGERS: dict[str, Any] = {
    "one logger": lambda root: CSVLogger(root, "csv"),
    "several loggers": lambda root: [TensorBoardLogger(root, "board"), CSVLogger(root, "csv")],
}


@pytest.mark.parametrize("make", cells("Trainer", LOGGERS, "healthy", "sick"))
def test_loggers(make: Any, tmp_path: Path) -> None:
    batches = regression(STEPS)
    ends = []
    for guards in ([], [GradGuard(log_every=10)]):
        ends.append(frozen_copy(fit(Net(mlp(), ADAM), batches, tmp_path, guards, logger=make(str(tmp_path)))))
    assert same(*ends)
    guard = GradGuard(log_every=10)
    run = fit(Net(mlp(), ADAM), spoil(batches, BAD), tmp_path, [guard], logger=make(str(tmp_path)))
    assert finite(frozen_copy(run)) and [i.step for i in guard.incidents] == [BAD]
    assert (Path(str(run.log_dir)) / "gradguard.jsonl").exists()


# -- one guard a Trainer


@pytest.mark.parametrize("modes", [("guard", "guard"), ("guard", "watch")])
@cell("Trainer", "two guards in one Trainer", "refused", note="they would remedy each other's work")
def test_two_guards(modes: Any, tmp_path: Path) -> None:
    with pytest.raises((MisconfigurationException, RuntimeError), match=r"(Two|more than one).*GradGuard"):
        fit(Net(mlp(), ADAM), regression(2), tmp_path, [GradGuard(journal=False, mode=mode) for mode in modes])


# -- opting in without code

GROUPS = ("lightning.pytorch.callbacks_factory", "pytorch_lightning.callbacks_factory")
FACTORY = "lightning_gradguard.callback:from_environment"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Lightning find the entry point of this checkout, whatever is installed."""
    from lightning.fabric.utilities import registry

    def points(group: str) -> list[importlib.metadata.EntryPoint]:
        known = group in GROUPS
        return [importlib.metadata.EntryPoint("gradguard", FACTORY, group)] if known else []

    monkeypatch.setattr(registry, "entry_points", points)


def guards_of(run: Trainer) -> list[GradGuard]:
    return [c for c in run.callbacks if isinstance(c, GradGuard)]  # type: ignore[attr-defined]


OPT_IN = ("Trainer", "opting in through the environment, without code")


@cell(*OPT_IN, "healthy", "sick", note="`LIGHTNING_GRADGUARD=1`; a guard that the user passes has precedence")
@pytest.mark.usefixtures("installed")
def test_opting_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    batches = regression(STEPS)
    plain = fit(Net(mlp(), ADAM), batches[:BAD] + batches[BAD + 1 :], tmp_path)
    assert guards_of(plain) == []
    monkeypatch.setenv("LIGHTNING_GRADGUARD", "1")
    healthy = fit(Net(mlp(), ADAM), batches[:BAD] + batches[BAD + 1 :], tmp_path)
    sick = fit(Net(mlp(), ADAM), spoil(batches, BAD), tmp_path)
    assert [len(guard.incidents) for run in (healthy, sick) for guard in guards_of(run)] == [0, 1]
    assert same(frozen_copy(plain), frozen_copy(healthy)) and same(frozen_copy(plain), frozen_copy(sick))


@pytest.mark.usefixtures("installed")
def test_a_guard_from_the_environment_gives_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIGHTNING_GRADGUARD", "1")
    mine, last = GradGuard(journal=False), Callback()
    run = fit(Net(mlp(), ADAM), spoil(regression(STEPS), BAD), tmp_path, [mine, last])
    assert guards_of(run) == [mine] and last in run.callbacks and len(mine.incidents) == 1  # type: ignore[attr-defined]


@pytest.mark.usefixtures("installed")
def test_a_guard_from_the_environment_and_one_in_code_share_checkpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIGHTNING_GRADGUARD", "1")
    run = fit(Net(mlp(), ADAM), spoil(regression(STEPS), BAD), tmp_path)
    run.save_checkpoint(tmp_path / "end.ckpt")
    monkeypatch.delenv("LIGHTNING_GRADGUARD")
    mine = GradGuard(journal=False)
    more = trainer(tmp_path, callbacks=[mine], max_epochs=2)
    more.fit(Net(mlp(), ADAM), loader(regression(STEPS)), ckpt_path=tmp_path / "end.ckpt")
    assert [i.step for i in mine.incidents] == [BAD]


@pytest.mark.parametrize("value", ["", "0", "false", "OFF"])
def test_nobody_is_guarded_who_did_not_ask(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_GRADGUARD", value)
    assert from_environment() == []


def test_the_package_declares_the_entry_points() -> None:
    from configparser import ConfigParser

    declared = ConfigParser(interpolation=None)
    declared.read(Path(__file__).parents[2] / "setup.cfg")
    assert all(FACTORY in declared["options.entry_points"][group] for group in GROUPS)


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


@cell("Trainer", "`LightningCLI`, a YAML with nested detectors and remedies", "sick")
def test_the_command_line_builds_nested_detectors_and_remedies(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    file = tmp_path / "run.yaml"
    file.write_text(YAML.format(root=tmp_path))
    cli = LightningCLI(Configured, args=["fit", "--config", str(file)], save_config_callback=None)
    guard = next(c for c in cli.trainer.callbacks if isinstance(c, GradGuard))
    assert [type(d).__name__ for d in guard.guard._parts.detectors] == ["NonFinite", "Spike"]
    assert guard.guard._parts.detectors[1].factor == 20.0
    assert guard.guard._parts.remedies[1].clip_factor == 0.02
    assert guard.guard._parts.policy.patience == 7 and guard.guard._parts.snapshots.every == 30
    assert [i.step for i in guard.incidents] == [20]
