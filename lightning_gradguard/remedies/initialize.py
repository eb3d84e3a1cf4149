"""Initialise a whole network by the signal that goes through it. One idea: a batch at hand tells the scale of all."""

from __future__ import annotations

import zlib
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from lightning_gradguard.attribution.signal import WILD
from lightning_gradguard.layers.fan import gates_of
from lightning_gradguard.layers.initialization import draw, fitting
from lightning_gradguard.layers.names import layers, parameters_of
from lightning_gradguard.policy.act import Act
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.layer_scale import Scaled, agree, scale_layer, wide
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext
from lightning_gradguard.remedies.standardize import StandardInputs, fits, suits
from lightning_gradguard.snapshots.norm_buffers import reset_statistics
from lightning_gradguard.snapshots.snapshot import forget
from lightning_gradguard.statistics.sharding import sharded

SMALLER = 0.1
"""Share of the last one that the deviation of every layer's output has where a network is drawn once more."""


class Initialize(Remedy):
    """Draw the weights of a fresh network anew, and scale them by the signal, from input to output.

    Layer-sequential unit-variance initialisation (LSUV; Mishkin and Matas, 2016) with the centring of Krähenbühl et al.
    (2016): matrices are drawn as fits the layer and its activation; then, inside the next batch's own forward pass,
    each linear and convolution layer's output is brought to a deviation of 1 (of units that say the same of every
    sample, to mean 0 as well) before the next layer sees it, so residual branches, normalisations and activations are
    respected as they are. The step of that batch is skipped. A network that has to be drawn once more gets outputs of a
    tenth, since what it is followed by (an exponential, a ratio) could not take those of 1. Several processes average
    what they measured. Recurrent and attention layers, embeddings and normalisations get the initialisation that fits
    them; shared weights, sharded, parametrised and custom ones are left alone.

    A layer that takes in the data, of which the scale is wild, is drawn and from then on trained as if its columns were
    standardised: :mod:`~lightning_gradguard.remedies.standardize`.
    """

    name: ClassVar[str] = "initialize"
    acts: ClassVar[frozenset[str]] = frozenset({Act.INITIALIZE})
    deferrable: ClassVar[bool] = True
    uses_snapshots: ClassVar[bool] = True

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._scaled: dict[str, Scaled] = {}
        self._inputs: list[float] = []
        self._ones: dict[str, Tensor] = {}
        self._draws = 0
        # Layers that the next batch is to scale.
        self._waiting: list[str] = []
        self._standard = StandardInputs()

    @property
    def rescaled(self) -> frozenset[str]:
        """Names of the weights whose updates are made for standardised columns."""
        return frozenset(f"{name}.weight" if name else "weight" for name in self._standard.columns)

    @property
    def at_work(self) -> bool:
        """Whether the next batch is used to measure, so that its step is skipped."""
        return bool(self._handles)

    @torch.no_grad()
    def apply(self, context: RemedyContext) -> Outcome:
        """Draw anew, and have the next forward pass scale what was drawn."""
        self._rest()
        self._standard.begin()
        suited = suits(context.optimizer)
        found, owned = layers(context.module), {id(p) for p in context.parameters.values()}
        if any(sharded(p) for p in context.parameters.values()):
            return Outcome(self.name, False, "the weights are sharded, so that only the rate is searched")
        uses: dict[int, int] = {}
        for layer in context.module.modules():
            for p in layer._parameters.values():
                uses[id(p)] = uses.get(id(p), 0) + (p is not None)
        changed = []
        for name, layer in found.items():
            own = parameters_of(layer)
            if not own or not all(id(p) in owned and uses.get(id(p), 0) == 1 for p in own.values()):
                continue
            if _redraw(context, name, layer):
                changed.append(name)
                for parameter in own.values():
                    forget(context.optimizer, parameter)
            if (type(layer) is nn.Linear or isinstance(layer, _ConvNd)) and "weight" in layer._parameters:
                if suited and fits(layer):
                    self._standard.waiting.append(name)
                self._measure(name, layer)
                self._waiting.append(name)
        for layer in context.module.modules():
            if isinstance(layer, _NormBase):
                reset_statistics(layer)
        if not changed:
            self._rest()
            return Outcome(self.name, False, "no layer of a kind that can be drawn anew")
        self._draws += 1
        return Outcome(
            self.name, True, f"{len(changed)} layers drawn anew, to be scaled by the next batch", tuple(changed)
        )

    def _measure(self, name: str, layer: nn.Module) -> None:
        """Have the next forward pass ask for the layer's columns, and scale its output."""

        def meet(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            if layer.training and inputs:
                made = not torch.is_grad_enabled() or getattr(inputs[0], "requires_grad", False)
                self._standard.meet(name, layer, inputs[0], made=made)

        self._handles.append(layer.register_forward_pre_hook(meet))
        self._handles.append(layer.register_forward_hook(self._scaler(name)))

    def _scaler(self, name: str) -> Any:
        def measure(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if not isinstance(output, Tensor) or not layer.training:
                return None
            if name in self._scaled:
                # Computed again for the backward pass (activation checkpointing), which must find as many tensors as
                # there were.
                return output * self._ones[name]
            if not self._scaled and inputs and isinstance(inputs[0], Tensor):
                self._inputs = [float(wide(inputs[0].detach()).square().mean().sqrt())]
            done = scale_layer(layer, output.detach(), SMALLER ** (self._draws - 1))
            if done is None:
                return None
            self._scaled[name], scale, shift = done
            self._ones[name] = torch.ones_like(scale)
            # The next layer sees the output as it will be; the graph goes on, since the user's backward pass is to
            # come.
            return (output + shift) * scale

        return measure

    def finish(self, mean: Any = None) -> str:
        """Take the hooks off, agree with the other processes, and return in words what was done.

        Args:
            mean: Averages a list of numbers over the processes; None where there is one.
        """
        done, inputs = list(self._scaled.values()), self._inputs
        if mean is not None and done:
            agree(done, mean)
        self._rest()
        if not done:
            return "no forward pass could be measured (a compiled graph?), so that only the rate is searched"
        self._standard.waiting = []
        wild = inputs and not self._standard.columns and not 1.0 / WILD <= inputs[0] <= WILD
        told = f"; the inputs have an RMS of {inputs[0]:.3g}: standardise them" if wild else ""
        if self._standard.columns:
            told = f"; {', '.join(self._standard.columns)} trained as if the inputs were standardised: standardise them"
        return f"{len(done)} layers scaled by the signal of one batch{told}"

    def before_update(self, context: RemedyContext) -> None:
        """Give the optimizer gradients for standardised columns, where those of the inputs are wild."""
        self._standard.before_update(context)

    def after_update(self) -> None:
        """Bring back what the optimizer has made of them."""
        self._standard.after_update()

    def take_back(self, context: RemedyContext) -> None:
        """Train on the inputs as they are again."""
        self._standard.forget(context)

    def _rest(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._scaled, self._inputs, self._ones, self._waiting = [], {}, [], {}, []

    def state_dict(self) -> dict[str, Any]:
        """Return the layers that the next batch is to scale."""
        return {"waiting": list(self._waiting), "draws": self._draws, "standard": self._standard.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self._rest()
        self._waiting, self._draws = [str(name) for name in state["waiting"]], int(state["draws"])
        self._standard.load_state_dict(state["standard"])

    def resume(self, module: nn.Module) -> None:
        """Have the next forward pass scale what was drawn before the state was saved."""
        found = layers(module)
        for name in self._waiting:
            if name in found:
                self._measure(name, found[name])

    def close(self) -> None:
        """Take the hooks off; after :meth:`resume` the next batch is still used to measure."""
        waiting = self._waiting
        self._rest()
        self._waiting = waiting


def _redraw(context: RemedyContext, name: str, layer: nn.Module) -> bool:
    """Draw the parameters of a layer anew where their role is known and they are not zero on purpose."""
    done = False
    for key, parameter in parameters_of(layer).items():
        plan = fitting(context.module, name, key)
        if plan is None or "." in key or (parameter.ndim > 1 and not bool(parameter.any())):
            continue
        seed = zlib.crc32(f"{context.statistics.step}/{name}.{key}".encode())
        values = draw(plan, parameter.shape, gates_of(layer), torch.Generator().manual_seed(seed))
        if (padding := getattr(layer, "padding_idx", None)) is not None and key == "weight":
            values[padding] = 0.0
        parameter.data.copy_(values)
        done = True
    return done
