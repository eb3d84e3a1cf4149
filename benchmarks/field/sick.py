"""Runs that fall ill, each in its own way."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from benchmarks.field.recipes import Batch, Recipe, all_recipes
from benchmarks.field.training import ADVERSARIAL, Run, Trouble

# -- what can be done to a run -----------------------------------------------------------------------------------------


def times(layer: str, factor: float, *parameters: str) -> Callable[[nn.Module], None]:
    """Multiply a layer's weights."""

    def change(net: nn.Module) -> None:
        found = [p for k, p in net.get_submodule(layer).named_parameters() if not parameters or k in parameters]
        assert found, layer
        for p in found:
            p.mul_(factor)

    return change


def bad_start(layer: str, factor: float, *parameters: str) -> Trouble:
    return Trouble(f"{layer} x{factor:.0e} at the start", start=times(layer, factor, *parameters), culprit=(layer,))


def struck(layer: str, factor: float, *steps: int) -> Trouble:
    change = times(layer, factor, "weight") if layer else times("", factor)
    return Trouble(
        f"{layer} x{factor:.0e} at {steps}",
        at=lambda run, step: change(run.net) if step in steps else None,
        culprit=(layer,),
    )


def all_layers(change: Callable[[Tensor], Any]) -> Callable[[nn.Module], None]:
    def start(net: nn.Module) -> None:
        for p in net.parameters():
            if p.ndim > 1:
                change(p)

    return start


def flip_bit(net: nn.Module, layer: str, count: int = 1) -> None:
    """Set the highest exponent bit of some weights: 0.1 becomes 3e37."""
    flat = net.get_parameter(layer).view(-1)[:count]
    flat.copy_((flat.view(torch.int32) | 1 << 30).view(torch.float32))


def batches(chosen: Callable[[int], bool], change: Callable[[Tensor], Tensor], which: int = 0) -> Any:
    """Change the inputs (or with ``which`` the targets) of the chosen batches."""

    def spoil(batch: Batch, step: int) -> Batch:
        if not chosen(step):
            return batch
        return *batch[:which], change(batch[which]), *batch[which + 1 :]

    return spoil


def every(n: int, first: int = 0) -> Callable[[int], bool]:
    return lambda step: step >= first and (step - first) % n == 0


def between(first: int, last: int) -> Callable[[int], bool]:
    return lambda step: first <= step < last


def one_nan(x: Tensor) -> Tensor:
    return x.index_fill(0, torch.tensor([3]), math.nan)


def bytes_not_normalised(x: Tensor) -> Tensor:
    """The digits as 0 to 255 instead of standardised."""
    return (x * 6 + 4.9) * 16


def optimizer_state(key: str, step: int, change: Callable[[Tensor], Any]) -> Callable[[Any, int], None]:
    def at(run: Any, now: int) -> None:
        if now == step:
            for state in run.optimizers().optimizer.state.values():
                change(state[key])

    return at


