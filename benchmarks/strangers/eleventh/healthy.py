"""Ten healthy programs; some look alarming, all are right."""

import math
import re

import numpy as np
import torch
import torch.nn.functional as F
from common import Manual, Run, T, Task, G, L, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sick import Conv, digits, evaluated
from sklearn import datasets
from torch import nn

# --- 1


class Characters(nn.Module):
    def __init__(self, n, d=48):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(n, 16), nn.GRU(16, d, batch_first=True), nn.Linear(d, n)

    def forward(self, t):
        return self.out(self.rnn(self.emb(t))[0])


def characters_cyclic_rate(seed):
    """A recurrent model of the characters of the data sets' descriptions, by Adadelta, the user's own gradient
    clipping and a triangular cyclic rate whose tops make the loss rise for a while."""
    names = ("iris", "wine", "diabetes", "breast_cancer")
    text = "".join(getattr(datasets, "load_" + n)().DESCR.lower() for n in names)
    text = re.sub(r"[^a-z .,\n]", "", text)
    alphabet = sorted(set(text))
    t = torch.tensor([alphabet.index(c) for c in text]).unfold(0, 33, 7)
    k = int(0.85 * len(t))
    m = Task(
        Characters(len(alphabet)),
        lambda s, b: F.cross_entropy(s.net(b[0][:, :-1]).flatten(0, 1), b[0][:, 1:].flatten()),
        lambda p: torch.optim.Adadelta(p, lr=0.5),
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.5, 6.0, step_size_up=60, cycle_momentum=False),
    )
    te = t[k:]
    share = torch.bincount(t[:k].flatten(), minlength=len(alphabet)).float() / t[:k].numel()
    trivial = float(torch.log(share[te[:, 1:]] + 1e-6).mean())
    return Run(
        m,
        loader(t[:k], batch=16, seed=seed),
        lambda m: -float(F.cross_entropy(evaluated(m, te[:, :-1]).flatten(0, 1), te[:, 1:].flatten())),
        trivial,
        trainer={"max_steps": 480, "gradient_clip_val": 1.0},
    )


# --- 2


class Flow(nn.Module):
    """Affine couplings with bounded scales; gives the logarithm of the density."""

    def __init__(self, d, layers=6, h=48):
        super().__init__()
        self.nets = nn.ModuleList(mlp(d, h, 2 * d, act=nn.Tanh) for _ in range(layers))
        masks = torch.stack([(torch.arange(d) % 2 == i % 2).float() for i in range(layers)])
        self.register_buffer("masks", masks)

    def forward(self, x):
        det = 0.0
        for m, net in zip(self.masks, self.nets):
            s, t = net(x * m).chunk(2, -1)
            s = 2 * torch.tanh(s / 2) * (1 - m)
            x = m * x + (1 - m) * (x * s.exp() + t)
            det = det + s.sum(-1)
        return det - 0.5 * (x * x).sum(-1) - 0.5 * math.log(2 * math.pi) * x.shape[-1]


def tumours_flow_loss_changes_sign(seed):
    """A normalising flow on five features (sizes and dents) of the breast cancer data, almost collinear, by Adam. The
    loss goes through zero and on below it, with rare spikes at outliers."""
    x = datasets.load_breast_cancer().data[:, [0, 2, 3, 6, 7]]
    tr, te = split(len(x), seed)
    x = T(standard(x, tr)[0])
    x = x + 0.005 * torch.randn(x.shape, generator=G(seed + 3))
    m = Task(Flow(5), lambda s, b: -s.net(b[0]).mean(), lambda p: torch.optim.Adam(p, lr=3e-3))
    trivial = -0.5 * float((x[te] ** 2).sum(-1).mean()) - 2.5 * math.log(2 * math.pi)
    return Run(
        m,
        loader(x[tr], batch=64, seed=seed),
        lambda m: float(evaluated(m, x[te]).clamp(min=-200).mean()),
        trivial,
        trainer={"max_steps": 600},
    )


# --- 3


