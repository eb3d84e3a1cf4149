"""One guard for ``lightning.pytorch`` and for its twin ``pytorch_lightning``."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_gradguard import GradGuard, twins
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, trainer
from tests.twin import VARIABLE

twin: Any = pytest.importorskip("pytorch_lightning")
pytestmark = pytest.mark.skipif(VARIABLE in os.environ, reason="the twin stands in for lightning.pytorch")
ROOT = Path(__file__).parents[1]


class TwinNet(twin.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]
    """A small regression of the twin's."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(norm=True)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def twin_trainer(root: Path, **options: Any) -> Any:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return twin.Trainer(accelerator="cpu", default_root_dir=root, **{**quiet, "max_epochs": 1, **options})


def test_a_run_of_the_twin_is_guarded_without_a_trace(tmp_path: Path) -> None:
    batches, ends = regression(40), []
    for guards, chosen in (([], batches[:20] + batches[21:]), ([GradGuard(journal=False)], spoil(batches, 20))):
        run = twin_trainer(tmp_path, callbacks=guards)
        run.fit(TwinNet(), loader(chosen))
        ends.append(frozen_copy(run))
    assert same(*ends)
    assert [(i.step, i.culprit) for i in guards[0].incidents] == [(20, "batch")]


def test_a_checkpoint_of_the_twin_is_resumed(tmp_path: Path) -> None:
    run = twin_trainer(tmp_path, callbacks=[GradGuard(journal=False)])
    run.fit(TwinNet(), loader(spoil(regression(30), 20)))
    run.save_checkpoint(tmp_path / "end.ckpt")
    guard = GradGuard(journal=False)
    more = twin_trainer(tmp_path, callbacks=[guard], max_epochs=2)
    more.fit(TwinNet(), loader(regression(30)), ckpt_path=tmp_path / "end.ckpt")
    assert [i.step for i in guard.incidents] == [20]


def test_both_twins_train_in_one_process(tmp_path: Path) -> None:
    guards = [GradGuard(journal=False), GradGuard(journal=False)]
    trainer(tmp_path, callbacks=[guards[0]]).fit(Net(mlp(), torch.optim.SGD), loader(spoil(regression(30), 20)))
    twin_trainer(tmp_path, callbacks=[guards[1]]).fit(TwinNet(), loader(spoil(regression(30), 20)))
    assert [[i.step for i in guard.incidents] for guard in guards] == [[20], [20]]
    for guard in (guards[0], pickle.loads(pickle.dumps(guards[1]))):
        assert isinstance(guard, Callback) and isinstance(guard, twin.Callback)


def test_what_cannot_be_guarded_raises_the_exception_of_the_trainers_own_package(tmp_path: Path) -> None:
    guards = [GradGuard(journal=False), GradGuard(journal=False, mode="watch")]
    error = twins.part(twin_trainer(tmp_path), "utilities.exceptions.MisconfigurationException")
    assert error.__module__.startswith("lightning_fabric.")
    with pytest.raises(error, match="Two GradGuard"):
        twin_trainer(tmp_path, callbacks=guards).fit(TwinNet(), loader(regression(2)))


def test_the_twins_command_line_takes_it(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    from pytorch_lightning.cli import LightningCLI

    GradGuard()
    file = tmp_path / "run.yaml"
    file.write_text(
        "trainer:\n  max_epochs: 1\n  logger: false\n  enable_checkpointing: false\n  callbacks:\n"
        "    - class_path: lightning_gradguard.GradGuard\n      init_args: {mode: watch}\n"
    )
    cli = LightningCLI(TwinNet, args=["--config", str(file)], run=False, save_config_callback=None)
    assert [c.guard.mode for c in cli.trainer.callbacks if isinstance(c, GradGuard)] == ["watch"]


def test_opting_in_works_for_the_twin_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lightning_fabric.utilities import registry

    group, factory = "pytorch_lightning.callbacks_factory", "lightning_gradguard.callback:from_environment"
    point = importlib.metadata.EntryPoint("gradguard", factory, group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    monkeypatch.setenv("LIGHTNING_GRADGUARD", "1")
    run = twin_trainer(tmp_path)
    run.fit(TwinNet(), loader(spoil(regression(30), 20)))
    assert [[i.step for i in c.incidents] for c in run.callbacks if isinstance(c, GradGuard)] == [[20]]


SCRIPT = """
import sys
{imports}
import torch
class M(pl.LightningModule):
    def __init__(self): super().__init__(); self.net = torch.nn.Linear(8, 1)
    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean() * (float("nan") if index == 9 else 1)
    def configure_optimizers(self): return torch.optim.SGD(self.parameters(), lr=0.05)
guard = GradGuard(journal=False)
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(160, 8)), batch_size=8)
run = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=guard)
run.fit(M(), data)
assert [i.step for i in guard.incidents] == [9]
print("loaded:", *(name for name in ("lightning.pytorch", "pytorch_lightning") if name in sys.modules))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("imports", "loaded"),
    [
        ("import pytorch_lightning as pl\nfrom lightning_gradguard import GradGuard", "pytorch_lightning"),
        ("import lightning.pytorch as pl\nfrom lightning_gradguard import GradGuard", "lightning.pytorch"),
        ("from lightning_gradguard import GradGuard\nimport lightning.pytorch as pl", "lightning.pytorch"),
        (
            "from lightning_gradguard import GradGuard\nimport pytorch_lightning as pl",
            "lightning.pytorch pytorch_lightning",
        ),
    ],
    ids=["twin", "lightning", "guard, then lightning", "guard, then twin"],
)
def test_neither_is_imported_for_the_others_sake(imports: str, loaded: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT.format(imports=imports)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert f"loaded: {loaded}\n" in done.stdout, done.stderr


@pytest.mark.slow
def test_darts_is_guarded(tmp_path: Path) -> None:
    models: Any = pytest.importorskip("darts.models")
    from darts import TimeSeries

    values = torch.sin(torch.arange(200.0) / 5).numpy()
    spoilt = values.copy()
    spoilt[100] = float("nan")
    ends = []
    for series, guards in ((values, []), (values, [GradGuard(journal=False)]), (spoilt, [GradGuard(journal=False)])):
        options = {"accelerator": "cpu", "callbacks": guards, "enable_progress_bar": False}
        model = models.NBEATSModel(
            12, 4, num_stacks=2, layer_widths=8, n_epochs=2, random_state=0, pl_trainer_kwargs=options
        )
        model.fit(TimeSeries.from_values(series.astype("float32")))
        ends.append({name: p.detach().clone() for name, p in model.model.state_dict().items()})
    assert same(*ends[:2])
    assert guards[0].incidents and all(p.isfinite().all() for p in ends[2].values())
