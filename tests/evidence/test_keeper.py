"""What is at hand of a step, and the bundle that is made of it."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_gradguard.evidence import BundleError, Evidence, read_bundle
from lightning_gradguard.evidence.collecting import Facts, Place
from lightning_gradguard.evidence.keeper import Keeper
from tests.builders import mlp, regression, same

FACTS = Facts(
    step=7,
    form="non-finite",
    reason="a NaN",
    limit=3.0,
    norm=math.nan,
    loss=2.0,
    names=("0.weight",),
    norms=(math.nan,),
)


def keeper(tmp_path: Path, *, batch: bool = True, warn: Any = None, **settings: Any) -> Keeper:
    def refuse(sentence: str) -> None:
        raise AssertionError(sentence)

    made = Keeper(Evidence(directory=tmp_path, **settings), batch=batch, warn=warn or refuse)
    made.place = lambda: Place(rank=1, processes=2, precision="32-true", epoch=4, checkpoint="/run/last.ckpt")
    return made


def two_steps(made: Keeper, module: nn.Module) -> None:
    for number, batch in enumerate(regression(2)):
        torch.manual_seed(number)
        made.before_forward(module, batch, number)
        made.hand.step()


def kept_of(made: Keeper, module: nn.Module) -> Any:
    path = made.keep(FACTS, module, torch.optim.Adam(module.parameters()), deferred=False)
    assert made.wait()
    return path


def kept(made: Keeper, module: nn.Module, *, deferred: bool = False) -> Any:
    optimizer = torch.optim.Adam(module.parameters())
    nn.functional.mse_loss(module(torch.ones(2, 8)), torch.ones(2, 1)).backward()
    optimizer.step()
    path = made.keep(FACTS, module, optimizer, deferred=deferred)
    assert made.wait()
    return path


def test_a_bundle_holds_the_step_and_another(tmp_path: Path) -> None:
    module, made = mlp(norm=True), keeper(tmp_path, optimizer_state=True)
    two_steps(made, module)
    path = kept(made, module)
    assert path == tmp_path / "step-00000007-rank-1.gradguard.pt"
    bundle = read_bundle(path)
    assert (bundle.step, bundle.rank, bundle.processes, bundle.epoch) == (7, 1, 2, 4)
    assert math.isnan(bundle.norm) and bundle.loss == 2.0 and bundle.limit == 3.0
    [now] = bundle.passes
    assert now.batch_index == 1 and same(now.loaded, regression(2)[1])
    assert bundle.other is not None and same(bundle.other.loaded, regression(2)[0])
    assert same(bundle.weights, dict(module.state_dict()))
    assert set(bundle.optimizer_state["0.weight"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert now.states is not None and torch.equal(now.states.torch, torch.manual_seed(1).get_state())
    assert bundle.versions["torch"] == torch.__version__ and bundle.left_out == []
    assert 1000 < path.stat().st_size < 100_000


def test_the_step_before_is_at_hand_where_its_trouble_is_learned_of_late(tmp_path: Path) -> None:
    module, made = mlp(), keeper(tmp_path)
    two_steps(made, module)
    made.before_forward(module, regression(3)[2], 2)
    bundle = read_bundle(kept(made, module, deferred=True))
    assert bundle.passes[0].batch_index == 1
    assert bundle.other is not None and bundle.other.batch_index == 2


def test_at_the_end_of_a_run_no_other_step_has_begun(tmp_path: Path) -> None:
    module, made = mlp(), keeper(tmp_path)
    two_steps(made, module)
    assert read_bundle(kept(made, module, deferred=True)).passes[0].batch_index == 1


def test_micro_batches_of_one_step_are_kept_together(tmp_path: Path) -> None:
    module, made = mlp(), keeper(tmp_path)
    for number, batch in enumerate(regression(4)):
        made.before_forward(module, batch, number)
        if number % 2:
            made.hand.step()
    assert [one.batch_index for one in read_bundle(kept(made, module)).passes] == [2, 3]


def test_the_batch_is_kept_only_where_it_is_asked_for(tmp_path: Path) -> None:
    module, made = mlp(), keeper(tmp_path, batch=False)
    two_steps(made, module)
    bundle = read_bundle(kept(made, module))
    assert bundle.passes[0].batch is None and bundle.other is None
    assert bundle.passes[0].states is not None and bundle.weights
    assert keeper(tmp_path, batch=False, **{})._batch is False
    asked = Keeper(Evidence(batch=True), batch=False, warn=print)
    assert asked._batch is True


def test_what_does_not_fit_is_left_out_and_named(tmp_path: Path) -> None:
    module, made = nn.Linear(8, 4096), keeper(tmp_path, max_bytes=100_000, optimizer_state=True)
    two_steps(made, module)
    bundle = read_bundle(kept_of(made, module))
    assert bundle.passes[0].batch is not None and bundle.other is not None and not bundle.weights
    assert bundle.weights_from == "/run/last.ckpt"
    assert bundle.left_out[0].startswith("the weights: 147,456 bytes")


def test_no_more_bundles_than_allowed(tmp_path: Path) -> None:
    module, made = mlp(), keeper(tmp_path, bundles=1)
    two_steps(made, module)
    assert kept(made, module) is not None
    assert kept(made, module) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_directory_that_cannot_be_written_costs_the_bundle_only(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "file").write_text("")
    module, made = mlp(), Keeper(Evidence(directory=tmp_path / "file" / "below"), batch=True, warn=told.append)
    two_steps(made, module)
    kept(made, module)
    assert len(told) == 1 and told[0].startswith("no bundle of evidence was written: ")


class Unwilling:
    """A batch that nothing can be made of."""

    def __len__(self) -> int:
        raise RuntimeError("no")


def test_a_batch_that_cannot_be_kept_costs_the_batch_only(tmp_path: Path) -> None:
    module, made = mlp(), keeper(tmp_path)
    made.before_forward(module, Unwilling(), 0)
    bundle = read_bundle(kept(made, module))
    assert bundle.passes[0].batch is None
    assert "Unwilling, which is not kept" in bundle.left_out[0]


def test_samples_that_a_batch_names_are_known_even_where_it_is_not_kept(tmp_path: Path) -> None:
    module, made = mlp(), keeper(tmp_path)
    made.before_forward(module, {"x": torch.ones(2), "idx": torch.tensor([31, 7])}, 0)
    assert read_bundle(kept(made, module)).indices == [[31, 7]]


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no")
    torch.save({"a": 1}, tmp_path / "other.pt")
    torch.save({"format": "gradguard bundle", "version": 99}, tmp_path / "newer.pt")
    with open(tmp_path / "evil.pt", "wb") as file:
        pickle.dump(print, file)
    for name, why in (
        ("text", "can be read"),
        ("other.pt", "GradGuard's"),
        ("newer.pt", "version 99"),
        ("evil.pt", "read"),
    ):
        with pytest.raises(BundleError, match=why) as refused:
            read_bundle(tmp_path / name)
        assert "weights_only" not in str(refused.value), "torch advises to execute what is in it"
    with pytest.raises(OSError, match="No such"):
        read_bundle(tmp_path / "missing")


@pytest.mark.parametrize(
    "wrong", [{"bundles": -1}, {"max_bytes": 0}, {"batch": "yes"}, {"weights": 1}, {"directory": 3}]
)
def test_settings_are_checked_at_construction(wrong: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Evidence(**wrong)


def test_settings_show_themselves() -> None:
    assert repr(Evidence(bundles=5, batch=True)) == "Evidence(bundles=5, batch=True)"


def test_a_bundle_that_could_not_be_written_is_lost_and_one_that_is_written_is_not(tmp_path: Path) -> None:
    module, made = mlp(norm=True), keeper(tmp_path)
    two_steps(made, module)
    path = kept(made, module)
    assert not made.lost(str(path)) and not made.lost(str(tmp_path / "another rank's"))
    path.unlink()
    assert made.lost(str(path))
