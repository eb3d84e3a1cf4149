"""Healthy runs whose loss is negative, changes its sign, or means little by itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F
from torch.optim import Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.wild._healthy import digits, loader, lr, mlp, r2, scored
from benchmarks.wild.case import Task, Variant, case


def ticks(seed: int) -> Any:
    """Serve batches for runs that make their own data."""
    return loader(seed, torch.arange(1000), size=1)


class Ordinary(LightningModule):
    """A module that uses Adam at its rate, or another optimizer."""

    optimizer: Any = Adam
    total: int | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def configure_optimizers(self) -> Any:
        """Use the optimizer on everything, with a cosine decay where a total is given."""
        optimizer: Optimizer = type(self).optimizer(self.parameters(), self.rate)
        if self.total is None:
            return optimizer
        return [optimizer], [{"scheduler": CosineAnnealingLR(optimizer, self.total), "interval": "step"}]


class Bandit(Ordinary):
    """REINFORCE for twelve contexts and six arms, one of which pays."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.net, self.best, self.baseline = nn.Linear(12, 6), torch.randint(0, 6, (12,)), 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Play 32 rounds; reward is one for the right arm, less a running mean."""
        contexts = torch.randint(0, 12, (32,))
        policy = Categorical(logits=self.net(F.one_hot(contexts, 12).float()))
        arms = policy.sample()
        reward = (arms == self.best[contexts]).float()
        self.baseline += 0.05 * (float(reward.mean()) - self.baseline)
        return -((reward - self.baseline) * policy.log_prob(arms)).mean() - 0.001 * policy.entropy().mean()


@case(
    kind="healthy", what="rewards are rare at first; the loss hovers about zero on both sides", steps=700, chance=1 / 6
)
def bandit_by_reinforce(seed: int, variant: Variant) -> Task:
    """REINFORCE with a running baseline."""
    score = scored(lambda m: m.net(torch.eye(12)).softmax(1)[torch.arange(12), m.best].mean(), 1 / 6)
    return Task(Bandit(lr(variant, 5e-2)), ticks(seed), score)


class Steering(Ordinary):
    """An actor-critic for a noisy point that is to be held at the origin."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.actor, self.critic, self.log_std = mlp(2, 16, 1, act=nn.Tanh), mlp(2, 32, 1), nn.Parameter(torch.zeros(1))

    def rollout(self, count: int, noisy: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Play episodes of ten moves; give states, log-probabilities, and rewards."""
        state, states, logs, rewards = 2 * torch.randn(count, 2), [], [], []
        for _ in range(10):
            mean = self.actor(state).squeeze(1)
            policy = Normal(mean, self.log_std.exp(), validate_args=False)
            force = policy.sample() if noisy else mean
            states.append(state)
            logs.append(policy.log_prob(force))
            place, speed = state.detach().unbind(1)
            speed = 0.8 * speed + force.detach().clamp(-3, 3)
            state = torch.stack([place + 0.5 * speed, speed], 1)
            rewards.append(-state[:, 0].square())
        return torch.stack(states), torch.stack(logs), torch.stack(rewards)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Follow the advantage, fit the value, and keep a little entropy."""
        states, logs, rewards = self.rollout(24, True)
        returns = rewards.flip(0).cumsum(0).flip(0) / 10
        values = self.critic(states).squeeze(2)
        advantage = (returns - values).detach()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        return -(advantage * logs).mean() + 0.5 * F.smooth_l1_loss(values, returns) - 0.01 * self.log_std.sum()


def cost(module: Any) -> float:
    """Give the share of the cost of doing nothing that a policy saves."""
    state = torch.random.get_rng_state()
    torch.manual_seed(77)
    rewards = module.rollout(400, False)[2].mean()
    torch.random.set_rng_state(state)
    return 1 + float(rewards) / 5.5


@case(kind="healthy", what="returns from -50 up, a loss that changes its sign, a learned deviation", steps=240)
def point_held_by_actor_critic(seed: int, variant: Variant) -> Task:
    """Advantage actor-critic with a Gaussian policy."""
    return Task(Steering(lr(variant, 1e-2)), ticks(seed), scored(cost))


class Spread(Ordinary):
    """Mean and log-variance by one net."""

    optimizer, total = RMSprop, 600

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.net = mlp(1, 48, 48, 2, act=nn.SiLU)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Compute the Gaussian negative log-likelihood."""
        x, y = batch
        mean, log_var = self.net(x).chunk(2, 1)
        return 0.5 * (log_var + (y - mean).square() / log_var.exp()).mean()


@case(kind="healthy", what="the loss crosses zero and falls on, rows of tiny variance weigh a thousandfold", steps=600)
def deviations_by_gaussian_likelihood(seed: int, variant: Variant) -> Task:
    """Heteroscedastic regression, deviations from .01 to 1."""
    x = 4 * torch.rand(3000, 1) - 2
    log_std = -2.3 + 2.3 * torch.sin(1.6 * x)
    y = torch.sin(x) + log_std.exp() * torch.randn(3000, 1)
    return Task(
        Spread(lr(variant, 3e-3)), loader(seed, x, y, size=64), scored(lambda m: r2(log_std, m.net(x)[:, 1:] / 2))
    )


