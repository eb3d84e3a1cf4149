"""What a run can be guarded by: nothing, the usual clipping, published peers, and GradGuard with no arguments.

Most peers act in ``on_before_optimizer_step``: as optimizer wrappers they would be silent no-ops under Lightning's
automatic optimization, which computes the gradients *inside* ``optimizer.step``.
"""

from __future__ import annotations

import importlib
import math
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.spike import SpikeDetection
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.zoo.adversarial import Gan, Pair
from benchmarks.zoo.case import Case, Learner

Setup = Callable[[Case, LightningModule], dict[str, Any]]


@dataclass(frozen=True)
class Contender:
    """A name, and a function that prepares a run: it may change the module, and gives arguments of the Trainer."""

    name: str
    setup: Setup
    applies: Callable[[Case], bool] = lambda case: True


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """List the parameters of one optimizer that have a gradient."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def global_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Compute the global gradient norm on the host."""
    return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


class BeforeStep(Callback):
    """Act on the gradients of one optimizer, just before its step."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Hand the gradients to :meth:`act`."""
        self.act(optimizer)

    def act(self, optimizer: Optimizer) -> None:
        """Change the gradients in place."""
        raise NotImplementedError


class ClipNorm(BeforeStep):
    """Clip to norm 1; Lightning's own argument is refused under manual optimization."""

    def act(self, optimizer: Optimizer) -> None:
        """Clip."""
        nn.utils.clip_grad_norm_(parameters_of(optimizer), 1.0)


class SkipNonFiniteAndClip(BeforeStep):
    """What a careful user writes: no step on NaN or inf, else clip to norm 1."""

    def act(self, optimizer: Optimizer) -> None:
        """Skip or clip."""
        parameters = parameters_of(optimizer)
        if math.isfinite(global_norm(parameters)):
            nn.utils.clip_grad_norm_(parameters, 1.0)
        else:
            skip(parameters)


def skip(parameters: Iterable[nn.Parameter]) -> None:
    """Make the optimizer leave these parameters and their state alone; zero gradients would still move the momentum."""
    for p in parameters:
        p.grad = None


class Agc(BeforeStep):
    """Adaptive gradient clipping (Brock et al., 2021) at 0.01, as in timm."""

    def act(self, optimizer: Optimizer) -> None:
        """Clip each unit to a hundredth of its weight's norm."""
        adaptive_clip_grad(parameters_of(optimizer), clip_factor=0.01)


def adaptive_clip_grad(parameters: list[nn.Parameter], clip_factor: float = 0.01, eps: float = 1e-3) -> None:
    """Use timm's function; without timm, the same in a few lines."""
    try:
        from timm.utils.agc import adaptive_clip_grad as published
    except ImportError:
        for p in parameters:
            assert p.grad is not None
            axes = tuple(range(1, p.ndim)) if p.ndim > 1 else None
            limit = p.detach().norm(dim=axes, keepdim=True).clamp_(min=eps) * clip_factor
            norm = p.grad.norm(dim=axes, keepdim=True)
            p.grad.copy_(torch.where(norm < limit, p.grad, p.grad * (limit / norm.clamp(min=1e-6))))
    else:
        published(parameters, clip_factor, eps)  # type: ignore[no-untyped-call]


class AutoClip(BeforeStep):
    """Clip to the 10th percentile of all global norms seen (Seetharaman et al., 2020), the paper's default."""

    def __init__(self, percentile: float = 10.0) -> None:
        self.percentile = percentile
        self.norms: dict[int, list[float]] = {}

    def act(self, optimizer: Optimizer) -> None:
        """Clip, after the history has grown by this step, as the authors' code does."""
        parameters = parameters_of(optimizer)
        history = self.norms.setdefault(id(optimizer), [])
        history.append(global_norm(parameters))
        limit = float(torch.quantile(torch.tensor(history, dtype=torch.float64), self.percentile / 100))
        nn.utils.clip_grad_norm_(parameters, limit)


class PublishedAutoClip(BeforeStep):
    """The package ``autoclip``: per tensor, the 0.9 quantile of the last 1000 norms."""

    def __init__(self) -> None:
        self.clippers: dict[int, Any] = {}

    def act(self, optimizer: Optimizer) -> None:
        """Let the package clip."""
        from autoclip.torch import QuantileClip

        if id(optimizer) not in self.clippers:
            every = [p for group in optimizer.param_groups for p in group["params"]]
            self.clippers[id(optimizer)] = QuantileClip(every, quantile=0.9, history_length=1000)
        self.clippers[id(optimizer)].step()