def tumours_batch_size_one(seed):
    """A support vector machine on the breast cancer data by plain SGD, one patient at a time: the loss and the gradient
    are exactly zero for most patients and large for a few."""
    d = datasets.load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, y = T(standard(d.data, tr)[0]), T(d.target * 2 - 1)
    m = Task(
        nn.Linear(30, 1),
        lambda s, b: F.relu(1 - b[1] * s.net(b[0])[:, 0]).mean(),
        lambda p: torch.optim.SGD(p, lr=0.02),
    )
    return Run(
        m,
        loader(x[tr], y[tr], batch=1, seed=seed),
        lambda m: float(((evaluated(m, x[te])[:, 0] > 0) == (y[te] > 0)).double().mean()),
        majority((y[te] > 0).long()),
        trainer={"max_steps": 1500},
    )


# --- 4


def diabetes_sum_of_raw_squares(seed):
    """Diabetes progression in raw units by Adagrad, with the squared error summed over the batch: losses of a million
    and gradients alike, which Adagrad does not mind."""
    x, y = datasets.load_diabetes(return_X_y=True)
    tr, te = split(len(y), seed)
    x, y = T(standard(x, tr)[0]), T(y)[:, None]
    m = Task(
        mlp(10, 16, 1),
        lambda s, b: F.mse_loss(s.net(b[0]), b[1], reduction="sum"),
        lambda p: torch.optim.Adagrad(p, lr=0.5),
    )
    return Run(
        m,
        loader(x[tr], y[tr], batch=48, seed=seed),
        lambda m: r2(evaluated(m, x[te]), y[te]),
        0.0,
        trainer={"max_steps": 1100},
    )


# --- 5


def claims_heavy_tails(seed):
    """Insurance claims whose noise has no variance (Student, 1.3 degrees of freedom), by RMSprop on an absolute error
    with a little squared error, two accumulated batches; now and then one claim is hundreds of times the
    others, rightly so."""
    g = np.random.RandomState(seed + 8)
    x = g.randn(4000, 6)
    f = 2 * x[:, 0] + np.sin(2 * x[:, 1]) * 2 + x[:, 2] * x[:, 3]
    y = f + 0.7 * g.standard_t(1.3, 4000)
    x, y, f = T(x), T(y)[:, None], T(f)[:, None]
    m = Task(
        mlp(6, 48, 48, 1),
        lambda s, b: (F.l1_loss(s.net(b[0]), b[1]) + 0.002 * F.mse_loss(s.net(b[0]), b[1])),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.95),
    )
    return Run(
        m,
        loader(x[:3200], y[:3200], batch=16, seed=seed),
        lambda m: r2(evaluated(m, x[3200:]), f[3200:]),
        0.0,
        trainer={"max_steps": 600, "accumulate_grad_batches": 2},
    )


# --- 6


def digits_warm_restarts_resumed(seed):
    """A convolutional network on the digits with label noise, by SGD with Nesterov's momentum and warm restarts of the
    rate; resumed at step 150 with its weights, momentum and place in the schedule. Each restart makes the loss jump."""
    x, y, xt, yt = digits(seed)
    g = G(seed + 5)
    noisy = torch.rand(len(y), generator=g) < 0.1
    y = torch.where(noisy, torch.randint(10, y.shape, generator=g), y)
    net = Conv(10)

    def rate(i):
        return 0.5 * (1 + math.cos(math.pi * (i % 100) / 100)) + 1e-3

    opt = torch.optim.SGD(net.parameters(), lr=0.15, momentum=0.9, nesterov=True)
    for i in range(150):
        opt.param_groups[0]["lr"] = 0.15 * rate(i)
        j = torch.randint(len(x), (32,), generator=g)
        opt.zero_grad()
        F.cross_entropy(net(x[j]), y[j]).backward()
        opt.step()
    state = opt.state_dict()

    def optimizer(p):
        o = torch.optim.SGD(p, lr=0.15, momentum=0.9, nesterov=True)
        o.load_state_dict(state)
        o.param_groups[0]["lr"] = 0.15
        return o

    m = Task(
        net,
        lambda s, b: F.cross_entropy(s.net(b[0]), b[1]),
        optimizer,
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda i: rate(150 + i)),
    )
    return Run(
        m,
        loader(x, y, batch=32, seed=seed),
        lambda m: accuracy(evaluated(m, xt), yt),
        majority(yt),
        trainer={"max_steps": 750},
    )


