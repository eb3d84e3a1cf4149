"""Swapping an unbounded activation of the block at fault, for good, and again when a checkpoint is loaded."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_gradguard import GradGuard, Guard
from lightning_gradguard.records import Suspect
from lightning_gradguard.remedies import Reinitialize, Skip, SwapActivation, restore_activations
from lightning_gradguard.remedies.swap_activation import activation_of
from tests.builders import Net, context_for, loader, mlp, regression, same, through_a_file, trainer


class Block(nn.Module):
    """Calls one activation twice, and registers it between its layers or before them."""

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        if first:
            self.act = nn.GELU()
        self.one = nn.Linear(8, 8)
        if not first:
            self.act = nn.GELU()
        self.two = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.two(self.act(self.one(x))))
        return y


class Functional(nn.Module):
    """Calls its activation as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(torch.relu(self.one(x)))
        return y


def apply(remedy: SwapActivation, module: nn.Module, *layers: str, optimizer: Any = None) -> Any:
    return remedy.apply(context_for(module, optimizer, blame=[Suspect(layer, 1.0, "for a test") for layer in layers]))


def test_in_a_sequence_the_activation_after_the_layer_is_swapped() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    names = list(module.state_dict())
    outcome = apply(SwapActivation(), module.eval(), "0")
    assert outcome.applied and outcome.layers == ("0",) and outcome.detail == "2: ReLU swapped for Softsign"
    assert [type(module[i]) for i in (2, 4)] == [nn.Softsign, nn.ReLU]
    assert not module[2].training
    assert list(module.state_dict()) == names, "no parameter has come or gone"


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("layer", ["one", "two"])
def test_a_module_called_twice_in_a_block_is_found_from_either_layer(first: bool, layer: str) -> None:
    module = nn.Sequential(OrderedDict(block=Block(first), head=nn.Linear(8, 1)))
    assert apply(SwapActivation(to="Tanh"), module, f"block.{layer}").applied
    assert isinstance(module.get_submodule("block.act"), nn.Tanh)


def test_no_further_than_the_next_layer_is_looked() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU())
    assert activation_of(module, "0") is None and activation_of(module, "1") == "2"


def test_the_worst_suspect_that_has_one_is_taken_and_one_at_a_time() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))
    remedy = SwapActivation()
    for expected in ([nn.SiLU, nn.Softsign], [nn.Softsign, nn.Softsign]):
        assert apply(remedy, module, "batch", "4", "2", "0").applied
        assert [type(module[i]) for i in (1, 3)] == expected
    assert not apply(remedy, module, "batch", "4", "2", "0").applied
    assert remedy.state_dict() == {"swapped": {"3": "Softsign", "1": "Softsign"}}


def test_a_function_cannot_be_swapped_and_the_outcome_says_so() -> None:
    outcome = apply(SwapActivation(), Functional(), "one")
    assert not outcome.applied and "called as a function cannot be swapped" in outcome.detail
    outcome = apply(SwapActivation(), Functional(), "batch")
    assert not outcome.applied and "no layer is blamed" in outcome.detail


def test_bounded_ones_and_those_with_parameters_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 1))
    assert not apply(SwapActivation(), module, "0", "2").applied


def test_the_optimizer_forgets_the_layer_and_no_other() -> None:
    module = mlp()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    module(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    apply(SwapActivation(), module, "0", optimizer=optimizer)
    kept = {name for name, p in module.named_parameters() if p in optimizer.state}
    assert kept == {"2.weight", "2.bias"}
    optimizer.step()
    assert all(p.isfinite().all() for p in module.parameters())


def test_a_transformer_layers_fast_path_does_not_go_on_with_the_old_one() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.ReLU(), batch_first=True)
    module = nn.Sequential(layer, nn.Linear(8, 1))
    assert apply(SwapActivation(), module, "0.linear1").applied
    x = torch.randn(2, 5, 8)
    slow = module.train()(x)
    with torch.inference_mode():
        torch.testing.assert_close(module.eval()(x), slow.detach())