def both(*parts: Callable[..., None]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        for part in parts:
            part(*arguments)

    return run


def scaled_loss(chosen: Callable[[int], bool], factor: float) -> Callable[[Tensor, int], Tensor]:
    return lambda loss, step: loss * factor if chosen(step) else loss


def negate(chosen: Callable[[int], bool], factor: float = -1.0) -> Callable[[nn.Module, int], None]:
    def change(net: nn.Module, step: int) -> None:
        if chosen(step):
            for p in net.parameters():
                if p.grad is not None:
                    p.grad.mul_(factor)

    return change


def one_gradient(step: int, value: float) -> Callable[[nn.Module, int], None]:
    def change(net: nn.Module, now: int) -> None:
        if now == step:
            next(net.parameters()).grad.view(-1)[0] = value  # type: ignore[union-attr]

    return change


def root_at_zero(chosen: Callable[[int], bool]) -> Callable[[Tensor, int], Tensor]:
    """A finite loss with a NaN gradient: the root of a zero that depends on the weights."""
    return lambda loss, step: loss + (loss - loss.detach()).abs().mul(0).sqrt() * 0 if chosen(step) else loss


def zero_spread(x: Tensor) -> Tensor:
    """Standardise by a deviation that is zero."""
    constant = x[:1].expand_as(x)
    return (x - constant.mean(0)) / constant.var(0, unbiased=False)


def log_of_zero(chosen: Callable[[int], bool]) -> Callable[[Tensor, int], Tensor]:
    return lambda loss, step: loss - (loss - loss.detach()).abs().log() if chosen(step) else loss


# -- the runs ----------------------------------------------------------------------------------------------------------


@cache
def sick_runs() -> tuple[Run, ...]:
    """List them."""
    recipes: dict[str, Recipe] = {r.name: r for r in (*all_recipes(), *ADVERSARIAL)}
    runs: list[Run] = []

    def add(recipe: str, optimizer: str, trouble: Trouble, steps: int = 400, **more: Any) -> None:
        runs.append(
            Run(
                f"{recipe}, {optimizer}: {trouble.name}",
                recipes[recipe],
                optimizer,
                trouble=trouble,
                steps=steps,
                **more,
            )
        )

    # one bad layer from the start
    add("mlp", "sgd", bad_start("2", 1e2))
    add("cnn", "momentum", bad_start("3", 1e3))
    add("resnet", "adam 1e-3", bad_start("5.conv2", 1e5))
    add("resnet", "sgd", bad_start("9", 1e4))
    add("vit", "adam 1e-3", bad_start("encoder.layers.1.linear1", 1e4))
    add("gru", "sgd", bad_start("core", 30, "weight_hh_l0"))
    add("vae", "adam 1e-3", bad_start("decoder.2", 1e6))
    add("unet", "sgd", bad_start("middle", 300))
    add("gpt", "adam 3e-3", bad_start("encoder.layers.0.self_attn.out_proj", 1e3))
    add("gpt", "momentum", bad_start("embed", 1e4))
    add("graph", "sgd", bad_start("layers.1", 1e4))
    add("mixture_of_experts", "momentum", bad_start("experts.2.2", 1e3))
    add("deep_mlp_norm", "sgd", bad_start("4", 1e3, "weight"))
    add("autoencoder", "rmsprop", bad_start("2", 1e5))
    add("wgan_gp", "adam 1e-3", bad_start("critic.2", 1e4), 600)
    add("ode", "sgd", bad_start("field.2", 1e3))
    # all layers
    add("deep_mlp", "sgd", Trouble("all gains x3", start=all_layers(lambda p: p.mul_(3))))
    add("cnn", "sgd", Trouble("all weights N(0, 1)", start=all_layers(nn.init.normal_)))
    add("stochastic_depth", "sgd", Trouble("all gains x6", start=all_layers(lambda p: p.mul_(6))))
    add("lstm", "sgd", Trouble("all weights x20", start=all_layers(lambda p: p.mul_(20))))
    add(
        "deep_mlp",
        "sgd",
        Trouble(
            "dying and exploding", start=both(times("2", 1e-4, "weight"), times("8", 1e6, "weight")), culprit=("8", "2")
        ),
    )
    # struck in mid-run
    add("mlp", "momentum", struck("0", 1e3, 150))
    add("resnet", "momentum", struck("6.conv1", 1e5, 170))
    add(
        "lstm",
        "adam 3e-3",
        Trouble(
            "recurrent weights x1e2 at 220",
            at=lambda run, s: run.net.core.weight_hh_l0.mul_(100) if s == 220 else None,
            culprit=("core",),
        ),
    )
    add("gpt", "adam 3e-3", struck("encoder.layers.1.linear2", math.nan, 200))
    add(
        "cnn",
        "adam 1e-3",
        Trouble(
            "a bit of a weight flips at 130",
            at=lambda run, s: flip_bit(run.net, "3.weight") if s == 130 else None,
            culprit=("3",),
        ),
    )
    add(
        "vit",
        "adamw",
        Trouble(
            "bits of three weights flip at 210",
            at=lambda run, s: flip_bit(run.net, "encoder.layers.2.linear1.weight", 3) if s == 210 else None,
            culprit=("encoder.layers.2.linear1",),
        ),
    )
    add("mlp", "sgd", struck("2", 1e3, *range(50, 400, 50)))
    add("mlp", "sgd", struck("4", 1e4, 2200), 2500)
    add("regression", "adam 1e-3", struck("2", 1e4, 2100), 2400)
    # optimizer state
    add(
        "mlp", "adam 1e-3", Trouble("second moments zeroed at 200", at=optimizer_state("exp_avg_sq", 200, Tensor.zero_))
    )
    add(
        "cnn",
        "adam 1e-3",
        Trouble("first moments x1e6 at 200", at=optimizer_state("exp_avg", 200, lambda m: m.mul_(1e6))),
    )
    add(
        "resnet",
        "momentum",
        Trouble("momentum NaN at 150", at=optimizer_state("momentum_buffer", 150, lambda m: m.fill_(math.nan))),
    )
    # learning rates
    add("mlp", "sgd", Trouble("rate x100", rate=lambda s: 100))
    add("vit", "adam 1e-3", Trouble("rate x1000", rate=lambda s: 1000))
    add("cnn", "momentum", Trouble("rate x30", rate=lambda s: 30))
    add("regression", "sgd", Trouble("rate x100 from 150", rate=lambda s: 100 if s >= 150 else 1))
    add("cnn_batchnorm", "adam 1e-3", Trouble("rate x1000 for 5 steps", rate=lambda s: 1000 if 200 <= s < 205 else 1))
    add("gpt", "momentum", Trouble("rate x300 from 200", rate=lambda s: 300 if s >= 200 else 1))
    add("deep_mlp", "sgd", Trouble("rate x3 every 30 steps", rate=lambda s: 3 ** (s // 30)))
    add("flow", "adam 1e-3", Trouble("rate x300 from 100", rate=lambda s: 300 if s >= 100 else 1))
    add("gpt_post_norm", "adam 1e-2", Trouble("rate x5, no warm-up", rate=lambda s: 5))
    add("rnn_tanh", "sgd", Trouble("rate x100 from 100", rate=lambda s: 100 if s >= 100 else 1))
    # batches
    nan, huge, mlp = one_nan, lambda x: x * 1e6, "mlp"
    add(mlp, "adam 1e-3", Trouble("one NaN batch at 100", spoil=batches(between(100, 101), nan)))
    add("cnn", "sgd", Trouble("NaN batch every 50", spoil=batches(every(50, 20), nan)))
    add("autoencoder", "adam 1e-3", Trouble("30 NaN batches", spoil=batches(between(150, 180), nan)))
    add("regression", "momentum", Trouble("one huge batch", spoil=batches(between(120, 121), huge)))
    add(
        "regression",
        "adam 1e-3",
        Trouble(
            "an infinite target every 40",
            spoil=batches(every(40, 10), lambda y: y.index_fill(0, torch.tensor([1]), math.inf), 1),
        ),
    )
    add(
        "regression",
        "sgd",
        Trouble(
            "a target off by 1e5 every 25",
            spoil=batches(every(25, 30), lambda y: y.index_fill(0, torch.tensor([1]), 1e5), 1),
        ),
    )
    add("poisson", "adam 3e-3", Trouble("inputs x30 every 35", spoil=batches(every(35, 40), lambda x: x * 30)))
    add(
        "deep_mlp",
        "sgd",
        Trouble(
            "0-255 from the start", spoil=batches(lambda s: True, bytes_not_normalised), lasting=bytes_not_normalised
        ),
    )
    add("cnn", "sgd", Trouble("0-255 for 40 steps", spoil=batches(between(150, 190), bytes_not_normalised)))
    add(
        "deep_mlp",
        "momentum",
        Trouble(
            "0-255 from 250", spoil=batches(lambda s: s >= 250, bytes_not_normalised), lasting=bytes_not_normalised
        ),
    )
    add("unet", "sgd", Trouble("60 corrupt batches", spoil=batches(between(160, 220), lambda x: 1e3 * x.flip(1))))
    add(mlp, "sgd", Trouble("NaN in the first batch", spoil=batches(between(0, 1), nan)))
    add("cnn", "adam 1e-3", Trouble("huge first batch", spoil=batches(between(0, 1), huge)))
    add("regression", "sgd", Trouble("deviation of zero every 45", spoil=batches(every(45, 15), zero_spread)))
    # numerics
    add("vae", "adam 1e-3", Trouble("log of zero every 20", loss=log_of_zero(every(20, 5))))
    add("resnet", "momentum", Trouble("root at zero every 30", loss=root_at_zero(every(30, 7))))
    add("cnn", "momentum", Trouble("loss x1e6 for 20 steps", loss=scaled_loss(between(140, 160), 1e6)))
    add("gru", "sgd", Trouble("loss x1e6 every 50", loss=scaled_loss(every(50, 35), 1e6)))
    add(mlp, "sgd", Trouble("gradients change sign for 40 steps", gradients=negate(between(200, 240), -10)))
    add("cnn", "momentum", Trouble("one gradient element 1e30", gradients=one_gradient(160, 1e30)))
    add("graph", "adam 1e-3", Trouble("one gradient element infinite at 0", gradients=one_gradient(0, math.inf)))
    add("contrastive", "sgd", Trouble("loss x1e4 from the start", loss=scaled_loss(lambda s: True, 1e4)))
    half = {"plugins": lambda: [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]}
    add(mlp, "adam 1e-3", bad_start("0", 1e5), options=half)
    add("regression", "sgd", struck("0", 1e4, 150), options={"precision": "bf16-mixed"})
    # several troubles, and trouble around a resumption
    add(
        "cnn",
        "sgd",
        Trouble(
            "NaN batch at 80, layer x1e4 at 200",
            spoil=batches(between(80, 81), nan),
            at=struck("3", 1e4, 200).at,
            culprit=("batch",),
        ),
    )
    add(
        "resnet",
        "sgd",
        Trouble("rate x50 and a huge batch at 60", rate=lambda s: 50, spoil=batches(between(60, 61), huge)),
    )
    add("mlp", "adam 3e-3", struck("2", 1e4, 203), resume=200)
    add(
        "regression",
        "momentum",
        Trouble("rate x200 from the resumption", rate=lambda s: 200 if s >= 200 else 1),
        resume=200,
    )
    add("q_target_network", "adam 1e-3", Trouble("loss x1e8 at 150", loss=scaled_loss(between(150, 153), 1e8)))
    return tuple(runs)
