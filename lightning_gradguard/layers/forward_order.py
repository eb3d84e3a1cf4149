"""The order in which layers are first used in the forward pass, read from the autograd graph of the loss.

The graph exists anyway, and reading it changes nothing, as DistributedDataParallel's search for unused parameters does.
A forward hook would tell the same of an eager module only: inside a compiled one it is compiled along, and its removal
may mean to compile again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from lightning_gradguard.layers.names import layer_of

NODES = 200_000
"""The most nodes that are walked, some 0.3 s once in a run; of a longer unrolled network a part is enough."""

LOSSES = 32
"""The most losses that are looked at for one in whose graph the parameters are."""

Use = tuple[int, int]


class ForwardOrder:
    """Learn the order in which layers are used, once in a session.

    Attributes:
        layers: Layers in the order of their first use, or of registration while that is not known.
    """

    def __init__(self) -> None:
        self.layers: tuple[str, ...] = ()
        self._to_follow = LOSSES

    def register(self, module: nn.Module) -> None:
        """Take the order of registration where there is none yet."""
        self.layers = self.layers or registered(module)

    @property
    def to_follow(self) -> bool:
        """Whether the order is still to be learned."""
        return self._to_follow > 0

    def follow(self, loss: Tensor, module: nn.Module, parameters: Iterable[nn.Parameter]) -> bool:
        """Take the order from the graph of a loss, if these parameters are in it; return whether that was done now."""
        if not self._to_follow:
            return False
        self._to_follow -= 1
        with suppress(Exception):  # a node of a kind of its own; the order of registration will do
            uses = first_uses(loss)
            # The loss may be another optimizer's.
            if any(id(p) in uses for p in parameters):
                self.layers, self._to_follow = arranged(module, uses), 0
                return True
        return False


def registered(module: nn.Module) -> tuple[str, ...]:
    """Return the layers that own parameters as registered; a parameter of the root module by its own name."""
    return tuple(dict.fromkeys(layer_of(name) or name for name, _ in module.named_parameters()))


def arranged(module: nn.Module, uses: Mapping[int, Use]) -> tuple[str, ...]:
    """Return the layers of :func:`registered` in the order of their first use, as :func:`first_uses` found it.

    A layer that was not used (not run, frozen) stays behind the one registered before it.
    """
    found: dict[str, Use] = {}
    for name, parameter in module.named_parameters():
        if (use := uses.get(id(parameter))) is not None:
            layer = layer_of(name) or name
            found[layer] = min(use, found.get(layer, use))
    places: dict[str, Use] = {}
    place = (-1, 0)
    for layer in registered(module):
        place = places[layer] = found.get(layer, place)
    return tuple(sorted(places, key=places.__getitem__))


def first_uses(loss: Tensor) -> dict[int, Use]:
    """Return, by a parameter's id, which operation used it first and as which of its inputs.

    Autograd numbers operations as they run. A compiled graph is a single one, whose inputs are in the order in which
    they were met when it was traced. Parameters of which autograd sees only copies (FSDP2), or nothing (a reentrant
    checkpoint), are missing.

    Args:
        loss: What the backward pass starts from, before it or after it.
    """
    uses: dict[int, Use] = {}
    waiting: list[Any] = [loss.grad_fn] if loss.grad_fn is not None else []
    seen = set(waiting)
    while waiting and len(seen) <= NODES:
        node = waiting.pop()
        for position, (source, _) in enumerate(node.next_functions):
            if source is None:
                continue
            leaf = getattr(source, "variable", None)
            if leaf is not None:
                use = (node._sequence_nr(), position)
                uses[id(leaf)] = min(use, uses.get(id(leaf), use))
            elif source not in seen:
                seen.add(source)
                waiting.append(source)
    return uses