@pytest.mark.parametrize("to", ["Softsign", "Tanh", "ReLU6", "SELU"])
def test_a_plain_loops_state_swaps_again(to: Any) -> None:
    module, twin = mlp(), mlp()
    guard = Guard(module, remedies=[SwapActivation(to=to)])
    track = guard.attach(torch.optim.SGD(module.parameters(), lr=0.1))
    apply(track.remedies["swap-activation"], module, "0")  # type: ignore[arg-type]
    state = through_a_file(guard.state_dict())
    second = Guard(twin, remedies=[SwapActivation()])
    second.load_state_dict(state)
    assert type(twin[1]) is nn.ReLU  # type: ignore[index]
    second.attach(torch.optim.SGD(twin.parameters(), lr=0.1))
    assert type(twin[1]) is getattr(nn, to)  # type: ignore[index]
    assert same(through_a_file(second.state_dict())["lanes"], state["lanes"])
    third = mlp()
    assert restore_activations(third, state) == ("1",) and type(third[1]) is getattr(nn, to)  # type: ignore[index]
    with pytest.raises(ValueError, match="'1' was swapped for"):
        restore_activations(nn.Linear(2, 2), state)


class Restoring(Net):
    """A user's module that can be loaded without the guard."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seen = type(self.network[1])  # type: ignore[index]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        restore_activations(self, checkpoint)


def sick(kind: type[Net] = Net) -> Net:
    module = kind(mlp(), lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    with torch.no_grad():
        module.network[0].weight.mul_(1e6)  # type: ignore[index, operator]
    return module


def guarded(**options: Any) -> GradGuard:
    return GradGuard(journal=False, remedies=[Skip(), Reinitialize(), SwapActivation()], **options)


def test_through_a_trainer_it_is_swapped_saved_resumed_and_loaded(tmp_path: Path) -> None:
    data = loader(regression(20))

    def fit(epochs: int, ckpt: Any = None) -> Any:
        module, guard = sick(), guarded()
        run = trainer(tmp_path, callbacks=[guard], max_epochs=epochs)
        run.fit(module, data, ckpt_path=ckpt)
        return run, module, guard

    first, module, guard = fit(1)
    assert "swap-activation" in {name for i in guard.incidents for name in i.remedies}
    assert isinstance(module.network[1], nn.Softsign)
    first.save_checkpoint(tmp_path / "one.ckpt")
    _, whole, _ = fit(2)
    _, resumed, again = fit(2, tmp_path / "one.ckpt")
    assert isinstance(resumed.network[1], nn.Softsign)
    assert same(whole.state_dict(), resumed.state_dict())
    track = again.state_dict()["lanes"]["0"]
    assert track["remedies"]["swap-activation"] == {"swapped": {"network.1": "Softsign"}}


def loads_callbacks_to_validate(path: Path, data: Any) -> bool:
    """Tell whether Lightning lets callbacks see the checkpoint of a validation; 2.4 does not."""
    seen = Callback()
    seen.on_load_checkpoint = lambda *_: setattr(seen, "told", True)  # type: ignore[method-assign]
    trainer(path.parent, callbacks=[seen]).validate(sick(Restoring), data, ckpt_path=path, verbose=False)
    return hasattr(seen, "told")


def test_it_is_swapped_for_validation_under_the_guard_and_by_the_users_own_hook(tmp_path: Path) -> None:
    data = loader(regression(20))
    first = trainer(tmp_path, callbacks=[guarded()])
    first.fit(sick(), data)
    first.save_checkpoint(tmp_path / "one.ckpt")

    class Plain(Restoring):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            """Leave it to the callback."""

    for kind, callbacks in ((Restoring, []), (Plain, [guarded()])):
        module = sick(kind)
        if callbacks and not loads_callbacks_to_validate(tmp_path / "one.ckpt", data):
            pytest.skip("this Lightning does not hand a checkpoint to callbacks when it validates")
        trainer(tmp_path, callbacks=callbacks).validate(module, data, ckpt_path=tmp_path / "one.ckpt", verbose=False)
        assert module.seen is nn.Softsign  # type: ignore[attr-defined]


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("swaps", [False, True])
def test_a_checkpoint_that_will_not_tell_is_warned_of_at_the_start(
    swaps: bool, weights_only: bool, tmp_path: Path
) -> None:
    guard = guarded() if swaps else GradGuard(journal=False)
    saves = ModelCheckpoint(tmp_path, save_weights_only=weights_only)
    run = trainer(tmp_path, callbacks=[guard, saves], enable_checkpointing=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(Net(mlp(), lambda p: torch.optim.Adam(p, lr=0.01)), loader(regression(5)))
    assert sum("save_weights_only" in str(w.message) for w in caught) == (swaps and weights_only)