class OlmoSkip(BeforeStep):
    """OLMo-core's ``SkipStepOptimizer``: no step where loss or norm is above mean + 6 σ of the last 128.

    As there, every value enters the window, rejected ones too, and nothing is judged on less than 64 steps.
    """

    def __init__(self, window: int = 128, sigmas: float = 6.0) -> None:
        self.window, self.sigmas = window, sigmas
        self.loss: Tensor | None = None
        self.histories: dict[tuple[int, str], deque[float]] = {}

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Remember the loss."""
        self.loss = loss.detach()

    def act(self, optimizer: Optimizer) -> None:
        """Skip if either is too high; a comparison with NaN is false, so a NaN is skipped."""
        parameters = parameters_of(optimizer)
        good = self._accept(id(optimizer), "norm", global_norm(parameters))
        if self.loss is not None:
            good = self._accept(id(optimizer), "loss", float(self.loss)) and good
        if not good:
            skip(parameters)

    def _accept(self, optimizer: int, key: str, value: float) -> bool:
        history = self.histories.setdefault((optimizer, key), deque(maxlen=self.window))
        past = torch.tensor(list(history), dtype=torch.float64)
        history.append(value)
        if len(history) < self.window // 2:
            return True
        return value - float(past.mean()) <= self.sigmas * float(past.std())


class StableAdamW(torch.optim.Optimizer):
    """AdamW whose rate is divided by the RMS of g²/v where above 1 (Wortsman et al., 2023, algorithm 2)."""

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2), eps = self.state[p], group["betas"], group["eps"]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        t = state["step"]
        # The debiased betas of the paper replace the usual bias correction.
        beta1, beta2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (beta1, beta2))
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2)
        rms = grad.square().div(state["exp_avg_sq"].clamp(min=eps**2)).mean().sqrt().item()
        rate = group["lr"] / max(1.0, rms)
        p.mul_(1 - rate * group["weight_decay"])
        p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(eps), value=-rate)


def setup_none(case: Case, module: LightningModule) -> dict[str, Any]:
    """Guard by nothing."""
    return {}


def setup_clip(case: Case, module: LightningModule) -> dict[str, Any]:
    """Clip by ``gradient_clip_val=1``."""
    return {"gradient_clip_val": 1.0} if module.automatic_optimization else {"callbacks": [ClipNorm()]}


def setup_zclip(case: Case, module: LightningModule) -> dict[str, Any]:
    """Use the published callback of ZClip (2025) with its defaults."""
    from zclip import ZClipLightningCallback

    return {"callbacks": [ZClipLightningCallback()]}


def setup_spike_detection(case: Case, module: LightningModule) -> dict[str, Any]:
    """Use Lightning's own callback; it raises when it sees a spike, so that the run ends there."""
    path = Path(tempfile.mkdtemp(prefix="spike-")) / "skip_batches.json"
    return {"callbacks": [SpikeDetection(exclude_batches_path=path)]}


def setup_stable_adamw(case: Case, module: LightningModule) -> dict[str, Any]:
    """Replace the Adam of a case by StableAdamW at the same rate."""
    assert isinstance(module, Learner)

    def replaced(make: Callable[[Any], Optimizer]) -> Callable[[Any], Optimizer]:
        def factory(parameters: Any) -> Optimizer:
            original = make(parameters)
            group = original.param_groups[0]
            # Adam's own decay is not decoupled and is 0 in every case; AdamW's is taken over.
            return StableAdamW(group["params"], group["lr"], weight_decay=group["weight_decay"])

        return factory

    module.make_optimizer = replaced(module.make_optimizer)
    if isinstance(module, (Gan, Pair)):
        module.rates = (replaced(module.rates[0]), replaced(module.rates[1]))
    return {}


def setup_gradguard(case: Case, module: LightningModule) -> dict[str, Any]:
    """Use GradGuard with no arguments."""
    from lightning_gradguard import GradGuard

    return {"callbacks": [GradGuard()]}


def _by(make: Callable[[], Callback]) -> Setup:
    return lambda case, module: {"callbacks": [make()]}


CONTENDERS = {
    c.name: c
    for c in (
        Contender("none", setup_none),
        Contender("clip 1", setup_clip),
        Contender("skip+clip", _by(SkipNonFiniteAndClip)),
        Contender("zclip", setup_zclip),
        Contender("autoclip", _by(AutoClip)),
        Contender("autoclip-package", _by(PublishedAutoClip)),
        Contender("agc", _by(Agc)),
        Contender("olmo-skip", _by(OlmoSkip)),
        Contender("spike-detection", setup_spike_detection),
        Contender("stable-adamw", setup_stable_adamw, lambda case: case.adam),
        Contender("gradguard", setup_gradguard),
    )
}


def find(name: str) -> Contender:
    """Look a contender up by name, or import ``module:factory``, where ``factory()`` gives a callback."""
    if name in CONTENDERS:
        return CONTENDERS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"contender must be one of {', '.join(CONTENDERS)} or module:factory, got {name!r}")
    factory = getattr(importlib.import_module(module), attribute)
    return Contender(name, _by(factory))
