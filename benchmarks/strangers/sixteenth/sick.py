"""Eight programs with one mistake each."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sklearn import datasets
from torch import nn


def evaluate(f):
    """A score from a function of the module, in eval mode, without gradients."""

    def score(m):
        m.eval()
        with torch.no_grad():
            return f(m)

    return score


def floor(x):
    return x if math.isnan(x) else max(x, -1.0)


def digits(seed, share=0.75):
    d = datasets.load_digits()
    tr, te = split(len(d.target), seed, share)
    x, y = T(d.data / 16), L(d.target)
    return x[tr], y[tr], x[te], y[te]


def digit_conv(seed, twin=False):
    """A small convolutional network classifies the handwritten digits with SGD and momentum. The author initialises the
    weights by hand with ``nn.init.normal_(w)`` and forgets the standard deviation (the default is 1), so the first
    logits are in the thousands and the first gradients throw the network away; the twin uses Kaiming's."""
    x, y, xt, yt = digits(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    for m in net:
        if hasattr(m, "weight"):
            if twin:
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            else:
                nn.init.normal_(m.weight)
            nn.init.zeros_(m.bias)
    return Run(
        Task(
            net,
            lambda s, b: F.cross_entropy(s.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        ),
        loader(x, y, batch=64, seed=seed),
        evaluate(lambda s: accuracy(s.net(xt), yt)),
        majority(yt),
        {"max_steps": 400},
    )


class Accumulating(Manual):
    def __init__(self, net, every, divide, lr):
        super().__init__()
        self.net, self.every, self.divide, self.lr = net, every, divide, lr

    def training_step(self, batch, k):
        opt = self.optimizers()
        x = batch[0]
        loss = F.mse_loss(self.net(x), x)
        self.log("loss", loss)
        self.manual_backward(loss / self.every if self.divide else loss)
        if (k + 1) % self.every == 0:
            if self.clip is not None:
                self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            opt.step()
            opt.zero_grad()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def compress(seed, twin=False):
    """An autoencoder compresses standardised laboratory measurements of tumours (breast cancer data) to six numbers,
    with manual optimization, SGD with momentum and accumulation over 16 small batches. The author forgot to divide the
    loss by the number of batches, so the summed gradient is 16 times what the rate was tuned for."""
    d = datasets.load_breast_cancer()
    tr, te = split(len(d.data), seed)
    x, _, _ = standard(d.data, tr)
    xa, xb = T(x[tr]), T(x[te])
    net = mlp(30, 48, 6, 48, 30)
    return Run(
        Accumulating(net, 16, twin, 0.2),
        loader(xa, batch=8, seed=seed),
        evaluate(lambda s: floor(r2(s.net(xb), xb))),
        0.0,
        {"max_steps": 350},
    )


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = mlp(4, 32, 2, act=nn.Tanh)
        self.log_std = nn.Parameter(torch.full((2,), -0.5))

    def forward(self, s):
        return self.mean(s)


def world(policy, n, gen, noise=True, horizon=20):
    pos, vel = torch.randn(n, 2, generator=gen) * 1.5, torch.zeros(n, 2)
    states, acts, rewards = [], [], []
    for _ in range(horizon):
        s = torch.cat([pos, vel], 1)
        with torch.no_grad():
            a = policy(s)
            if noise:
                a = a + policy.log_std.exp() * torch.randn(n, 2, generator=gen)
        vel = 0.6 * vel + 0.3 * a.clamp(-3, 3)
        pos = pos + vel
        states.append(s)
        acts.append(a)
        rewards.append(-(pos**2).sum(1) - 0.05 * (a.clamp(-3, 3) ** 2).sum(1))
    return torch.stack(states), torch.stack(acts), torch.stack(rewards)


def steering(seed, twin=False):
    """REINFORCE learns to steer a point mass to the origin, with a Gaussian policy and SGD with momentum. The returns
    go into the loss as they are (tens to hundreds, all negative); their standardisation over the batch, which the rate
    assumes, was forgotten, so that the policy is flung away in the first episodes."""

    def loss(s, b):
        gen = G(int(b[0][0]))
        st, ac, rew = world(s.net, 48, gen)
        ret = rew.flip(0).cumsum(0).flip(0)
        if twin:
            ret = (ret - ret.mean(1, keepdim=True)) / (ret.std(1, keepdim=True) + 1e-6)
        logp = torch.distributions.Normal(s.net(st), s.net.log_std.exp(), validate_args=False).log_prob(ac).sum(-1)
        return -(logp * ret).mean()

    def value(policy):
        r = float(world(policy, 500, G(seed + 77), noise=False)[2].mean())
        return math.exp(r / 2)

    class Still(nn.Module):
        def forward(self, s):
            return torch.zeros(len(s), 2)

    return Run(
        Task(Policy(), loss, lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9)),
        ticks(5000, seed),
        evaluate(lambda s: value(s.net)),
        value(Still()),
        {"max_steps": 400},
    )


def lesions(seed, twin=False):
    """A small convolutional network segments bright spots (generated scans of very different contrast) with Adam. The
    author writes the cross entropy of the pixels out with ``log(p)`` and ``log(1 - p)`` of the sigmoid, in single
    precision and without an epsilon: as soon as a pixel is certain, the loss is not a number. The twin uses logits."""
    g = np.random.RandomState(seed + 31)
    n, w = 600, 20
    yy, xx = np.mgrid[:w, :w]
    img, mask = np.zeros((n, w, w)), np.zeros((n, w, w))
    for k in range(n):
        cx, cy, r = g.uniform(4, 16), g.uniform(4, 16), g.uniform(2, 5)
        m = (xx - cx) ** 2 + (yy - cy) ** 2 < r * r
        img[k] = m * np.exp(g.randn() * 0.5) * 1.5 + 0.5 * g.randn(w, w)
        mask[k] = m
    tr, te = split(n, seed)
    img, mask = T(img)[:, None], T(mask)[:, None]
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
    )

    def loss(s, b):
        z = s.net(b[0])
        if twin:
            return F.binary_cross_entropy_with_logits(z, b[1])
        p = torch.sigmoid(z)
        return -(b[1] * torch.log(p) + (1 - b[1]) * torch.log(1 - p)).mean()

    def iou(s):
        z = s.net(img[te])
        if not torch.isfinite(z).all():
            return math.nan
        p, y = z > 0, mask[te] > 0
        return float((p & y).sum() / (p | y).sum())

    return Run(
        Task(net, loss, lambda p: torch.optim.Adam(p, lr=1e-2)),
        loader(img[tr], mask[tr], batch=16, seed=seed),
        evaluate(iou),
        float(mask[te].mean()),
        {"max_steps": 500},
    )


