"""How large the logits of attention are."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_gradguard.witnesses.modules import ModuleWitness, first_tensor

SEQUENCES, QUERIES = 4, 64
"""Sequences of a batch, and queries of each, whose logits are computed again: attention keeps none of them."""


class AttentionLogits(ModuleWitness):
    """Watch the largest attention logit; growing logits make a softmax that attends to one key, and then a spike.

    Of ``torch.nn.MultiheadAttention`` the logits are computed again from its projections, on a few sequences and
    queries. Other attention needs a module whose output is the logits, an ``nn.Identity`` between them and the softmax,
    say. Logits beyond 100, where the QK-Clip of Kimi K2 (2025) begins to act, are evidence whatever came before.

    Args:
        modules: Shell-style patterns of names of modules whose output is attention logits, and classes of such modules.

    Example:
        >>> from lightning_gradguard import GradGuard
        >>> from lightning_gradguard.witnesses import AttentionLogits
        >>> guard = GradGuard(witnesses=[AttentionLogits(modules=["blocks.*.attention.logits"])])
    """

    name: ClassVar[str] = "attention_logit"
    times: ClassVar[float] = 3.0
    least: ClassVar[float] = 1.0
    beyond: ClassVar[float] = 100.0

    def __init__(self, *, modules: Sequence[str | type[nn.Module]] = ()) -> None:
        super().__init__(modules)
        self.modules = (*self.modules, nn.MultiheadAttention)

    def read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        """Return the largest logit of one call."""
        if not isinstance(module, nn.MultiheadAttention):
            logits = first_tensor(output)
            return None if logits is None or not logits.numel() else logits.detach().amax()
        call = _CALL.bind(module, *args, **kwargs).arguments
        masks = {name: call.get(name) for name in ("attn_mask", "key_padding_mask")}
        return largest_logit(module, call["query"], call["key"], **masks)


_CALL = inspect.signature(nn.MultiheadAttention.forward)


def largest_logit(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    *,
    attn_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Return the largest ``q . k / sqrt(d)`` over a few sequences and queries and all their keys, in float32.

    What is masked does not count.

    Args:
        attention: The module; where it learns a bias for keys, that further key is left out.
        query: As its forward pass takes it: shape ``(L, E)``, or with a batch, which is first or second.
        key: Likewise.
        attn_mask: Boolean where it masks, or to be added; shape ``(L, S)`` or ``(N * heads, L, S)``.
        key_padding_mask: Likewise; shape ``(S,)`` or ``(N, S)``.
    """
    if query.dim() == 2:
        query, key = query[None], key[None]
    elif not attention.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    heads, stride, count = attention.num_heads, -(-query.shape[1] // QUERIES), query.shape[0]
    weights, biases = _projections(attention)
    found = []
    with torch.autocast(query.device.type, enabled=False):
        for n in range(0, count, -(-count // SEQUENCES)):
            inputs = (query[n, ::stride].float(), key[n].float())
            q, k = (functional.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
            q, k = (x.reshape(len(x), heads, -1).transpose(0, 1) for x in (q, k))
            logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
            if attn_mask is not None:
                mask = attn_mask if attn_mask.dim() == 2 else attn_mask.reshape(count, heads, *attn_mask.shape[1:])[n]
                logits = _masked(logits, mask[..., ::stride, :])
            if key_padding_mask is not None:
                logits = _masked(logits, key_padding_mask if key_padding_mask.dim() == 1 else key_padding_mask[n])
            found.append(logits.amax())
    return torch.stack(found).amax()


def _projections(attention: nn.MultiheadAttention) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return weights and biases of the projections of queries and keys."""
    if attention._qkv_same_embed_dim:
        weights = list(attention.in_proj_weight.float().chunk(3)[:2])
    else:
        weights = [attention.q_proj_weight.float(), attention.k_proj_weight.float()]
    bias = attention.in_proj_bias
    return weights, [None, None] if bias is None else list(bias.float().chunk(3)[:2])


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else logits + mask.float()