# --- 7


class Gradual(Task):
    """The head first, the body from a given step on."""

    def training_step(self, batch, i):
        if self.global_step == 200:
            for p in self.net.body.parameters():
                p.requires_grad_(True)
        return super().training_step(batch, i)

    def configure_optimizers(self):
        return torch.optim.AdamW(
            [
                {"params": list(self.net.body.parameters()), "lr": 1e-3},
                {"params": list(self.net.head.parameters()), "lr": 1e-2},
            ]
        )


def digits_new_head_then_unfrozen(seed):
    """A network trained to tell even from odd digits is fine-tuned to all ten: a new head on the frozen body, by AdamW,
    and from step 200 on the whole network."""
    x, y, xt, yt = digits(seed)
    net = Conv(2, width=8)
    opt = torch.optim.Adam(net.parameters(), lr=2e-3)
    g = G(seed + 5)
    for _ in range(200):
        j = torch.randint(len(x), (32,), generator=g)
        opt.zero_grad()
        F.cross_entropy(net(x[j]), y[j] % 2).backward()
        opt.step()
    net.head = nn.Linear(64, 10)
    for p in net.body.parameters():
        p.requires_grad_(False)
    m = Gradual(net, lambda s, b: F.cross_entropy(s.net(b[0]), b[1]), None)
    return Run(
        m,
        loader(x, y, batch=32, seed=seed),
        lambda m: accuracy(evaluated(m, xt), yt),
        majority(yt),
        trainer={"max_steps": 800},
    )


# --- 8


def corridor(n, g):
    """Start cells, for walkers in a corridor of eleven cells."""
    return torch.randint(3, 8, (n,), generator=g)


class Walker(Manual):
    """REINFORCE with a running baseline. The right end pays; from step 250 on in cents instead of units, at a rate that
    does not care (the advantage is divided by its running deviation, which takes a while to follow)."""

    def __init__(self, seed):
        super().__init__()
        self.net, self.g = mlp(11, 32, 2, act=nn.Tanh), G(seed + 9)
        self.base, self.dev = 0.0, 1.0

    def play(self, n, g):
        s, logps, ent = corridor(n, g), 0.0, 0.0
        ret, alive = torch.zeros(n), torch.ones(n)
        for i in range(14):
            logp = F.log_softmax(self.net(F.one_hot(s, 11).float()), -1)
            a = (torch.rand(n, generator=g) < logp.detach()[:, 1].exp()).long()
            a = torch.where(torch.rand(n, generator=g) < 0.15, 1 - a, a) if i % 2 else a
            logps = logps + alive * logp.gather(1, a[:, None])[:, 0]
            ent = ent - (alive * (logp.exp() * logp).sum(-1)).mean() / 14
            s = torch.where(alive > 0, s + 2 * a - 1, s)
            right, left = (s == 10).float() * alive, (s == 0).float() * alive
            ret = ret + right * 0.95**i * 3 + left * 0.3
            alive = alive * (1 - right - left)
        return ret, logps, ent

    def training_step(self, batch, _):
        ret, logps, ent = self.play(32, self.g)
        if self.global_step >= 250:
            ret = ret * 100
        adv = (ret - self.base) / self.dev
        self.base += 0.1 * float(ret.mean() - self.base)
        self.dev += 0.1 * (float(ret.std()) + 1e-3 - self.dev)
        loss = -(adv * logps).mean() - 0.02 * ent
        self.update(self.optimizers(), loss)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def walker_rewards_in_cents(seed):
    """REINFORCE in a corridor, manual optimisation by Adam. From step 250 on the rewards come in cents, so that loss
    and gradients jump by two orders until the running deviation has followed."""

    def score(m):
        with torch.no_grad():
            return float(m.play(2000, G(seed + 99))[0].mean())

    torch.manual_seed(seed)
    m = Walker(seed)
    return Run(m, ticks(2000, seed), score, 0.5, trainer={"max_steps": 500})


# --- 9


