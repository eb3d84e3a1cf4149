"""Swap the activation of a block at fault for one that is bounded, and remember it in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from lightning_gradguard import checks
from lightning_gradguard.layers.names import clean, kind_of, layers, parameters_of
from lightning_gradguard.records import Outcome
from lightning_gradguard.remedies.remedy import Remedy, RemedyContext
from lightning_gradguard.snapshots.snapshot import forget

Choice = Literal["Softsign", "Tanh", "ReLU6", "SELU"]

# Without parameters: the slope of a PReLU is the optimizer's, and must not vanish.
_UNBOUNDED = (
    *(nn.ReLU, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.CELU, nn.GELU),
    *(nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus, nn.Softshrink, nn.Hardshrink),
)


class SwapActivation(Remedy):
    """Swap the activation that was seen to overflow, or else the unbounded one (ReLU, GELU, SiLU, ...) of the worst block that is blamed.

    The block's activation is the first one registered after the blamed layer, before the next layer with weights of its own; a
    module that is called several times in a block, and stands before the layer, counts too. One block is swapped at a time,
    worst first. An activation that is called as a function, ``torch.relu(x)``, is not part of the module tree and cannot be
    swapped, which the outcome says.

    ``"Softsign"``, ``x / (1 + |x|)``, is bounded by 1 and saturates slowly: at x = 100 its slope is 1e-4, where those of tanh and ReLU6
    are 0 in float32 and nothing upstream would learn again; Glorot and Bengio (2010) found it more robust to the initialisation than
    tanh. ``"ReLU6"`` changes the least, since below 6 it is a ReLU. ``"SELU"`` is not bounded, but normalises itself after
    layers with LeCun initialisation and without a normalisation (Klambauer et al., 2017).

    The swap is for good, since the weights learn to live with it. It changes the model, so it is off by default; in a list of
    remedies it accompanies back-off, rollback and repair. The optimizer's state of the blamed layer, which describes another
    function, is removed. A resumed run has the same activations, by the guard's state in the checkpoint; elsewhere call
    :func:`restore_activations`. A checkpoint saved with ``save_weights_only=True`` holds no callback's state, so it does not tell;
    :class:`GradGuard` warns of one at the start.

    Args:
        to: The activation to put in place.

    Example:
        >>> from lightning_gradguard import GradGuard
        >>> from lightning_gradguard.remedies import Reinitialize, Skip, SwapActivation
        >>> guard = GradGuard(remedies=[Skip(), Reinitialize(), SwapActivation(to="Tanh")])
    """

    name: ClassVar[str] = "swap-activation"
    deferrable: ClassVar[bool] = True

    def __init__(self, *, to: Choice = "Softsign") -> None:
        self.to = checks.choice("to", to, get_args(Choice))
        self._swapped: dict[str, str] = {}

    def apply(self, context: RemedyContext) -> Outcome:
        """Swap one activation in place."""
        found, modules = layers(context.module), _modules(context.module)
        overflows = [s.layer for s in context.blame if s.part == "activation" and s.layer in modules]
        if overflows:
            return self._swap(context.module, overflows[0])
        suspects = [suspect.layer for suspect in context.blame if suspect.layer in found]
        if not suspects:
            return Outcome(self.name, False, "no layer is blamed, so there is no block whose activation to swap")
        for layer in suspects:
            place = activation_of(context.module, layer)
            if place is None:
                continue
            outcome = self._swap(context.module, place, layer)
            for parameter in parameters_of(found[layer]).values():
                forget(context.optimizer, parameter)
            return outcome
        reason = "has no unbounded activation module (one called as a function cannot be swapped)"
        return Outcome(self.name, False, f"the block of {', '.join(suspects)} {reason}")

    def _swap(self, module: nn.Module, place: str, *layers: str) -> Outcome:
        old = type(_modules(module)[place]).__name__
        _swap(module, place, self.to)
        self._swapped[place] = self.to
        return Outcome(self.name, True, f"{place}: {old} swapped for {self.to}", layers)

    def resume(self, module: nn.Module) -> None:
        """Swap again what the loaded state says."""
        for place, kind in self._swapped.items():
            _swap(module, place, kind)

    def state_dict(self) -> dict[str, Any]:
        """Return what was swapped, by the activation's qualified name."""
        return {"swapped": dict(self._swapped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back; :meth:`resume` carries it out."""
        self._swapped = {str(place): str(kind) for place, kind in state["swapped"].items()}


def restore_activations(module: nn.Module, checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Swap the activations of a freshly built module as the guarded run had swapped them when it was saved.

    A run that is resumed under the guard needs no call. To load a model elsewhere, call this in
    ``LightningModule.on_load_checkpoint``, or before ``load_state_dict``.

    Args:
        module: The module that was guarded; its weights are not touched.
        checkpoint: A checkpoint of Lightning's, or what ``Guard.state_dict()`` returned.

    Returns:
        Names of the activations that were swapped; empty if none was, or if the checkpoint holds no guard's state.

    Example:
        >>> import torch
        >>> from lightning_gradguard import Guard
        >>> restore_activations(torch.nn.Linear(2, 2), Guard().state_dict())
        ()
    """
    states = [checkpoint, *checkpoint.get("callbacks", {}).values()]
    places: dict[str, str] = {}
    for state in states:
        tracks = state.get("lanes", {}) if isinstance(state, Mapping) else {}
        for track in tracks.values():
            places |= track["remedies"].get(SwapActivation.name, {}).get("swapped", {})
    for place, kind in places.items():
        _swap(module, place, kind)
    return tuple(places)


def activation_of(root: nn.Module, layer: str) -> str | None:
    """Return the qualified name of the unbounded activation that a layer feeds, or None where there is no such module."""
    modules = _modules(root)
    names = list(modules)
    for name in names[names.index(layer) + 1 :]:
        if isinstance(modules[name], _UNBOUNDED):
            return name
        if kind_of(modules[name]) not in ("norm", "other"):
            break
    # A block that calls one module at several places may register it first.
    block = layer.rpartition(".")[0]
    children = modules[block].named_children() if not isinstance(modules[block], nn.Sequential) else ()
    inside = [key for key, child in children if isinstance(child, _UNBOUNDED)]
    return f"{block}.{inside[0]}".lstrip(".") if inside else None


def _modules(root: nn.Module) -> dict[str, nn.Module]:
    return {clean(name): child for name, child in root.named_modules(remove_duplicate=False)}


def _swap(root: nn.Module, place: str, kind: str) -> None:
    modules = _modules(root)
    block, _, key = place.rpartition(".")
    old = modules.get(place)
    if old is None:
        raise ValueError(f"the checkpoint says that {place!r} was swapped for {kind}, but the module has no such part")
    setattr(modules[block], key, getattr(nn, kind)().train(old.training))
    if hasattr(modules[block], "activation_relu_or_gelu"):
        # nn.TransformerEncoderLayer's fast path does not ask the module which activation to apply.
        setattr(modules[block], "activation_relu_or_gelu", 0)  # noqa: B010
