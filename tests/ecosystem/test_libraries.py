"""One small model of each library, on data made on the spot: healthy bit-identical, and one bad batch survived."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import GradGuard
from tests.builders import same

pytestmark = [pytest.mark.ecosystem, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

State = dict[str, Tensor]
Train = Callable[[Path, list[Any], bool], State]
"""Trains in a directory, with callbacks, on data of which some are spoilt or not, and returns the weights."""
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Some leave files where they are run.


def waves(*, sick: bool, length: int = 240, value: float = math.nan) -> Any:
    """Return a sine with noise; one value of it may be NaN, or absurd where the library itself refuses a NaN."""
    generator = torch.Generator().manual_seed(0)
    values = torch.sin(torch.arange(float(length)) / 5) + 0.1 * torch.randn(length, generator=generator)
    if sick:
        values[length // 2] = value
    return values.numpy()


def kept(module: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def darts(root: Path, callbacks: list[Any], sick: bool) -> State:
    models = pytest.importorskip("darts.models")
    from darts import TimeSeries

    options = {
        "callbacks": callbacks,
        **{k: v for k, v in QUIET.items() if k not in ("logger", "enable_checkpointing")},
    }
    model = models.NBEATSModel(
        12, 4, num_stacks=2, layer_widths=8, n_epochs=2, random_state=0, work_dir=str(root), pl_trainer_kwargs=options
    )
    model.fit(TimeSeries.from_values(waves(sick=sick).astype("float32")))
    return kept(model.model)


def neuralforecast(root: Path, callbacks: list[Any], sick: bool) -> State:
    library = pytest.importorskip("neuralforecast")
    import pandas
    from neuralforecast.models import MLP

    table = pandas.DataFrame({"unique_id": "a", "ds": pandas.RangeIndex(240), "y": waves(sick=sick, value=1e20)})
    model = MLP(
        h=4,
        input_size=12,
        hidden_size=8,
        max_steps=80,
        random_seed=1,
        callbacks=callbacks,
        default_root_dir=root,
        **QUIET,
    )
    library.NeuralForecast([model], freq=1).fit(table)
    return kept(model)


def lightly(root: Path, callbacks: list[Any], sick: bool) -> State:
    pytest.importorskip("lightly")
    import pytorch_lightning
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    class SimCLR(pytorch_lightning.LightningModule):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), SimCLRProjectionHead(16, 16, 8)
            self.loss = NTXentLoss()

        def training_step(self, batch: Any, index: int) -> Any:
            first, second = (self.head(self.backbone(view)) for view in batch)
            return self.loss(first, second)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.06)

    torch.manual_seed(1)
    x = torch.randn(640, 8)
    views = x + 0.1 * torch.randn(640, 8), x + 0.1 * torch.randn(640, 8)
    if sick:
        views[0][330] = math.nan
    model, data = SimCLR(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*views), batch_size=16)
    pytorch_lightning.Trainer(max_epochs=1, callbacks=callbacks, default_root_dir=root, **QUIET).fit(model, data)
    return kept(model)


def pytorch_tabular(root: Path, callbacks: list[Any], sick: bool) -> State:
    pytest.importorskip("pytorch_tabular")
    import pandas
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(640, 4, generator=generator)
    target = values.sum(1)
    if sick:
        target[100] = math.nan
    names = [f"x{i}" for i in range(4)]
    table = pandas.DataFrame({**dict(zip(names, values.T.numpy(), strict=True)), "y": target.numpy()})
    model = TabularModel(
        data_config=DataConfig(target=["y"], continuous_cols=names, normalize_continuous_features=False),
        model_config=CategoryEmbeddingModelConfig(task="regression", layers="16-8"),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=16,
            max_epochs=2,
            accelerator="cpu",
            early_stopping=None,
            checkpoints=None,
            load_best=False,
            progress_bar="none",
            trainer_kwargs={"default_root_dir": str(root)},
        ),
        verbose=False,
    )
    model.fit(train=table, validation=table[:64].fillna(0.0), seed=1, callbacks=callbacks)
    return kept(model.model)


def pytorch_forecasting(root: Path, callbacks: list[Any], sick: bool) -> State:
    library = pytest.importorskip("pytorch_forecasting")
    import lightning.pytorch
    import pandas

    table = pandas.DataFrame({"series": "a", "time": range(240), "value": waves(sick=False)})
    data = library.TimeSeriesDataSet(
        table,
        time_idx="time",
        target="value",
        group_ids=["series"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["value"],
    )
    torch.manual_seed(1)
    model = library.NBeats.from_dataset(data, widths=[8, 16], backcast_loss_ratio=0.1, learning_rate=1e-3)
    batches = list(data.to_dataloader(train=False, batch_size=8))
    if sick:
        batches[10][0]["encoder_cont"].mul_(1e12)  # of a NaN the library makes a loss without a gradient
    run = lightning.pytorch.Trainer(max_epochs=3, callbacks=callbacks, default_root_dir=root, **QUIET)
    run.fit(model, torch.utils.data.DataLoader(copy.deepcopy(batches), batch_size=None))
    return kept(model)


def gluonts(root: Path, callbacks: list[Any], sick: bool) -> State:
    pytest.importorskip("gluonts.torch")
    from gluonts.dataset.common import ListDataset
    from gluonts.torch import SimpleFeedForwardEstimator

    torch.manual_seed(1)
    import numpy

    numpy.random.seed(1)
    data = ListDataset([{"start": "2024-01-01", "target": waves(sick=False) * (1e20 if sick else 1.0)}], freq="D")
    options = {"max_epochs": 2, "callbacks": callbacks, "default_root_dir": str(root), **QUIET}
    options.pop("enable_checkpointing")
    estimator = SimpleFeedForwardEstimator(
        4, 12, hidden_dimensions=[8], num_batches_per_epoch=20, trainer_kwargs=options
    )
    return kept(estimator.train_model(data).trained_net)


def chemprop(root: Path, callbacks: list[Any], sick: bool) -> State:
    pytest.importorskip("chemprop")
    import lightning.pytorch
    import numpy
    from chemprop import data, models
    from chemprop import nn as parts

    chains = ["C" * i + end for i in range(1, 41) for end in ("O", "N", "Cl", "F")]
    targets = numpy.array([[float(len(chain))] for chain in chains]) / 20.0
    points = [data.MoleculeDatapoint.from_smi(chain, y) for chain, y in zip(chains, targets, strict=True)]
    dataset = data.MoleculeDataset(points)
    torch.manual_seed(1)
    model = models.MPNN(parts.BondMessagePassing(d_h=16), parts.MeanAggregation(), parts.RegressionFFN(input_dim=16))
    batches = list(data.build_dataloader(dataset, batch_size=8, shuffle=False))
    if sick:
        batches[10].bmg.V[0] = math.nan
    run = lightning.pytorch.Trainer(max_epochs=1, callbacks=callbacks, default_root_dir=root, **QUIET)
    run.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
    return kept(model)


LIBRARIES: dict[str, Train] = {
    "chemprop": chemprop,
    "darts": darts,
    "gluonts": gluonts,
    "lightly": lightly,
    "neuralforecast": neuralforecast,
    "pytorch-forecasting": pytorch_forecasting,
    "pytorch-tabular": pytorch_tabular,
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_healthy_run_ends_bit_identical(name: str, tmp_path: Path) -> None:
    guard = GradGuard(journal=False)
    ends = [LIBRARIES[name](tmp_path, guards, False) for guards in ([], [guard])]
    assert same(*ends) and not guard.incidents


# Each batch of neuralforecast's holds all windows of the series, and it refuses a NaN: no step of a run is worse than
# the others.
@pytest.mark.parametrize("name", [name for name in LIBRARIES if name != "neuralforecast"])
def test_a_sick_run_ends_with_finite_weights(name: str, tmp_path: Path) -> None:
    guard = GradGuard(journal=False)
    end = LIBRARIES[name](tmp_path, [guard], True)
    assert all(value.isfinite().all() for value in end.values() if value.is_floating_point())
    assert guard.incidents