class Basket(nn.Module):
    def __init__(self, items, d=24):
        super().__init__()
        self.emb, self.att, self.out = nn.Embedding(items, d), nn.Linear(d, 1), mlp(d, 32, 3)

    def forward(self, x, length):
        h = self.emb(x)
        a = self.att(torch.tanh(h))[..., 0]
        a = a.masked_fill(torch.arange(x.shape[1]) >= length[:, None], float("-inf")).softmax(-1)
        return self.out((a[..., None] * h).sum(1))


def baskets(seed, twin=False):
    """Attention pooling over shopping baskets of different length tells which of three kinds of customer bought, with
    AdamW. The padding is masked with minus infinity, but three of the customers have an empty basket: the softmax of a
    row that is masked throughout is not a number. The twin leaves the empty baskets out."""
    g = np.random.RandomState(seed + 41)
    n, items, w = 2400, 60, 8
    pref = g.dirichlet(np.full(items, 0.4), size=3)
    y = g.randint(3, size=n)
    length = g.randint(1, w + 1, size=n)
    x = np.stack([g.choice(items, size=w, p=pref[k]) for k in y])
    tr, te = split(n, seed)
    empty = tr[g.permutation(len(tr))[:3]]
    if twin:
        tr = np.setdiff1d(tr, empty)
    else:
        length[empty] = 0
    x, length, y = L(x), L(length), L(y)
    return Run(
        Task(
            Basket(items),
            lambda s, b: F.cross_entropy(s.net(b[0], b[1]), b[2]),
            lambda p: torch.optim.AdamW(p, lr=3e-3),
        ),
        loader(x[tr], length[tr], y[tr], batch=32, seed=seed),
        evaluate(lambda s: accuracy(s.net(x[te], length[te]), y[te])),
        majority(y[te]),
        {"max_steps": 500},
    )


class Resumed(Task):
    def __init__(self, net, loss, saved, lr, fix):
        super().__init__(net, loss, None)
        self.saved, self.lr, self.fix = saved, lr, fix

    def configure_optimizers(self):
        opt = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        opt.load_state_dict(self.saved)
        if self.fix:
            for group in opt.param_groups:
                group["lr"] = self.lr
        return opt