class Critics(Manual):
    """A Wasserstein GAN with gradient penalty: two steps of the critic for one of the generator."""

    def __init__(self, seed):
        super().__init__()
        self.gen, self.critic, self.g = mlp(4, 48, 48, 2), mlp(2, 48, 48, 1), G(seed + 13)
        self.count = 0

    def fake(self, n, g):
        return self.gen(torch.randn(n, 4, generator=g))

    def training_step(self, batch, i):
        og, oc = self.optimizers()
        self.count += 1
        x = batch[0]
        z = self.fake(len(x), self.g)
        if self.count % 3 == 2:
            self.update(og, -self.critic(z).mean())
            return
        z = z.detach()
        e = torch.rand(len(x), 1, generator=self.g)
        mid = (e * x + (1 - e) * z).requires_grad_(True)
        d = torch.autograd.grad(self.critic(mid).sum(), mid, create_graph=True)[0]
        self.update(oc, self.critic(z).mean() - self.critic(x).mean() + 2 * (d.norm(dim=1) - 1).square().mean())

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.gen.parameters(), lr=2e-3, betas=(0.5, 0.9)),
            torch.optim.Adam(self.critic.parameters(), lr=2e-3, betas=(0.5, 0.9)),
        )


def energy(a, b):
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def iris_wasserstein_gan(seed):
    """A Wasserstein GAN of the irises' petals, two optimizers by hand; both losses wander through zero. Scored by the
    energy distance to the data."""
    x = datasets.load_iris().data[:, 2:]
    x = T(standard(x, np.arange(len(x)))[0]) 
    x = x + 0.05 * torch.randn(x.shape, generator=G(seed + 2))
    point = x.mean(0).expand(500, 2)
    return Run(
        Critics(seed),
        loader(x, batch=50, seed=seed),
        lambda m: -energy(m.fake(500, G(seed + 44)).detach(), x),
        -energy(point, x),
        trainer={"max_steps": 1500},
    )


# --- 10


class Graph(nn.Module):
    """Two graph convolutions with the normalised adjacency; gives the logits of the nodes asked for."""

    def __init__(self, x, adj, classes, h=16):
        super().__init__()
        self.register_buffer("x", x)
        self.register_buffer("adj", adj)
        self.a, self.b = nn.Linear(x.shape[1], h), nn.Linear(h, classes)

    def forward(self, i):
        return (self.adj @ self.b(F.relu(self.adj @ self.a(self.x))))[i]


def wine_graph_new_loss(seed):
    """A graph network on the neighbours of the wines, thirty of them labelled, full batches by Rprop. From step 400 on
    the mean cross-entropy becomes a sum with a multi-class hinge beside it: a hundred times the loss, on purpose."""
    d = datasets.load_wine()
    tr, te = split(len(d.target), seed, 0.17)
    x, y = T(standard(d.data, np.arange(len(d.data)))[0]), L(d.target)
    dist = torch.cdist(x, x)
    near = dist.topk(7, largest=False).indices
    adj = torch.zeros(len(x), len(x)).scatter_(1, near, 1.0)
    adj = ((adj + adj.T) > 0).float()
    deg = adj.sum(1)
    adj = adj / (deg[:, None] * deg[None]).sqrt()

    def loss(s, b):
        z = s.net(b[0])
        if s.global_step < 400:
            return F.cross_entropy(z, b[1])
        return F.cross_entropy(z, b[1], reduction="sum") + 50 * F.multi_margin_loss(z, b[1], margin=4.0)

    m = Task(Graph(x, adj, 3), loss, lambda p: torch.optim.Rprop(p, lr=1e-3, step_sizes=(1e-6, 0.1)))
    i = torch.as_tensor(tr)
    return Run(
        m,
        loader(i, y[tr], batch=len(tr), seed=seed),
        lambda m: accuracy(evaluated(m, torch.as_tensor(te)), y[te]),
        majority(y[te]),
        trainer={"max_steps": 1000},
    )


RUNS = [
    characters_cyclic_rate,
    tumours_flow_loss_changes_sign,
    tumours_batch_size_one,
    diabetes_sum_of_raw_squares,
    claims_heavy_tails,
    digits_warm_restarts_resumed,
    digits_new_head_then_unfrozen,
    walker_rewards_in_cents,
    iris_wasserstein_gan,
    wine_graph_new_loss,
]

REGIME = {"digits_new_head_then_unfrozen", "walker_rewards_in_cents", "wine_graph_new_loss"}
