"""How unevenly a router spreads tokens over its experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_gradguard import checks
from lightning_gradguard.witnesses.modules import ModuleWitness, first_tensor


class RouterLoad(ModuleWitness):
    """Watch the busiest expert of each router: its share of the tokens, times the number of experts.

    1 is an even load; the number of experts is a router that has collapsed on one. It is that of the process that
    writes the record, over the tokens of its own batch.

    Args:
        modules: Shell-style patterns of names of the routers, modules whose output (or the first part of it) is router
            logits of shape ``(..., experts)``, and classes of such modules.
        top_k: Experts that each token goes to.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from lightning_gradguard import GradGuard
        >>> from lightning_gradguard.witnesses import RouterLoad
        >>> guard = GradGuard(witnesses=[RouterLoad(modules=["*.router"], top_k=2)])
    """

    name: ClassVar[str] = "router_load"
    times: ClassVar[float] = 2.0
    least: ClassVar[float] = 1.5

    def __init__(self, *, modules: Sequence[str | type[nn.Module]] = ("*router", "*gate"), top_k: int = 1) -> None:
        super().__init__(modules)
        self.top_k = checks.whole("top_k", top_k, least=1)

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        """Return the load of the busiest expert in one call."""
        logits = first_tensor(output)
        return None if logits is None or not logits.numel() else busiest(logits.detach(), self.top_k)


def busiest(logits: Tensor, top_k: int = 1) -> Tensor:
    """Return the busiest expert's share of all choices, times the number of experts.

    Args:
        logits: Of shape ``(..., experts)``.
        top_k: Experts that each token goes to.
    """
    experts = logits.shape[-1]
    chosen = logits.reshape(-1, experts).topk(min(top_k, experts)).indices.reshape(-1, 1)
    # A comparison, since bincount would wait for the device.
    counts = (chosen == torch.arange(experts, device=logits.device)).sum(0)
    return counts.amax().float() * (experts / chosen.shape[0])
