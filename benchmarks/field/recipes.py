"""What a stranger trains: some fifty small recipes, each a network, a stream of batches, a loss and a score.

None of them was taken from the zoo. A score is 1 for a perfect model and ``chance`` for one that has learned nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.field import networks as n

Batch = tuple[Tensor, ...]


@dataclass(frozen=True)
class Recipe:
    """One thing to train.

    Args:
        name: Its name.
        net: Make the network, from torch's global random numbers.
        batch: Draw one batch from a generator.
        loss: The training loss; it may draw from torch's global random numbers.
        score: How good the network is; may use its own seed only.
        chance: Score of a network that knows nothing.
        rate: A sane learning rate for plain SGD.
        later: Called before each step with the network and the count of steps: a change that belongs to a healthy run.
        options: For the Trainer.
    """

    name: str
    net: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    loss: Callable[[Any, Batch], Tensor]
    score: Callable[[nn.Module], float]
    chance: float = 0.0
    rate: float = 0.05
    later: Callable[[nn.Module, int], None] | None = None
    options: dict[str, Any] = field(default_factory=dict)


# -- data --------------------------------------------------------------------------------------------------------------


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scikit-learn's digits, standardised; the last 400 are for the score."""
    raw = load_digits()
    x = torch.tensor(raw.data, dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    y = torch.tensor(raw.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(7))
    x, y = x[order], y[order]
    return x[:-400], y[:-400], x[-400:], y[-400:]


def draw_digits(g: torch.Generator, size: int = 32) -> Batch:
    x, y, _, _ = digits()
    pick = torch.randint(len(x), (size,), generator=g)
    return x[pick], y[pick]


def teacher(x: Tensor) -> Tensor:
    """A smooth function of sixteen inputs, of unit variance or so."""
    return (torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.7 * x[:, 3] - 0.5 * x[:, 4].abs()).unsqueeze(1)


def draw_teacher(g: torch.Generator, size: int = 32) -> Batch:
    x = torch.randn(size, 16, generator=g)
    return x, teacher(x)


def draw_tokens(g: torch.Generator, size: int = 16, length: int = 24) -> Batch:
    """Sequences in which each token is twice the one before plus the one before that, mod 11, one in ten disturbed."""
    tokens = torch.randint(11, (size, 2), generator=g)
    for _ in range(length - 2):
        following = (2 * tokens[:, -1] + tokens[:, -2]) % 11
        noise = torch.randint(11, (size,), generator=g)
        following = torch.where(torch.rand(size, generator=g) < 0.1, noise, following)
        tokens = torch.cat([tokens, following.unsqueeze(1)], 1)
    return (tokens,)


def draw_sequences(g: torch.Generator, size: int = 32, length: int = 20) -> Batch:
    """Is the sum of the marked numbers positive?"""
    x = torch.randn(size, length, generator=g)
    marks = (torch.rand(size, length, generator=g) < 0.3).float()
    return torch.stack([x, marks], 2), ((x * marks).sum(1) > 0).long()


def draw_moons(g: torch.Generator, size: int = 64) -> Batch:
    angle = math.pi * torch.rand(size, generator=g)
    upper = torch.rand(size, generator=g) < 0.5
    x = torch.where(upper, torch.cos(angle), 1 - torch.cos(angle))
    y = torch.where(upper, torch.sin(angle), 0.5 - torch.sin(angle))
    points = torch.stack([x - 0.5, y - 0.25], 1) + 0.05 * torch.randn(size, 2, generator=g)
    return (points / 0.8,)


def draw_bags(g: torch.Generator, size: int = 32) -> Batch:
    """Ten words of two hundred; the class is the most frequent residue mod four."""
    words = torch.randint(200, (size, 10), generator=g)
    return words, F.one_hot(words % 4, 4).sum(1).argmax(1)


def draw_graphs(g: torch.Generator, size: int = 8) -> Batch:
    """Graphs of 16 nodes in two communities, node features that hardly tell; label each node."""
    label = torch.randint(2, (size, 16), generator=g)
    same = label.unsqueeze(1) == label.unsqueeze(2)
    edges = torch.rand(size, 16, 16, generator=g) < torch.where(same, 0.6, 0.1)
    a = (edges | edges.transpose(1, 2) | torch.eye(16, dtype=torch.bool)).float()
    x = torch.randn(size, 16, 8, generator=g)
    x[..., 0] += 1.2 * (label - 0.5)
    return x, a / a.sum(2, keepdim=True), label


def draw_speech(g: torch.Generator, size: int = 16) -> Batch:
    """Three symbols, each held for some noisy frames; CTC has to find them."""
    target = torch.randint(1, 6, (size, 3), generator=g)
    frames = F.one_hot(target.repeat_interleave(4, 1), 6).float()
    return frames + 0.3 * torch.randn(frames.shape, generator=g), target


def test_seed() -> torch.Generator:
    return torch.Generator().manual_seed(123456)


# -- scores ------------------------------------------------------------------------------------------------------------


def accuracy(draw: Callable[..., Batch], size: int, forward: Callable[[Any, Batch], Tensor]) -> Callable[[Any], float]:
    def score(net: nn.Module) -> float:
        batch = draw(test_seed(), size)
        return float((forward(net, batch).argmax(-1) == batch[-1]).float().mean())

    return score


def digits_accuracy(net: nn.Module) -> float:
    _, _, x, y = digits()
    return float((net(x).argmax(1) == y).float().mean())


def explained(predict: Callable[[Any, Tensor], Tensor] = lambda net, x: net(x)) -> Callable[[Any], float]:
    """Share of the teacher's variance."""

    def score(net: nn.Module) -> float:
        x, y = draw_teacher(test_seed(), 512)
        return float(1 - (predict(net, x) - y).square().mean() / y.var())

    return score


def below(trivial: float, loss: Callable[[Any, Batch], Tensor], draw: Callable[..., Batch], size: int = 256) -> Any:
    """How far a loss lies below that of a trivial model."""

    def score(net: nn.Module) -> float:
        with torch.random.fork_rng():
            torch.manual_seed(99)
            return 1 - float(loss(net, draw(test_seed(), size))) / trivial

    return score


# -- recipes -----------------------------------------------------------------------------------------------------------


def classify(
    name: str, net: Callable[[], nn.Module], *, draw: Callable[..., Batch] = draw_digits, **more: Any
) -> Recipe:
    """Digits, cross entropy."""
    more.setdefault("loss", lambda net, b: F.cross_entropy(net(b[0]), b[1]))
    return Recipe(name, net, draw, score=digits_accuracy, chance=0.1, **more)


def regress(name: str, net: Callable[[], nn.Module], **more: Any) -> Recipe:
    """The teacher, squared error."""
    more.setdefault("loss", lambda net, b: F.mse_loss(net(b[0]), b[1]))
    more.setdefault("score", explained())
    more.setdefault("batch", draw_teacher)
    return Recipe(name, net, **more)


def language_loss(net: nn.Module, b: Batch) -> Tensor:
    return F.cross_entropy(net(b[0][:, :-1]).flatten(0, 1), b[0][:, 1:].flatten())


def language_score(net: nn.Module) -> float:
    (tokens,) = draw_tokens(test_seed(), 128)
    # The first transition cannot be known.
    return float((net(tokens[:, :-1]).argmax(-1) == tokens[:, 1:])[:, 1:].float().mean())


def language(name: str, net: Callable[[], nn.Module], rate: float = 0.05) -> Recipe:
    return Recipe(name, net, draw_tokens, language_loss, language_score, 1 / 11, rate)


def sequence(name: str, net: Callable[[], nn.Module]) -> Recipe:
    forward = lambda net, b: net(b[0])  # noqa: E731
    return Recipe(
        name, net, draw_sequences, lambda net, b: F.cross_entropy(net(b[0]), b[1]),
        accuracy(draw_sequences, 512, forward), 0.5, 0.1,
    )  # fmt: skip


def vae_loss(net: Any, b: Batch) -> Tensor:
    out, mean, log_var = net(b[0])
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
    return F.mse_loss(out, b[0], reduction="sum") / len(out) + 0.2 * kl


def denoise_loss(net: Any, b: Batch) -> Tensor:
    image = b[0].view(-1, 1, 8, 8)
    return F.mse_loss(net(image + 0.7 * torch.randn_like(image)), image)


def contrast_loss(net: Any, b: Batch, temperature: float = 0.1) -> Tensor:
    views = [F.normalize(net(b[0] + 0.4 * torch.randn_like(b[0])), dim=1) for _ in range(2)]
    return F.cross_entropy(views[0] @ views[1].T / temperature, torch.arange(len(b[0])))


def clip_loss(net: Any, b: Batch) -> Tensor:
    left, right = F.normalize(net.left(b[0]), dim=1), F.normalize(net.right(b[0].flip(1)), dim=1)
    logits = net.log_scale.exp() * left @ right.T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def triplet_loss(net: Any, b: Batch) -> Tensor:
    e = F.normalize(net(b[0]), dim=1)
    far = torch.cdist(e, e)
    same = b[1].unsqueeze(0) == b[1].unsqueeze(1)
    return (torch.where(same, far, 0).amax(1) - torch.where(same, 9.0, far).amin(1) + 0.3).relu().mean()


def diffusion_loss(net: Any, b: Batch) -> Tensor:
    t = torch.rand(len(b[0]), 1)
    noise = torch.randn_like(b[0])
    return F.mse_loss(net(torch.cat([t.cos() * b[0] + t.sin() * noise, t], 1)), noise)


def flow_loss(net: Any, b: Batch) -> Tensor:
    z, log_det = net(b[0])
    return (0.5 * z.square().sum(1) + math.log(2 * math.pi) - log_det).mean()


def physics_loss(net: Any, b: Batch) -> Tensor:
    """u'' = -u with u(0) = 0 and u'(0) = 1: a sine."""
    t = b[0].clone().requires_grad_()
    u = net(t)
    (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    (ddu,) = torch.autograd.grad(du.sum(), t, create_graph=True)
    zero = torch.zeros(1, 1, requires_grad=True)
    u0 = net(zero)
    (du0,) = torch.autograd.grad(u0.sum(), zero, create_graph=True)
    return (ddu + u).square().mean() + 5 * u0.square().sum() + 5 * (du0 - 1).square().sum()


def physics_score(net: nn.Module) -> float:
    t = torch.linspace(0, 4, 100).unsqueeze(1)
    return float(1 - (net(t) - t.sin()).square().mean() / t.sin().var())


def gaussian_loss(net: Any, b: Batch) -> Tensor:
    mean, log_var = net(b[0]).chunk(2, 1)
    return F.gaussian_nll_loss(mean, b[1], log_var.exp())


def poisson_batch(g: torch.Generator, size: int = 32) -> Batch:
    x, y = draw_teacher(g, size)
    return x, torch.poisson(torch.exp(1 + 0.5 * y).clamp(max=1e6), generator=g)


def heavy_batch(g: torch.Generator, size: int = 32) -> Batch:
    """Student's t with three degrees of freedom added: heavy tails, and nothing wrong with them."""
    x, y = draw_teacher(g, size)
    t = torch.randn(size, 1, generator=g) / (torch.randn(size, 3, generator=g).square().mean(1, keepdim=True)).sqrt()
    return x, y + 0.3 * t


def many_tasks_loss(net: Any, b: Batch) -> Tensor:
    out = net(b[0])
    return 1e3 * F.mse_loss(out[:, :1], b[1]) + 1e-3 * out[:, 1:].square().mean()


def imbalanced_batch(g: torch.Generator, size: int = 64) -> Batch:
    x, y = draw_digits(g, size * 6)
    keep = torch.cat([torch.nonzero(y != 3)[: size - 2, 0], torch.nonzero(y == 3)[:2, 0]])
    return x[keep], (y[keep] == 3).long()


def imbalanced_score(net: nn.Module) -> float:
    _, _, x, y = digits()
    right = net(x).argmax(1) == (y == 3)
    return float((right[y == 3].float().mean() + right[y != 3].float().mean()) / 2)


def ctc_loss(net: Any, b: Batch) -> Tensor:
    log_p = net(b[0]).log_softmax(-1).transpose(0, 1)
    size = len(b[0])
    return F.ctc_loss(log_p, b[1], torch.full((size,), len(log_p)), torch.full((size,), 3), zero_infinity=True)


def bandit_loss(net: Any, b: Batch) -> Tensor:
    """REINFORCE: the policy picks the class, the reward is 1 where it is right; no baseline."""
    policy = torch.distributions.Categorical(logits=net(b[0]))
    action = policy.sample()
    return -(policy.log_prob(action) * (action == b[1]).float()).mean()


def actor_critic_loss(net: Any, b: Batch) -> Tensor:
    out = net(b[0])
    policy, value = torch.distributions.Categorical(logits=out[:, :10]), out[:, 10]
    action = policy.sample()
    reward = (action == b[1]).float() * 10
    advantage = (reward - value).detach()
    return (-policy.log_prob(action) * advantage + 0.5 * (value - reward).square() - 0.01 * policy.entropy()).mean()


def chain_batch(g: torch.Generator, size: int = 32) -> Batch:
    """Places and moves on a chain of ten; going right from the last place pays 10 and starts anew."""
    return torch.randint(10, (size,), generator=g), torch.randint(2, (size,), generator=g)


def q_loss(net: Any, b: Batch, online: bool) -> Tensor:
    place, move = b
    end = (place == 9) & (move == 1)
    following = torch.where(end, 0, (place + 2 * move - 1).clamp(0, 9))
    with torch.no_grad():
        bootstrap = (net.online if online else net.target)(F.one_hot(following, 10).float()).amax(1)
    target = 10.0 * end.float() + 0.9 * bootstrap
    value = net.online(F.one_hot(place, 10).float()).gather(1, move.unsqueeze(1)).squeeze(1)
    return F.mse_loss(value, target)


def q_score(net: Any) -> float:
    """Share of places from which the learned policy goes the right way."""
    return float((net.online(torch.eye(10)).argmax(1) == 1).float().mean())


def follow(net: Any, step: int) -> None:
    if step % 40 == 0:
        net.target.load_state_dict(net.online.state_dict())


def distil_loss(net: Any, b: Batch) -> Tensor:
    soft = F.softmax(torch.cat([b[1] * k for k in range(-2, 3)], 1), 1)
    return 16 * F.kl_div(F.log_softmax(net(b[0]) / 4, 1), soft, reduction="batchmean")


def thaw(net: Any, step: int) -> None:
    """Train the head alone for a hundred steps, then everything."""
    for p in net[:-1].parameters():
        p.requires_grad_(step >= 100)


def permuted(switch: int) -> Any:
    """A second task from ``switch`` on: the loss jumps, and that is as it should be."""

    def loss(net: Any, b: Batch) -> Tensor:
        net.seen = getattr(net, "seen", 0) + 1
        return F.cross_entropy(net(b[0]), b[1] if net.seen <= switch else (b[1] + 3) % 10)

    return loss


def permuted_score(net: nn.Module) -> float:
    _, _, x, y = digits()
    return float((net(x).argmax(1) == (y + 3) % 10).float().mean())


def maml_loss(net: Any, b: Batch) -> Tensor:
    """One inner step by functional call, then the loss through it: second derivatives."""
    names, values = zip(*net.named_parameters(), strict=True)
    half = len(b[0]) // 2

    def call(given: Any, part: slice) -> Tensor:
        return torch.func.functional_call(net, dict(zip(names, given, strict=True)), (b[0][part],))

    inner = F.mse_loss(call(values, slice(half)), b[1][:half])
    gradients = torch.autograd.grad(inner, values, create_graph=True)
    adapted = [p - 0.05 * g for p, g in zip(values, gradients, strict=True)]
    return F.mse_loss(call(adapted, slice(half, None)), b[1][half:])


def factor_batch(g: torch.Generator, size: int = 64) -> Batch:
    pair = torch.randint(30, (size, 2), generator=g)
    return pair, torch.sin(pair[:, 0].float()) * torch.cos(pair[:, 1].float())


def factor_loss(net: Any, b: Batch) -> Tensor:
    return F.mse_loss((net[0](b[0][:, 0]) * net[1](b[0][:, 1])).sum(1), b[1])


def scaled(factor: float, raw: Callable[[Any, Batch], Tensor]) -> Callable[[Any, Batch], Tensor]:
    return lambda net, b: factor * raw(net, b)


def cross_entropy(net: Any, b: Batch) -> Tensor:
    return F.cross_entropy(net(b[0]), b[1])


def squared(net: Any, b: Batch) -> Tensor:
    return F.mse_loss(net(b[0]), b[1])


def raw_targets(g: torch.Generator, size: int = 32) -> Batch:
    x, y = draw_teacher(g, size)
    return x, 1000 + 500 * y


def all_recipes() -> Sequence[Recipe]:
    """List every recipe that trains with one optimizer."""
    small = partial(n.mlp, 16, 48, 1)
    node = lambda net, b: net(b[0], b[1])  # noqa: E731
    image_trivial = float(digits()[2].square().mean())
    return (
        # classifiers of digits
        classify("logistic", lambda: nn.Linear(64, 10)),
        classify("mlp", lambda: n.mlp(64, 64, 10)),
        classify("mlp_dropout_gelu", lambda: n.mlp(64, 96, 10, act=nn.GELU, dropout=0.4)),
        classify("deep_mlp", lambda: n.mlp(64, 48, 10, depth=10), rate=0.02),
        classify("deep_mlp_norm", lambda: n.mlp(64, 48, 10, depth=12, norm=nn.LayerNorm)),
        classify("deep_tanh", lambda: n.mlp(64, 48, 10, depth=8, act=nn.Tanh)),
        classify("selu", lambda: n.mlp(64, 48, 10, depth=6, act=nn.SELU)),
        classify("cnn", lambda: n.cnn()),
        classify("cnn_batchnorm", lambda: n.cnn(norm=True)),
        classify("resnet", lambda: n.resnet()),
        classify("resnet_zero_init", lambda: n.resnet(zero=True)),
        classify("spectral_norm", lambda: n.spectral()),
        classify("stochastic_depth", lambda: n.StochasticDepth()),
        classify("mixture_of_experts", lambda: n.Mixture()),
        classify("vit", lambda: n.VisionTransformer(True)),
        classify("vit_post_norm", lambda: n.VisionTransformer(False), rate=0.02),
        classify("batch_of_one", lambda: n.mlp(64, 64, 10), draw=lambda g: draw_digits(g, 1), rate=0.01),
        classify("batch_of_1024", lambda: n.mlp(64, 64, 10), draw=lambda g: draw_digits(g, 1024), rate=0.1),
        classify("loss_1e-9", lambda: n.mlp(64, 64, 10), loss=scaled(1e-9, cross_entropy), rate=5e7),
        classify("loss_1e4", lambda: n.mlp(64, 64, 10), loss=scaled(1e4, cross_entropy), rate=5e-6),
        classify("sum_reduction", lambda: n.mlp(64, 64, 10), loss=scaled(32, cross_entropy), rate=2e-3),
        classify("thaw", lambda: n.mlp(64, 64, 10), later=thaw),
        classify("policy_gradient", lambda: n.mlp(64, 64, 10), loss=bandit_loss, rate=0.3),
        classify("accumulate", lambda: n.mlp(64, 64, 10), options={"accumulate_grad_batches": 4}),
        classify("clipped", lambda: n.cnn(), options={"gradient_clip_val": 1.0}),
        classify("bf16", lambda: n.mlp(64, 64, 10), options={"precision": "bf16-mixed"}),
        Recipe("actor_critic", lambda: n.mlp(64, 64, 11), draw_digits, actor_critic_loss,
               lambda net: float((net(digits()[2])[:, :10].argmax(1) == digits()[3]).float().mean()), 0.1, 0.01),
        Recipe("second_task", lambda: n.mlp(64, 64, 10), draw_digits, permuted(150), permuted_score, 0.1),
        Recipe("imbalanced", lambda: n.mlp(64, 64, 2), imbalanced_batch, cross_entropy, imbalanced_score, 0.5),
        # images in, images out
        Recipe("autoencoder", lambda: n.mlp(64, 32, 64), lambda g: draw_digits(g)[:1] * 2, squared,
               lambda net: float(1 - F.mse_loss(net(digits()[2]), digits()[2]) / image_trivial), rate=0.1),
        Recipe("vae", n.VAE, draw_digits, vae_loss, below(64 * image_trivial, vae_loss, draw_digits), rate=1e-3),
        Recipe("unet", n.UNet, draw_digits, denoise_loss, below(image_trivial, denoise_loss, draw_digits)),
        Recipe("contrastive", lambda: n.mlp(64, 64, 16), draw_digits, contrast_loss,
               below(math.log(64), contrast_loss, draw_digits, 64)),
        Recipe("clip_style", n.TwoTowers, draw_digits, clip_loss, below(math.log(32), clip_loss, draw_digits, 32)),
        Recipe("triplet", lambda: n.mlp(64, 64, 16), lambda g: draw_digits(g, 64), triplet_loss,
               below(0.5, triplet_loss, draw_digits, 64)),
        # sequences
        sequence("gru", lambda: n.Recurrent(nn.GRU)),
        sequence("lstm", lambda: n.Recurrent(nn.LSTM)),
        sequence("rnn_tanh", lambda: n.Recurrent(nn.RNN)),
        language("gpt", lambda: n.GPT(True)),
        language("gpt_post_norm", lambda: n.GPT(False)),
        language("gpt_tied", lambda: n.GPT(True, tied=True)),
        Recipe("ctc", lambda: n.Speech(), draw_speech, ctc_loss, below(4.0, ctc_loss, draw_speech)),
        # other shapes
        Recipe("embedding_bag", lambda: n.Bag(), draw_bags, cross_entropy,
               accuracy(draw_bags, 512, lambda net, b: net(b[0])), 0.25, 0.5),
        Recipe("graph", n.GraphNet, draw_graphs,
               lambda net, b: F.cross_entropy(net(b[0], b[1]).flatten(0, 1), b[2].flatten()),
               accuracy(draw_graphs, 64, node), 0.5, 0.1),
        Recipe("factorisation", lambda: nn.Sequential(nn.Embedding(30, 8), nn.Embedding(30, 8)), factor_batch,
               factor_loss, below(0.25, factor_loss, factor_batch), rate=0.5),
        # densities
        Recipe("diffusion", lambda: n.mlp(3, 64, 2, act=nn.SiLU), draw_moons, diffusion_loss,
               below(1.0, diffusion_loss, draw_moons, 2048)),
        Recipe("flow", n.Flow, draw_moons, flow_loss, below(2.84, flow_loss, draw_moons, 1024), rate=5e-3),
        # regression
        regress("regression", small),
        regress("raw_targets", small, batch=raw_targets, rate=1e-6,
                score=explained(lambda net, x: (net(x) - 1000) / 500)),
        regress("quantile", small,
                loss=lambda net, b: (lambda e: torch.maximum(0.5 * e, -0.5 * e).mean())(b[1] - net(b[0]))),
        regress("huber", small, loss=lambda net, b: F.huber_loss(net(b[0]), b[1]), batch=heavy_batch),
        regress("heavy_tails", small, batch=heavy_batch, rate=0.02),
        regress("gaussian", partial(n.mlp, 16, 48, 2), loss=gaussian_loss, rate=0.01,
                score=explained(lambda net, x: net(x)[:, :1])),
        regress("poisson", small, batch=poisson_batch, rate=5e-3,
                loss=lambda net, b: F.poisson_nll_loss(net(b[0]), b[1]),
                score=explained(lambda net, x: 2 * (net(x) - 1))),
        regress("many_tasks", partial(n.mlp, 16, 48, 2), loss=many_tasks_loss, rate=2e-5,
                score=explained(lambda net, x: net(x)[:, :1])),
        regress("maml", small, loss=maml_loss),
        regress("ode", n.ODE),
        Recipe("distillation", partial(n.mlp, 16, 48, 5), draw_teacher, distil_loss,
               below(16 * 0.35, distil_loss, draw_teacher, 512)),
        Recipe("physics", lambda: n.mlp(1, 32, 1, act=nn.Tanh), lambda g: (4 * torch.rand(64, 1, generator=g),),
               physics_loss, physics_score, rate=5e-3),
        # values that chase themselves
        Recipe("q_learning", n.QPair, chain_batch, partial(q_loss, online=True), q_score, 0.5),
        Recipe("q_target_network", n.QPair, chain_batch, partial(q_loss, online=False), q_score, 0.5, later=follow),
    )  # fmt: skip
