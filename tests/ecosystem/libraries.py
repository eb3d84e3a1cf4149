"""One small model of each library, trained on data made on the spot, healthy or with its typical trouble."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradguard import GradGuard, Guard
from tests.builders import mlp, regression, spoil

State = dict[str, Tensor]
Train = Callable[[Path, list[Any], bool], State]
"""Trains in a directory, with a guard or none, healthy or sick, and returns the weights."""
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


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

    # Many series, one a batch: the spoilt one is one step of twenty.
    values = [waves(sick=sick and index == 7, length=60, value=1e20) for index in range(20)]
    series = {"unique_id": [i for i in range(20) for _ in range(60)], "ds": [*range(60)] * 20}
    table = pandas.DataFrame({**series, "y": [float(value) for wave in values for value in wave]})
    model = MLP(
        h=4,
        input_size=12,
        hidden_size=8,
        max_steps=100,
        batch_size=1,
        random_seed=1,
        callbacks=callbacks,
        default_root_dir=root,
        **QUIET,
    )
    forecast = library.NeuralForecast([model], freq=1)
    forecast.fit(table)
    return kept(forecast.models[0])  # it trains a copy


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


def scvi_tools(root: Path, callbacks: list[Any], sick: bool) -> State:
    library = pytest.importorskip("scvi")
    import anndata
    import numpy

    draw = numpy.random.default_rng(0)
    counts = draw.poisson(draw.gamma(2.0, 2.0, (320, 1)) * draw.gamma(1.0, 1.0, (1, 20))).astype("float32")
    data = anndata.AnnData(counts)
    library.settings.seed = 1
    library.model.SCVI.setup_anndata(data)
    model = library.model.SCVI(data, n_hidden=16, n_latent=2)
    options = {key: QUIET[key] for key in ("accelerator", "logger", "enable_progress_bar", "enable_model_summary")}
    options |= {"max_epochs": 4, "batch_size": 16, "train_size": 1.0, "plan_kwargs": {"lr": 10.0 if sick else 1e-3}}
    model.train(callbacks=callbacks, default_root_dir=str(root), **options)
    return kept(model.module)


def anomalib(root: Path, callbacks: list[Any], sick: bool) -> State:
    pytest.importorskip("anomalib")
    from anomalib.data import ImageBatch
    from anomalib.engine import Engine
    from anomalib.models import Ganomaly
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Resize

    torch.manual_seed(1)
    batches = [ImageBatch(image=x, gt_label=torch.zeros(8, dtype=torch.bool)) for x in torch.rand(20, 8, 3, 32, 32)]
    if sick:
        batches[12].image[0, 0, 0, 0] = 1e12  # a NaN its loss refuses
    none = dict.fromkeys(("evaluator", "visualizer", "post_processor"), False)
    model = Ganomaly(
        batch_size=8, n_features=8, latent_vec_size=8, pre_processor=PreProcessor(Resize((32, 32))), **none
    )
    options = {key: value for key, value in QUIET.items() if key != "enable_checkpointing"}
    engine = Engine(max_epochs=1, devices=1, callbacks=callbacks, default_root_dir=root, **options)
    engine.fit(model, train_dataloaders=torch.utils.data.DataLoader(batches, batch_size=None))
    return kept(model)


class Named(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Samples as lightning-uq-box wants them."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input": self.x[index], "target": self.y[index]}


def lightning_uq_box(root: Path, callbacks: list[Any], sick: bool) -> State:
    methods = pytest.importorskip("lightning_uq_box.uq_methods")
    import lightning.pytorch

    torch.manual_seed(1)
    x = torch.rand(640, 1) * 4 - 2
    y = torch.sin(3 * x) + 0.1 * torch.randn(640, 1)
    if sick:
        y[330] = 1e20
    network = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 2))
    model = methods.MVERegression(network, optimizer=partial(torch.optim.Adam, lr=3e-3), burnin_epochs=1)
    run = lightning.pytorch.Trainer(max_epochs=3, callbacks=callbacks, default_root_dir=root, **QUIET)
    run.fit(model, torch.utils.data.DataLoader(Named(x, y), batch_size=16))
    return kept(model)


def transformers(root: Path, callbacks: list[Any], sick: bool) -> State:
    library = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(0, 50, (160, 1), generator=generator)
    tokens = (starts + torch.arange(16)) % 50
    shape = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0}
    torch.manual_seed(1)
    model = library.GPT2LMHeadModel(library.GPT2Config(**shape, eos_token_id=0))
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "use_cpu": True}
    arguments = library.TrainingArguments(
        str(root), num_train_epochs=2, per_device_train_batch_size=8, learning_rate=1e5 if sick else 1e-3, **quiet
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    library.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks).train()
    return kept(model)


def accelerate(root: Path, guards: list[Any], sick: bool) -> State:
    library = pytest.importorskip("accelerate")
    from lightning_gradguard.integrations.accelerate import guarding

    torch.manual_seed(1)
    accelerator, network = library.Accelerator(cpu=True), mlp(norm=True)
    model, optimizer = accelerator.prepare(network, torch.optim.AdamW(network.parameters(), lr=0.01))
    batches = spoil(regression(60), 30) if sick else regression(60)

    def loop() -> None:
        for x, y in batches:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    for guard in guards:
        guard.bind(model)
        with guarding(guard, optimizer):
            loop()
    if not guards:
        loop()
    return kept(network)


def _guard_of_lightning() -> Any:
    return GradGuard(journal=False)


def _guard_of_transformers() -> Any:
    from lightning_gradguard.integrations.transformers import GradGuardCallback

    return GradGuardCallback(journal=False)


@dataclass(frozen=True, slots=True)
class Library:
    """A library, and a run of it.

    Args:
        requirement: What is installed of it.
        train: The run.
        trouble: What makes it sick, in words.
        guard: Makes the guard that its run takes.
    """

    requirement: str
    train: Train
    trouble: str
    guard: Callable[[], Any] = _guard_of_lightning


# By the names under which they are published; the cheapest to install are lightly and accelerate.
LIBRARIES: dict[str, Library] = {
    "accelerate": Library("accelerate", accelerate, "a NaN in a batch", Guard),
    "anomalib": Library("anomalib", anomalib, "a pixel of 1e12 in a batch of a GAN"),
    "chemprop": Library("chemprop", chemprop, "a NaN among the atoms of a batch"),
    "darts": Library("darts[torch]", darts, "a NaN in the series"),
    "gluonts": Library("gluonts[torch] lightning", gluonts, "a series in units of 1e20"),
    "lightly": Library("lightly", lightly, "a NaN in a view"),
    "lightning-uq-box": Library("lightning-uq-box", lightning_uq_box, "a target of 1e20"),
    "neuralforecast": Library("neuralforecast", neuralforecast, "a value of 1e20 in one of twenty series"),
    "pytorch-forecasting": Library("pytorch-forecasting", pytorch_forecasting, "a window of 1e12"),
    "pytorch-tabular": Library("pytorch-tabular", pytorch_tabular, "a NaN among the targets"),
    "scvi-tools": Library("scvi-tools", scvi_tools, "a learning rate of 10"),
    "transformers": Library("transformers accelerate", transformers, "a learning rate of 1e5", _guard_of_transformers),
}