class Flow(Ordinary):
    """Five affine couplings in the plane."""

    total = 320

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.couplings = nn.ModuleList(mlp(1, 32, 32, 2, act=nn.Tanh) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        """Give the log-density."""
        z, log = x, torch.zeros(len(x))
        for coupling in self.couplings:
            a, b = z.unbind(1)
            log_scale, shift = coupling(a[:, None]).unbind(1)
            log_scale = 2 * torch.tanh(log_scale / 2)
            z, log = torch.stack([b * log_scale.exp() + shift, a], 1), log + log_scale
        return log - 0.5 * z.square().sum(1) - math.log(2 * math.pi)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Raise the likelihood."""
        return -self(batch[0]).mean()


def ring(count: int) -> Tensor:
    """Draw points close to a small circle that lies off the origin."""
    angle = 6.3 * torch.rand(count)
    return torch.stack([angle.cos(), angle.sin()], 1) * 0.3 + 0.02 * torch.randn(count, 2) + torch.tensor([1.0, -0.5])


@case(
    kind="healthy",
    what="a density that grows without a visible bound: the loss goes from two to below minus one",
    steps=320,
)
def flow_on_a_thin_ring(seed: int, variant: Variant) -> Task:
    """A normalising flow on a thin ring."""
    test = ring(1000)
    return Task(Flow(lr(variant, 1e-2)), loader(seed, ring(4000), size=100), scored(lambda m: (m(test).mean() + 3) / 4))


class Annealed(Ordinary):
    """A variational autoencoder whose divergence term comes in over 300 steps."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.encode, self.decode = mlp(64, 64, 16), mlp(8, 64, 64)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Sum the Gaussian likelihood of the pixels and the weighted divergence."""
        x = batch[0]
        mean, log_var = self.encode(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_var / 2).exp()
        likelihood = -((self.decode(z) - x).square() / 0.08 + math.log(0.08 * math.pi)).sum(1) / 2
        divergence = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
        return -(likelihood - min(1.0, self.global_step / 300) * divergence).mean()


@case(kind="healthy", what="a loss that falls, then climbs for hundreds of steps as a term is weighed in", steps=700)
def vae_with_annealed_divergence(seed: int, variant: Variant) -> Task:
    """A VAE on the digits with KL annealing."""
    data = digits()
    score = scored(lambda m: r2(data.x_test, m.decode(m.encode(data.x_test)[:, :8])))
    return Task(Annealed(lr(variant, 4e-3)), loader(seed, data.x, size=64), score)


class Contrast(Ordinary):
    """InfoNCE between two noisy views, with a learned temperature."""

    optimizer = AdamW

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.left, self.right = mlp(20, 64, 16), mlp(20, 64, 16)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def logits(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare every left view with every right one."""
        return self.log_scale.exp() * F.normalize(self.left(a)) @ F.normalize(self.right(b)).T

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Let both views find each other."""
        logits, goal = self.logits(*batch), torch.arange(len(batch[0]))
        return (F.cross_entropy(logits, goal) + F.cross_entropy(logits.T, goal)) / 2


@case(kind="healthy", what="a scalar temperature gets the largest gradient of all", steps=500)
def two_views_with_learned_temperature(seed: int, variant: Variant) -> Task:
    """Contrastive learning of pairs, scored by retrieval among 200."""
    hidden = torch.randn(3000, 6)
    a, b = (hidden @ torch.randn(6, 20) + 0.3 * torch.randn(3000, 20) for _ in range(2))
    goal = torch.arange(200)
    score = scored(lambda m: (m.logits(a[2800:], b[2800:]).argmax(1) == goal).float().mean())
    return Task(Contrast(lr(variant, 5e-3)), loader(seed, a[:2800], b[:2800], size=64), score)


class Mixture(Ordinary):
    """A mixture density net of four Gaussians."""

    total = 600

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.net = mlp(1, 48, 12, act=nn.Tanh)

    def likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """Give the mean log-likelihood."""
        weight, mean, log_std = self.net(x).chunk(3, 1)
        parts = weight.log_softmax(1) - log_std - 0.5 * ((y - mean) / log_std.exp()).square() - 0.919
        return parts.logsumexp(1).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Raise the likelihood."""
        return -self.likelihood(*batch)


@case(kind="healthy", what="components die and split; single batches have ten times the usual gradient", steps=600)
def inverse_law_by_mixture_density(seed: int, variant: Variant) -> Task:
    """Bishop's inverse problem: several answers to one question."""
    y = torch.rand(3000, 1)
    x = y + 0.3 * torch.sin(6.28 * y) + 0.03 * torch.randn(3000, 1)
    module = Mixture(lr(variant, 7e-3))
    return Task(module, loader(seed, x[500:], y[500:], size=64), scored(lambda m: m.likelihood(x[:500], y[:500])))


class Uncertain(Ordinary):
    """Two tasks of very different size, weighed by learned log-variances."""

    total = 600

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.net, self.log_var = mlp(6, 64, 2), nn.Parameter(torch.zeros(2))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Sum the tasks' squared errors over their variances, and the log-variances."""
        errors = (self.net(batch[0]) - batch[1]).square().mean(0)
        return (errors * (-self.log_var).exp() + self.log_var).sum()


@case(kind="healthy", what="a loss that turns negative, two scalars that steer everything", steps=600)
def two_tasks_by_learned_weights(seed: int, variant: Variant) -> Task:
    """Multi-task regression with homoscedastic uncertainty, targets of size .1 and 5."""
    x = torch.randn(2600, 6)
    clean = torch.stack([0.1 * torch.sin(x[:, 0] + x[:, 1]), 5 * torch.tanh(x[:, 2] * x[:, 3])], 1)
    y = clean + torch.tensor([0.01, 0.5]) * torch.randn(2600, 2)
    score = scored(lambda m: r2(clean[2000:], m.net(x[2000:])))
    return Task(Uncertain(lr(variant, 1e-2)), loader(seed, x[:2000], y[:2000], size=64), score)
