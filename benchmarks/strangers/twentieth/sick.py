"""Training programs with one mistake each; with ``twin=True`` the mistake is absent."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import nn

from common import *


# ---------------------------------------------------------------- audio, recurrent
class FrameRNN(nn.Module):
    def __init__(self, frame, hidden, classes):
        super().__init__()
        self.rnn = nn.RNN(frame, hidden, nonlinearity="relu", batch_first=True)
        self.out = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.out(self.rnn(x)[1][0])


def tones(n, g, classes=6, frame=8, frames=25):
    y = torch.randint(classes, (n,), generator=g)
    f = 0.06 * 1.22 ** y.float() * (1 + 0.02 * torch.randn(n, generator=g))
    t = torch.arange(frame * frames).float()
    x = torch.sin(2 * np.pi * f[:, None] * t + 6.3 * torch.rand(n, 1, generator=g))
    x = x + 0.4 * torch.randn(x.shape, generator=g)
    return x.reshape(n, frames, frame), y


def audio_pitch_rnn(seed, twin=False):
    """Note recognition: a ReLU recurrence over frames of a noisy tone names one of six pitches (RMSprop).

    The mistake: the recurrent matrix is drawn from a standard normal times 0.4 (spectral radius near 3), not set to
    the identity.
    """
    g = G(seed)
    x, y = tones(1600, g)
    xt, yt = tones(600, g)
    net = FrameRNN(8, 48, 6)
    with torch.no_grad():
        w = net.rnn.weight_hh_l0
        w.copy_(0.95 * torch.eye(48) if twin else 0.4 * torch.randn(48, 48, generator=g))
        net.rnn.bias_hh_l0.zero_()
        net.rnn.bias_ih_l0.zero_()
    task = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.RMSprop(p, lr=1e-3),
    )
    return Run(
        task,
        loader(x, y, batch=32, seed=seed),
        lambda m: accuracy(m.net.eval()(xt), yt),
        majority(yt),
        {"max_steps": 1200},
    )


# ---------------------------------------------------------------- finance, reinforcement learning
def bandit_portfolio(seed, twin=False):
    """A trading policy by REINFORCE: signals of the day, one of five assets is held, the return is the reward (SGD).

    The mistake: the returns come in basis points, while rate and baseline were set for fractions.
    """
    g = G(seed)
    w = torch.randn(10, 5, generator=g) / 10**0.5
    unit = 1.0 if twin else 1e4

    def market(n, g):
        s = torch.randn(n, 10, generator=g)
        mean = 0.01 * (s @ w)
        return s, mean, mean + 0.01 * torch.randn(n, 5, generator=g)

    def loss(m, b):
        g = G(int(b[0][0]))
        s, _, r = market(64, g)
        logp = m.net(s).log_softmax(-1)
        probs = torch.nan_to_num(logp.detach().exp(), nan=0.0) + 1e-6
        a = torch.multinomial(probs, 1, generator=g)[:, 0]
        reward = unit * r[torch.arange(64), a]
        entropy = -(logp.exp() * logp).sum(-1).mean()
        return -((reward - reward.mean()) * logp[torch.arange(64), a]).mean() - 1e-5 * entropy

    st, mt, _ = market(2000, G(seed + 77))

    def score(m):
        q = m.net(st)
        if not torch.isfinite(q).all():
            return float("nan")
        got = mt[torch.arange(2000), q.argmax(-1)].mean()
        return float(got / mt.max(-1).values.mean())

    task = Task(mlp(10, 32, 5), loss, lambda p: torch.optim.SGD(p, lr=20.0))
    return Run(task, ticks(2500, seed), score, 0.0, {"max_steps": 2500})


# ---------------------------------------------------------------- vision, generative
class VAE(nn.Module):
    def __init__(self, bounded):
        super().__init__()
        self.enc, self.dec, self.bounded = mlp(64, 96, 16), mlp(8, 96, 128), bounded

    def forward(self, x, noise=True):
        mu, ls = self.enc(x).chunk(2, -1)
        z = mu + ls.exp() * torch.randn_like(mu) if noise else mu
        m, v = self.dec(z).chunk(2, -1)
        v = F.softplus(v) + 0.01 if self.bounded else v.relu() + 1e-6
        kl = 0.5 * (mu**2 + (2 * ls).exp() - 2 * ls - 1).sum(-1)
        return m, v, kl


def vae_digit_pixels(seed, twin=False):
    """A variational autoencoder of handwritten digits whose decoder gives mean and variance of each pixel (Adam).

    The mistake: the variance is a ReLU plus 1e-6, by which the squared errors are divided.
    """
    x = T(datasets.load_digits().data / 16)
    tr, te = split(len(x), seed)

    def loss(m, b):
        mean, v, kl = m.net(b[0])
        return (0.5 * ((b[0] - mean) ** 2 / v + v.log()).sum(-1) + kl).mean()

    def score(m):
        p = m.net.eval()(x[te], noise=False)[0]
        return float(1 - ((p - x[te]) ** 2).mean() / ((x[te] - x[tr].mean(0)) ** 2).mean())

    task = Task(VAE(twin), loss, lambda p: torch.optim.Adam(p, lr=3e-3))
    return Run(task, loader(x[tr], batch=64, seed=seed), score, 0.0, {"max_steps": 2500})


# ---------------------------------------------------------------- biology, graph net
class GCN(nn.Module):
    def __init__(self, a, x):
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("x", x)
        self.l = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)])

    def forward(self):
        h = self.x
        for i, f in enumerate(self.l):
            h = f(self.a @ h)
            if i < 3:
                h = h.relu()
        return h


def protein_graph(seed, twin=False):
    """Function of proteins from a graph of interactions: four graph convolutions, few labels (SGD with momentum).

    The mistake: the adjacency is not normalised by the degrees, so that each layer sums up dozens of neighbours.
    """
    g = G(seed)
    n = 160
    y = torch.arange(n) % 4
    same = y[:, None] == y[None]
    a = (torch.rand(n, n, generator=g) < torch.where(same, 0.35, 0.08)).float().triu(1)
    a = a + a.T + torch.eye(n)
    if twin:
        d = a.sum(1).rsqrt()
        a = d[:, None] * a * d
    x = torch.randn(n, 16, generator=g)
    x[:, :4] += 1.0 * F.one_hot(y, 4)
    tr, te = split(n, seed, 0.4)
    tr, te = torch.as_tensor(tr), torch.as_tensor(te)
    task = Task(
        GCN(a, x),
        lambda m, b: F.cross_entropy(m.net()[b[0]], y[b[0]]),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
    )
    return Run(
        task,
        loader(tr, batch=16, seed=seed),
        lambda m: accuracy(m.net.eval()()[te], y[te]),
        majority(y[te]),
        {"max_steps": 2500},
    )


# ---------------------------------------------------------------- physics / engineering, corrupt records
def building_sensors(seed, twin=False):
    """Energy use of buildings from ten sensors (a regression in the manner of Friedman), SGD with Nesterov momentum.

    The mistake: three records of 1200 still hold -9999, the logger's mark of a missing reading.
    """
    x, y = datasets.make_friedman1(1600, 10, noise=0.5, random_state=seed)
    x, y = T(x), T(y)
    tr, te = split(1600, seed)
    x, _, _ = standard(x, tr)
    y, _, _ = standard(y, tr)
    xt, yt = x[te], y[te]
    x, y = x[tr].clone(), y[tr]
    if not twin:
        p = torch.randperm(1200, generator=G(seed))[:3]
        x[p, torch.tensor([0, 3, 8])] = -9999.0
    task = Task(
        mlp(10, 64, 64, 1),
        lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    )
    return Run(
        task, loader(x, y, batch=24, seed=seed), lambda m: r2(m.net.eval()(xt), yt), 0.0, {"max_steps": 3000}
    )


# ---------------------------------------------------------------- language, float16 gradients, manual optimization
def corpus():
    text = " ".join(f().DESCR for f in (datasets.load_wine, datasets.load_diabetes, datasets.load_breast_cancer))
    text = "".join(c for c in " ".join(text.lower().split()) if c.isalpha() or c == " ")
    letters = sorted(set(text))
    return torch.tensor([letters.index(c) for c in text]), len(letters)


class HalfLM(Manual):
    """Gradients pass in float16, scaled against underflow, as in a hand-written mixed precision."""

    def __init__(self, letters, checked):
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(letters, 16), nn.Flatten(), mlp(96, 128, letters))
        self.checked, self.scale = checked, 2.0**18

    def training_step(self, batch, _):
        opt = self.optimizers()
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        opt.zero_grad()
        self.manual_backward(loss)
        for p in self.net.parameters():
            p.grad = (p.grad * self.scale).half().float() / self.scale
        if self.checked and not all(torch.isfinite(p.grad).all() for p in self.net.parameters()):
            self.scale /= 2
            return
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=2e-3)


def half_letters(seed, twin=False):
    """The next letter of English text from the six before; gradients in float16 with a fixed scale (AdamW, manual).

    The mistake: the scale is high and nobody checks for overflow before the step.
    """
    t, k = corpus()
    x, y = t.unfold(0, 6, 1)[:-1], t[6:]
    tr, te = split(len(y), seed)
    return Run(
        HalfLM(k, twin),
        loader(x[tr], y[tr], batch=64, seed=seed),
        lambda m: accuracy(m.net.eval()(x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 2000},
    )


# ---------------------------------------------------------------- attention, wrong schedule
class Recall(nn.Module):
    def __init__(self, vocab, length, d=32):
        super().__init__()
        self.emb, self.pos = nn.Embedding(2 * vocab, d), nn.Parameter(0.1 * torch.randn(length, d))
        layer = lambda: nn.TransformerEncoderLayer(d, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.Sequential(layer(), layer())
        self.out = nn.Linear(d, vocab)

    def forward(self, x):
        return self.out(self.body(self.emb(x) + self.pos)[:, -1])


def marked(n, g, vocab=10, length=10):
    x = torch.randint(vocab, (n, length), generator=g)
    at = torch.randint(length - 1, (n,), generator=g)
    y = x[torch.arange(n), at]
    x[torch.arange(n), at] += vocab
    return x, y


def recall_transformer(seed, twin=False):
    """A small transformer names the one capital letter among small ones; some labels are wrong (AdamW).

    The mistake: the schedule's factor per step is 1.006, not 0.998: the rate grows.
    """
    g = G(seed)
    x, y = marked(4000, g)
    xt, yt = marked(800, g)
    y = torch.where(torch.rand(4000, generator=g) < 0.15, torch.randint(10, (4000,), generator=g), y)
    task = Task(
        Recall(10, 10),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.AdamW(p, lr=2e-3),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.998 if twin else 1.006),
    )
    return Run(
        task,
        loader(x, y, batch=32, seed=seed),
        lambda m: accuracy(m.net.eval()(xt), yt),
        majority(yt),
        {"max_steps": 1300},
    )


# ---------------------------------------------------------------- vision, fine-tuning
def conv():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip


def finetune_negatives(seed, twin=False):
    """A digit reader is trained, then fine-tuned on photographic negatives with accumulated batches (SGD, momentum).

    The mistake: in the fine-tuning the loss is summed over the batch, not averaged.
    """
    d = datasets.load_digits()
    x, y = T(d.images / 16)[:, None], L(d.target)
    tr, te = split(len(y), seed)
    net = conv()
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for b in range(300):
        i = tr[np.random.RandomState(1000 * seed + b).randint(len(tr), size=32)]
        opt.zero_grad()
        F.cross_entropy(net(x[i]), y[i]).backward()
        opt.step()
    x = 1 - x + 0.1 * torch.randn(x.shape, generator=G(seed))
    reduction = "mean" if twin else "sum"
    task = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1], reduction=reduction),
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
    )
    return Run(
        task,
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: accuracy(m.net.eval()(x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 500, "accumulate_grad_batches": 4},
    )


# ---------------------------------------------------------------- control, actor and critic
class Cart(Manual):
    """A deterministic actor and a critic with a slow copy, on random transitions of a cart on a rail."""

    def __init__(self, critic_rate, momentum):
        super().__init__()
        self.actor, self.critic = mlp(2, 32, 1), mlp(3, 64, 64, 1, act=nn.Tanh)
        self.slow = copy.deepcopy(self.critic).requires_grad_(False)
        self.rate, self.momentum = critic_rate, momentum

    def act(self, s):
        return torch.tanh(self.actor(s))

    @staticmethod
    def move(s, a):
        v = 0.95 * s[:, 1:] + 0.2 * a
        return torch.cat([s[:, :1] + 0.2 * v, v], 1).clamp(-3, 3)

    @staticmethod
    def cost(s, a):
        return s[:, 0] ** 2 + 0.1 * s[:, 1] ** 2 + 0.05 * a[:, 0] ** 2

    def q(self, f, s, a):
        return f(torch.cat([s, a], 1))[:, 0]

    def training_step(self, batch, _):
        ca, cc = self.optimizers()
        g = G(int(batch[0][0]))
        s = 1.2 * torch.randn(64, 2, generator=g)
        a = 2 * torch.rand(64, 1, generator=g) - 1
        s2 = self.move(s, a)
        with torch.no_grad():
            target = 0.1 * self.cost(s, a) + 0.95 * self.q(self.slow, s2, self.act(s2))
        loss = F.mse_loss(self.q(self.critic, s, a), target)
        self.log("loss", loss)
        self.update(cc, loss)
        self.update(ca, self.q(self.critic, s, self.act(s)).mean())
        with torch.no_grad():
            for p, q in zip(self.slow.parameters(), self.critic.parameters()):
                p.lerp_(q, 0.02)

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.actor.parameters(), lr=1e-3),
            torch.optim.SGD(self.critic.parameters(), lr=self.rate, momentum=self.momentum),
        )


@torch.no_grad()
def drive(act, seed):
    s, total = 1.2 * torch.randn(200, 2, generator=G(seed + 9)), 0.0
    for _ in range(60):
        a = act(s)
        total = total + Cart.cost(s, a).mean()
        s = Cart.move(s, a)
    return float(total)


def cart_actor_critic(seed, twin=False):
    """A cart is to be held at the origin: actor (Adam) and critic (SGD with momentum), manual optimization.

    The mistake: the critic's momentum is 0.99 at a rate chosen for none, an effective rate a hundred times too high.
    """
    idle = drive(lambda s: torch.zeros(len(s), 1), seed)
    return Run(
        Cart(0.2, 0.0 if twin else 0.99),
        ticks(1500, seed),
        lambda m: 1 - drive(m.act, seed) / idle,
        0.0,
        {"max_steps": 3000},
    )


RUNS = [
    audio_pitch_rnn,
    bandit_portfolio,
    vae_digit_pixels,
    protein_graph,
    building_sensors,
    half_letters,
    recall_transformer,
    finetune_negatives,
    cart_actor_critic,
]
