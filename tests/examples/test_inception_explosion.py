"""What the example promises: ten convolutions, a first norm near 1e10, a plain run that is lost, CIFAR-10's format."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import math
import pickle
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision.datasets import CIFAR10

SCRIPT = Path(__file__).parents[2] / "examples" / "inception_explosion.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("inception_explosion", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def first_norm(example: ModuleType, seed: int, bad_start: bool) -> float:
    images = example.Images("digits")
    images.setup("fit")
    x, labels = images.train_set[:32]
    torch.manual_seed(seed)
    model = example.InceptionNet(bad_start)
    error = model(x) - functional.one_hot(labels, example.CLASSES)
    error.square().sum(dim=1).mean().backward()
    return math.sqrt(sum(p.grad.double().square().sum().item() for p in model.parameters()))


def test_there_are_ten_convolutions_and_only_the_fourth_is_bad(example: ModuleType) -> None:
    torch.manual_seed(0)
    healthy = example.InceptionNet()
    torch.manual_seed(0)
    sick = example.InceptionNet(bad_start=True)
    convolutions = [name for name, module in sick.named_modules() if isinstance(module, nn.Conv2d)]
    assert convolutions == [f"conv{i}" for i in range(1, 11)]
    assert (sick.conv4.weight == 0.1).all()
    pairs = zip(healthy.named_parameters(), sick.named_parameters(), strict=True)
    assert [name for (name, a), (_, b) in pairs if not torch.equal(a, b)] == ["conv4.weight"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_first_gradient_norm_is_of_the_order_of_1e10(example: ModuleType, seed: int) -> None:
    assert 10**9.4 < first_norm(example, seed, bad_start=True) < 10**10.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_healthy_twin_starts_with_a_moderate_gradient(example: ModuleType, seed: int) -> None:
    assert first_norm(example, seed, bad_start=False) < 1e4


def write_cifar10(folder: Path, per_batch: int) -> Path:
    """Write a small archive in CIFAR-10's own format, and return it."""
    rng = np.random.default_rng(0)
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = [i % 10 for i in range(per_batch)]
        data = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": data, "labels": labels}))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, batches.name)
    return archive


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory that holds the archive only; torchvision checks its digests, so they are told it here."""
    archive = write_cifar10(tmp_path / "source", per_batch=20)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    batches = archive.parent / CIFAR10.base_folder
    for attribute in ("train_list", "test_list"):
        listed = [[name, md5(batches / name)] for name, _ in getattr(CIFAR10, attribute)]
        monkeypatch.setattr(CIFAR10, attribute, listed)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(batches / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    data = tmp_path / "data"
    data.mkdir()
    archive.rename(data / archive.name)
    return data


def test_cifar10_is_loaded_from_its_own_archive(example: ModuleType, cifar10: Path) -> None:
    images = example.Images("cifar10", cifar10, batch_size=8)
    images.prepare_data()
    images.setup("fit")
    assert (len(images.train_set), len(images.held_out)) == (100, 20)
    pixels, labels = next(iter(images.val_dataloader()))
    assert pixels.shape == (20, 3, 32, 32)
    assert labels.tolist() == [i % 10 for i in range(20)]
    assert 0 <= pixels.min() < 1
    assert example.WHITE - 1 < pixels.max() <= example.WHITE


def test_fashion_mnist_is_read_from_bare_archives(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "package"
    source.mkdir()
    for kind, count in (("train", 30), ("t10k", 10)):
        header = np.array([2051, count, 28, 28], dtype=">i4").tobytes()
        with gzip.open(source / f"{kind}-images-idx3-ubyte.gz", "wb") as out:
            out.write(header + bytes(range(256)) * (count * 784 // 256) + bytes(count * 784 % 256))
        with gzip.open(source / f"{kind}-labels-idx1-ubyte.gz", "wb") as out:
            out.write(np.array([2049, count], dtype=">i4").tobytes() + bytes(i % 10 for i in range(count)))
    images = example.Images("fashion-mnist", source)
    images.prepare_data()
    images.setup("fit")
    assert (len(images.train_set), len(images.held_out)) == (30, 10)
    assert images.train_set[3][0].shape == (3, 32, 32)
    assert images.train_set[3][1] == 3


def test_the_unguarded_run_is_lost_at_once(
    example: ModuleType, cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data", "cifar10", "--data-dir", str(cifar10), "--batch-size", "4", "--max-steps", "4"]
    args = example.parse([*arguments, "--log-dir", str(tmp_path / "runs")])
    result = example.train("unguarded", args)
    assert result.first_norm > 1e9
    assert result.accuracy <= 0.2
    assert result.incidents == 0


@pytest.mark.parametrize(
    ("accuracies", "blamed", "sentence"),
    [
        ((0.95, 0.10, 0.94), "conv4", None),
        ((0.95, 0.10, 0.50), "conv4", "did not recover"),
        ((0.95, 0.10, math.nan), "conv4", "did not recover"),
        ((0.95, 0.10, 0.94), "conv3", "not conv4"),
        ((0.95, 0.90, 0.94), "conv4", "was not lost"),
        ((0.20, 0.10, 0.20), "conv4", "too little"),
    ],
)
def test_the_outcome_is_judged_in_one_sentence(
    example: ModuleType, accuracies: tuple[float, ...], blamed: str, sentence: str | None
) -> None:
    healthy, unguarded, guarded = accuracies
    results = [
        example.Result("healthy", 1e3, healthy),
        example.Result("unguarded", 1e10, unguarded),
        example.Result("guarded", 1e10, guarded, 1, blamed, "reinitialize"),
    ]
    found = example.shortfall(results)
    assert found is None if sentence is None else sentence in found


def test_the_guarded_run_soon_learns(example: ModuleType, tmp_path: Path) -> None:
    result = example.train("guarded", example.parse(["--max-steps", "60", "--log-dir", str(tmp_path)]))
    assert result.first_norm > 1e9
    assert (result.incidents, result.blamed) == (1, "conv4")
    assert result.kept == "re-initialised"
    assert result.accuracy > 3 / example.CLASSES  # three times what guessing gives


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_guarded_run_recovers(example: ModuleType, seed: int, tmp_path: Path) -> None:
    assert example.main(["--seed", str(seed), "--log-dir", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [
        ("--batch-size", "0", 1),
        ("--seed", "-1", 0),
        ("--epochs", "0", 1),
        ("--threads", "0", 1),
        ("--max-steps", "-2", -1),
    ],
)
def test_an_impossible_argument_ends_in_one_sentence(
    example: ModuleType, capsys: pytest.CaptureFixture[str], option: str, value: str, least: int
) -> None:
    with pytest.raises(SystemExit) as ended:
        example.parse([option, value])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert f"{option} must be at least {least}, got {value}." in said


@pytest.mark.parametrize(
    ("option", "value"),
    [("--devices", "two"), ("--accelerator", "gpus"), ("--precision", "a-few"), ("--strategy", "hope")],
)
def test_what_the_trainer_does_not_take_ends_in_one_sentence(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    said = example.impossible(example.parse(["--log-dir", str(tmp_path), option, value]))
    assert said.startswith("The Trainer takes no such ") and f"{option} {value}" in said and "\n" not in said
    assert example.impossible(example.parse(["--log-dir", str(tmp_path)])) is None


def test_a_folder_that_cannot_be_made_ends_in_one_sentence(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = example.impossible(example.parse(["--log-dir", str(tmp_path / "file" / "logs")]))
    assert "cannot be written to: " in said and "\n" not in said


def test_every_option_has_a_help_text(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.parse(["--help"])
    told = capsys.readouterr().out
    options = [line.split()[0] for line in told.splitlines() if line.startswith("  --")]
    assert len(options) >= 12 and told.count("(default:") >= len(options) - 1


def test_a_data_set_that_cannot_be_had_ends_in_one_sentence(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    assert example.main(["--data", "cifar10", "--data-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "could not be downloaded" in said[0] and "--data digits" in said[0]


def test_the_table_fits_80_columns(example: ModuleType) -> None:
    import io

    from rich.console import Console

    results = [
        example.Result("healthy", 1.2e3, 0.95),
        example.Result("unguarded", 1.1e10, 0.1),
        example.Result("guarded", 1.1e10, 0.95, 1, "conv4", "re-initialised"),
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(example.table(results, "digits, seed 0"))
    text = console.file.getvalue()
    assert "re-initialised" in text and "first norm" in text and "…" not in text
    assert len(text.strip().splitlines()) == 8, "no cell is wrapped"


def test_what_became_of_the_incident_is_said_in_words_below_the_table(
    example: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    results = [example.Result("guarded", 1.1e10, 0.95, 1, "conv4", "skip", "incident 1 at step 0: [rescaled] " * 4)]
    example.report(results, None, example.parse([]))
    lines = capsys.readouterr().out.splitlines()
    assert sum("[rescaled]" in line for line in lines) >= 2 and max(map(len, lines)) <= 80
