"""Train one Inception-style CNN three ways: healthy, with a bad layer, and with the same bad layer under `GradGuard`.

Run it with ``python examples/inception_explosion.py``; add ``--help`` for the data sets and the Trainer's options.

The network has ten convolutions: four in a row, then the six of one Inception module (Szegedy et al., 2015, fig. 2b),
and a linear layer. In the two sick runs the weights of the fourth convolution, and nothing else, are filled with 0.1.

Why the first gradient norm is of the order of 1e10
---------------------------------------------------
One convolution filled with 0.1 is harmless in a narrow network. Four ordinary choices make this one a bomb:

- *Fan-in.* ``conv4`` looks at 768 channels through a 9x9 kernel without padding (the kernel of the primary capsules of
  Sabour et al., 2017): 768 * 9 * 9 = 62,208 inputs a unit. They come out of a ReLU, none is negative, nothing cancels:
  each output is 0.1 * 62,208 = 6,221 times their mean. With PyTorch's default weights (standard deviation
  1 / sqrt(3 * 62,208) = 0.002) it is about 0.6 times their RMS. All that follows is some thousand times too large.
- *Squared error.* The loss is the squared distance to the one-hot target, summed over the classes (Brier score; Hui and
  Belkin, 2021, train classifiers so). Its derivative grows with the logits, so the amplification A shows up twice in a
  gradient: the head's is 2 * error * features, and both factors have grown by A. A**2 is about 1e7.
- *Input scale.* Black is 0, white is 160. PyTorch's default initialisation shrinks the signal at each layer, by about
  as much in all, so that the healthy twin starts with logits of the order of 1 and a gradient norm of about 1e3.
- *No normalisation layer*, which would hide the scale.

1e3 * 1e7 = 1e10: the first norm is 3e9 to 1.1e10 for the seeds 0, 1 and 2. The healthy twin differs in nothing but the
draw of ``conv4``, and the same plain SGD trains it well.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import shutil
import sys
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Threads that wait for each other sleep. Spinning, they burn the processor that the one they wait for needs, where
# others work beside us.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision import datasets
from torchvision.transforms import v2

from lightning_gradguard import GradGuard
from lightning_gradguard.diagnostics import wording

BAD_WEIGHT = 0.1
WHITE = 160.0
WARM_UP = 200
CLASSES = 10
RUNS = ("healthy", "unguarded", "guarded")
WHAT = {
    "healthy": "nothing wrong with it",
    "unguarded": "with a bad fourth convolution",
    "guarded": "with the same bad convolution, and GradGuard",
}


class InceptionNet(LightningModule):
    """Classify 3x32x32 images with ten convolutions and no normalisation layer.

    Args:
        bad_start: Fill the weights of ``conv4`` with 0.1; all else is drawn as in the healthy twin of the same seed.
        lr: Learning rate of SGD with momentum 0.9, after 200 steps of warm-up; small, since the pixels are large.
    """

    def __init__(self, bad_start: bool = False, lr: float = 6e-5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 768, 1)
        self.conv4 = nn.Conv2d(768, 64, 9, stride=2)
        self.conv5 = nn.Conv2d(64, 64, 1)
        self.conv6 = nn.Conv2d(64, 64, 1)
        self.conv7 = nn.Conv2d(64, 96, 3, padding=1)
        self.conv8 = nn.Conv2d(64, 32, 1)
        self.conv9 = nn.Conv2d(32, 48, 5, padding=2)
        self.conv10 = nn.Conv2d(64, 48, 1)
        self.head = nn.Linear(256 * 4 * 4, CLASSES)
        if bad_start:
            nn.init.constant_(self.conv4.weight, BAD_WEIGHT)
        self.lr = lr
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape ``(n, 10)``, of images of shape ``(n, 3, 32, 32)`` with values in [0, 160]."""
        relu = functional.relu
        x = functional.max_pool2d(relu(self.conv1(x)), 2)
        x = relu(self.conv3(relu(self.conv2(x))))
        x = relu(self.conv4(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1)
        branches = (
            self.conv5(x),
            self.conv7(relu(self.conv6(x))),
            self.conv9(relu(self.conv8(x))),
            self.conv10(pooled),
        )
        return self.head(relu(torch.cat(branches, dim=1)).flatten(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the squared distance to the one-hot target, summed over classes, averaged over the batch."""
        images, labels = batch
        error = self(images).float() - functional.one_hot(labels, CLASSES)
        loss = error.square().sum(dim=1).mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the share of right answers."""
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("val_accuracy", self.accuracy, prog_bar=True, on_epoch=True)

    def configure_optimizers(self) -> Any:
        """Plain SGD behind a linear warm-up: nothing in it hides an explosion, as Adam's divisor would for a while."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARM_UP, total_iters=WARM_UP)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}


class Images(LightningDataModule):
    """Real images as ``(3, 32, 32)`` float tensors in [0, 160].

    Args:
        name: ``"digits"`` (scikit-learn's 1,797 handwritten digits, no download), ``"cifar10"`` or ``"fashion-mnist"``.
        root: Where torchvision finds or puts its archives; not used for the digits.
        batch_size: Images a step and device.
    """

    def __init__(self, name: str = "digits", root: Path = Path("data"), batch_size: int = 8) -> None:
        super().__init__()
        self.name, self.root, self.batch_size = name, root, batch_size
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.RGB(),
                v2.Resize((32, 32), antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.0] * 3, [1 / WHITE] * 3),  # not centred: black is 0
            ]
        )

    def prepare_data(self) -> None:
        """Download once, on one process; what is already there is kept."""
        if self.name == "cifar10":
            datasets.CIFAR10(str(self.root), download=True)
        elif self.name == "fashion-mnist":
            datasets.FashionMNIST(str(unpack_fashion_mnist(self.root)), download=True)

    def setup(self, stage: str) -> None:
        """Build the training and the held-out set."""
        if self.name == "digits":
            self.train_set, self.held_out = digits(self.transform)
        elif self.name == "cifar10":
            self.train_set, self.held_out = (
                datasets.CIFAR10(str(self.root), train=train, transform=self.transform) for train in (True, False)
            )
        else:
            root = str(unpack_fashion_mnist(self.root))
            self.train_set, self.held_out = (
                datasets.FashionMNIST(root, train=train, transform=self.transform) for train in (True, False)
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled; the last, smaller batch is left out so that all steps weigh the same."""
        return DataLoader(self.train_set, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The held-out images, in order."""
        return DataLoader(self.held_out, 4 * self.batch_size)


def digits(transform: v2.Compose) -> tuple[Dataset[Any], Dataset[Any]]:
    """Return scikit-learn's digits, 1,437 to train on and 360 held out, split by a fixed permutation."""
    from sklearn.datasets import load_digits  # only this data set needs scikit-learn

    data = load_digits()
    pixels = (data.images * (255 / 16)).round().astype("uint8")
    images = torch.stack([transform(image[:, :, None]) for image in pixels])
    labels = torch.as_tensor(data.target, dtype=torch.long)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, held_out = order[:1437], order[1437:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[held_out], labels[held_out])


def unpack_fashion_mnist(root: Path) -> Path:
    """Return a root in torchvision's layout; ``root`` may also be a read-only folder that holds the bare .gz files."""
    archives = sorted(root.glob("*-ubyte.gz"))
    if not archives:
        return root
    raw = Path("data") / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        target = raw / archive.stem
        if not target.exists():
            with gzip.open(archive) as packed, target.open("wb") as out:
                shutil.copyfileobj(packed, out)
    return raw.parent.parent


class FirstGradientNorm(Callback):
    """Remember the global gradient norm of the first step; stands before the guard, so the gradients are untouched."""

    norm = math.nan

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure in float64: squares of 1e20 overflow a float32."""
        if trainer.global_step == 0:
            grads = (p.grad for p in pl_module.parameters() if p.grad is not None)
            full = (g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads)  # FSDP2 shards
            self.norm = torch.stack([g.double().norm() for g in full]).norm().item()


@dataclass(frozen=True)
class Result:
    """What one run came to; ``blamed``, the treatment ``kept`` and the sentence ``told`` are of its first incident."""

    run: str
    first_norm: float
    accuracy: float
    incidents: int = 0
    blamed: str = "-"
    kept: str = "-"
    told: str = ""


def train(run: str, args: argparse.Namespace) -> Result:
    """Train once, behind Lightning's progress bar, and measure the accuracy on the held-out images."""
    seed_everything(args.seed, workers=True, verbose=False)
    model = InceptionNet(bad_start=run != "healthy")
    first = FirstGradientNorm()
    guard = GradGuard() if run == "guarded" else None
    callbacks: list[Callback] = [first, EarlyStopping("train_loss", patience=args.epochs, check_finite=True)]
    trainer = Trainer(
        callbacks=callbacks if guard is None else [*callbacks, guard],
        logger=TensorBoardLogger(args.log_dir, name=run),
        max_epochs=args.epochs,
        max_steps=args.max_steps,
        accelerator=args.accelerator,
        devices=args.devices,
        strategy=args.strategy,
        precision=args.precision,
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    images = Images(args.data, args.data_dir, args.batch_size)
    trainer.fit(model, images)
    accuracy = float(trainer.validate(model, images, verbose=False)[0]["val_accuracy"])
    incidents = guard.incidents if guard is not None else ()
    if not incidents:
        return Result(run, first.norm, accuracy)
    first_one = incidents[0]
    kept = [wording.tried(trial, first_one) for trial in first_one.trials if trial.outcome == "kept"]
    told = kept[-1].removesuffix(" the layer") if kept else "-"  # which layer is in the column before it
    return Result(run, first.norm, accuracy, len(incidents), first_one.culprit or "-", told, str(first_one))


def table(results: Sequence[Result], title: str) -> Table:
    """Lay the results out, one run a row."""
    out = Table("run", title=title)
    for heading in ("first norm", "incidents", "blamed", "kept", "accuracy"):
        out.add_column(heading, justify="right")
    for r in results:
        out.add_row(r.run, f"{r.first_norm:.2e}", str(r.incidents), r.blamed, r.kept, f"{r.accuracy:.3f}")
    return out


def shortfall(results: Sequence[Result]) -> str | None:
    """Say in one sentence what went otherwise than promised, or return None."""
    healthy, unguarded, guarded = results  # each test is written so that a NaN fails it
    if not healthy.accuracy >= 0.5:
        return f"The healthy twin learned too little to compare with (accuracy {healthy.accuracy:.3f}): train longer."
    if not unguarded.accuracy <= 0.2:
        return f"The unguarded run was not lost: its accuracy is {unguarded.accuracy:.3f}."
    if not guarded.accuracy >= 0.95 * healthy.accuracy:
        return (
            f"The guarded run did not recover: its accuracy is {guarded.accuracy:.3f}, "
            f"less than 0.95 of the healthy twin's {healthy.accuracy:.3f}."
        )
    if guarded.blamed != "conv4":
        return f"The guarded run recovered, but the layer blamed is {guarded.blamed}, not conv4."
    return None


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what it says of devices, strategy and precision goes to the Trainer as it is."""
    parser = argparse.ArgumentParser(
        description="Train one model healthy, unguarded and guarded, and compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        choices=("digits", "cifar10", "fashion-mnist"),
        default="digits",
        help="images; digits need no download",
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where torchvision keeps its archives")
    parser.add_argument("--batch-size", type=int, default=8, help="images a step and device")
    parser.add_argument("--epochs", type=int, default=3, help="times that each run sees all images")
    parser.add_argument(
        "--max-steps", type=int, default=-1, help="end each run after so many steps; -1 for no such end"
    )
    parser.add_argument("--quick", action="store_true", help="two epochs at most")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and of the order of the images")
    parser.add_argument("--accelerator", default="cpu", help="the Trainer's: cpu, gpu, auto")
    parser.add_argument("--devices", default="1", help="the Trainer's: how many, or which")
    parser.add_argument("--strategy", default="auto", help="the Trainer's: auto, ddp")
    parser.add_argument("--precision", default="32-true", help="the Trainer's: 32-true, 16-mixed, bf16-mixed")
    parser.add_argument(
        "--threads", type=int, default=free_cores(), help="threads that compute; by default, the free cores"
    )
    parser.add_argument("--log-dir", type=Path, default=Path("runs") / "inception_explosion", help="where the logs go")
    args = parser.parse_args(argv)
    least = {"batch_size": 1, "epochs": 1, "seed": 0, "threads": 1, "max_steps": -1}
    for name, number in least.items():
        if getattr(args, name) < number:
            option = f"--{name.replace('_', '-')}"
            parser.exit(2, f"{parser.prog}: {option} must be at least {number}, got {getattr(args, name)}.\n")
    if args.quick:
        args.epochs = min(args.epochs, 2)
    return args


def free_cores() -> int:
    """Return how many cores nobody else keeps busy, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(int(os.environ.get("OMP_NUM_THREADS") or cores), round(cores - busy)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run all three, print the table, and return 1 if the guarded run did not recover."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    try:
        Images(args.data, args.data_dir, args.batch_size).prepare_data()
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        say(
            f"{args.data} is not in {args.data_dir} and could not be downloaded ({error}): "
            "try --data digits, which needs no network."
        )
        return 2
    if (why := impossible(args)) is not None:
        say(why)
        return 2
    results = []
    for number, run in enumerate(RUNS, start=1):
        say(f"Run {number} of {len(RUNS)}: {run}, {WHAT[run]}.")
        results.append(train(run, args))
    problem = shortfall(results)
    report(results, problem, args)
    return 0 if problem is None else 1


def impossible(args: argparse.Namespace) -> str | None:
    """Say in one sentence what the Trainer, or the folder of the logs, does not allow; or return None."""
    try:
        args.log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"--log-dir {args.log_dir} cannot be written to: {error.strerror}."
    names = ("accelerator", "devices", "strategy", "precision")
    chosen = {name: getattr(args, name) for name in names}
    try:
        Trainer(**chosen, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except Exception as error:  # each of Lightning's parts has errors of its own
        told = ", ".join(f"--{name} {value}" for name, value in chosen.items())
        return f"The Trainer takes no such {told}: {' '.join(str(error).split()).split('. ')[0].rstrip('.')}."
    return None


@rank_zero_only
def say(sentence: str) -> None:
    """Print one sentence, on one process only."""
    print(sentence, file=sys.stderr, flush=True)


@rank_zero_only
def report(results: Sequence[Result], problem: str | None, args: argparse.Namespace) -> None:
    """Print the table, the command that shows the runs, and what went wrong."""
    console = Console()
    console.print(table(results, f"{args.data}, seed {args.seed}"))
    for told in (result.told for result in results if result.told):
        console.print(told, markup=False, highlight=False)
    console.print(f"See it all:  tensorboard --logdir {args.log_dir}", soft_wrap=True, highlight=False)
    if problem is not None:
        print(problem, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