def resumed(seed, twin=False):
    """A network that reads digits was trained for a while with large batches at a large rate; the training goes on with
    batches of four at a small one. The new script loads the optimizer's state for its momentum, and
    ``load_state_dict`` silently puts the old rate in the place of the new. The twin sets the new rate once more."""
    x, y, xt, yt = digits(seed)
    net = mlp(64, 64, 64, 64, 64, 10)
    old = torch.optim.SGD(net.parameters(), lr=0.4, momentum=0.9)
    for group in old.param_groups:
        group["lr"] = 0.05
    gen = G(seed + 61)
    for k in range(60):
        if k == 30:
            old.param_groups[0]["lr"] = 0.4
        i = torch.randperm(len(x), generator=gen)[:1024]
        old.zero_grad()
        F.cross_entropy(net(x[i]), y[i]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        old.step()
    return Run(
        Resumed(net, lambda s, b: F.cross_entropy(s.net(b[0]), b[1]), old.state_dict(), 0.004, twin),
        loader(x, y, batch=4, seed=seed),
        evaluate(lambda s: accuracy(s.net(xt), yt)),
        majority(yt),
        {"max_steps": 800},
    )


class Graph(nn.Module):
    def __init__(self, a, d=32, layers=3):
        super().__init__()
        self.register_buffer("a", a)
        dims = [64] + [d] * (layers - 1) + [10]
        self.lins = nn.ModuleList(nn.Linear(dims[i], dims[i + 1]) for i in range(layers))

    def forward(self, x):
        for k, lin in enumerate(self.lins):
            x = self.a @ lin(x)
            if k < len(self.lins) - 1:
                x = x.relu()
        return x


def citations(seed, twin=False):
    """A graph convolutional network labels the nodes of a neighbourhood graph of digits from a few labels, with SGD and
    momentum. The adjacency matrix goes in as it is, without the division by the degrees, so every layer multiplies the
    signal and the gradients by about twenty."""
    from sklearn.neighbors import kneighbors_graph

    d = datasets.load_digits()
    p = np.random.RandomState(seed + 81).permutation(len(d.target))[:900]
    x, y = T(d.data[p] / 16), L(d.target[p])
    a = T(kneighbors_graph(d.data[p], 12).toarray())
    a = ((a + a.T) > 0).float() + torch.eye(len(p))
    if twin:
        s = a.sum(1) ** -0.5
        a = s[:, None] * a * s
    lab, te = torch.arange(200), torch.arange(300, 900)
    return Run(
        Task(
            Graph(a),
            lambda s, b: F.cross_entropy(s.net(x)[b[0]], y[b[0]]),
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        ),
        loader(lab, batch=100, seed=seed),
        evaluate(lambda s: accuracy(s.net(x)[te], y[te])),
        majority(y[te]),
        {"max_steps": 400},
    )


def faces(seed, twin=False):
    """Metric learning: a network maps digits to a plane of eight dimensions with the triplet loss, SGD and momentum;
    a nearest neighbour reads the label. The warm-up of the rate is written as ``(step + 1) / 50`` without
    ``min(1, ...)``, so that the rate never stops rising."""
    x, y, xt, yt = digits(seed)
    net = mlp(64, 64, 64, 8)
    g = G(seed + 91)
    k = 6000
    i = torch.randint(len(x), (k,), generator=g)
    pos = torch.stack([torch.nonzero(y == y[j])[:, 0][int(torch.randint(80, (1,), generator=g))] for j in i])
    neg = torch.randint(len(x), (k,), generator=g)
    ok = y[neg] != y[i]
    i, pos, neg = i[ok], pos[ok], neg[ok]

    def rate(step):
        up = (step + 1) / 50
        return min(1.0, up) if twin else up

    def score(s):
        a, b = s.net(x), s.net(xt)
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            return math.nan
        return float((y[torch.cdist(b, a).argmin(1)] == yt).double().mean())

    def loss(s, b):
        e = s.net(torch.cat([x[b[0]], x[b[1]], x[b[2]]])).chunk(3)
        return F.relu(((e[0] - e[1]) ** 2).sum(1) - ((e[0] - e[2]) ** 2).sum(1) + 1).mean()

    return Run(
        Task(
            net,
            loss,
            lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, rate),
        ),
        loader(i, pos, neg, batch=32, seed=seed),
        evaluate(score),
        majority(yt),
        {"max_steps": 900},
    )


RUNS = [
    steering,
    resumed,
    digit_conv,
    baskets,
    faces,
    citations,
    lesions,
    compress,
]
