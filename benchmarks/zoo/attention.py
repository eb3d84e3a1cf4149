"""Attention whose logits grow until the softmax picks one token and its gradients vanish or explode."""

from __future__ import annotations

from torch import nn

from benchmarks.zoo.case import Task, adam, adamw, case, classify, sgd, when
from benchmarks.zoo.corrupt_state import drift
from benchmarks.zoo.data import digits, markov
from benchmarks.zoo.initialisation import enlarge
from benchmarks.zoo.models import Transformer

CAUSE = "attention"


@case(
    cause=CAUSE,
    form="drift",
    architecture="ViT (pre-LN)",
    optimizer="Adam",
    culprit=["net.blocks.1.attention.query"],
    steps=600,
)
def vit_query_drifts(seed: int, sick: bool) -> Task:
    """The query projection grows by 12 % in each of 80 steps: the attention logits with it, 10⁴ in all."""
    events = {k: drift("net.blocks.1.attention.query", 1.12) for k in range(300, 380)}
    return classify(Transformer(True), digits(), seed, adam(3e-3), events=when(sick, events))


@case(
    cause=CAUSE,
    form="cold-start",
    architecture="GPT (post-LN)",
    optimizer="AdamW",
    culprit=["net.blocks.0.attention.query", "net.blocks.0.attention.key"],
    chance=0.0625,
)
def gpt_query_key_gain(seed: int, sick: bool) -> Task:
    """Queries and keys start far too large, so that the attention is one-hot from the start."""
    net = Transformer(False, pre=False)
    if sick:
        for name in ("query", "key"):
            for i in range(2):
                enlarge(net, f"blocks.{i}.attention.{name}", 1e3)
    return classify(net, markov(), seed, adamw(3e-3))


@case(
    cause=CAUSE, form="cold-start", architecture="GPT (pre-LN)", optimizer="SGD", culprit=["net.embed"], chance=0.0625
)
def gpt_embedding_1e4(seed: int, sick: bool) -> Task:
    """Token embeddings 10⁴ times too large drown the blocks and the positions."""
    net = Transformer(False)
    if sick:
        enlarge(net, "embed", 1e4)
    return classify(net, markov(), seed, sgd(0.3))


@case(cause=CAUSE, form="cold-start", architecture="ViT (post-LN)", optimizer="Adam", culprit=["net.norm"], steps=600)
def vit_final_norm_gain(seed: int, sick: bool) -> Task:
    """The final LayerNorm starts with a gain of 300."""
    net = Transformer(True, pre=False)
    if sick:
        nn.init.constant_(net.norm.weight, 300.0)
    return classify(net, digits(), seed, adam(2e-3))
