from common import *

import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits


def _digits(seed, share=0.75):
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed, share)
    x, y = T(x / 16.0), L(y)
    return x[tr], y[tr], x[te], y[te]


# 1 ---------------------------------------------------------------------------------------------------------------
class _Bpr(nn.Module):
    def __init__(self, users, items, d=16):
        super().__init__()
        self.u, self.v, self.b = nn.Embedding(users, d), nn.Embedding(items, d), nn.Embedding(items, 1)
        nn.init.normal_(self.u.weight, std=0.1)
        nn.init.normal_(self.v.weight, std=0.1)
        nn.init.zeros_(self.b.weight)

    def forward(self, u, i):
        return (self.u(u) * self.v(i)).sum(-1) + self.b(i)[..., 0]


def bpr_books(seed):
    """Pairwise ranking (BPR) of library loans with matrix factorisation and Adagrad at a rate of 0.5. It looks scary
    since the rate is enormous, a few bestsellers have most of the loans and the summed loss of a batch jumps in the
    first steps, but Adagrad's accumulators bring the steps down by themselves."""
    r = np.random.RandomState(seed)
    users, items, n = 200, 300, 16000
    pu, qi = r.randn(users, 4), r.randn(items, 4)
    pop = 1.2 * r.standard_t(4, items).clip(-4, 4)
    logit = 1.2 * pu @ qi.T + pop
    p = np.exp(logit - logit.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    u = r.randint(0, users, n)
    i = np.array([r.choice(items, p=p[k]) for k in u])
    u, i = L(u), L(i)
    tu, ti = u[12800:], i[12800:]
    neg = torch.randint(items, ti.shape, generator=G(3))

    def loss(m, b):
        j = torch.randint(items, b[1].shape, generator=m.rng)
        return -F.logsigmoid(m.net(b[0], b[1]) - m.net(b[0], j)).sum()

    m = Task(_Bpr(users, items), loss, lambda p: torch.optim.Adagrad(p, lr=0.5))
    m.rng = G(seed + 11)

    def score(m):
        with torch.no_grad():
            return float((m.net(tu, ti) > m.net(tu, neg)).double().mean())

    return Run(m, loader(u[:12800], i[:12800], batch=64, seed=seed), score, 0.5, {"max_steps": 1000})


# 2 ---------------------------------------------------------------------------------------------------------------
def cox_tiny(seed):
    """A Cox survival network on eight patients per batch with half of them censored. The partial likelihood of so few
    patients is very noisy, is exactly zero when only the last patient of a batch has an event, and jumps by a factor of
    ten between batches, but on average it ranks the patients well."""
    r = np.random.RandomState(seed)
    x = r.randn(1000, 8)
    risk = 1.5 * np.sin(x[:, 0]) + x[:, 1] - 0.7 * x[:, 2] * (x[:, 3] > 0)
    t = r.weibull(1.3, 1000) * np.exp(-risk)
    c = r.exponential(1.2, 1000)
    x, time, event = T(x), T(np.minimum(t, c)), T(t <= c)

    def loss(m, b):
        o = torch.argsort(b[1], descending=True)
        h, e = m.net(b[0])[o, 0], b[2][o]
        return -((h - torch.logcumsumexp(h, 0)) * e).sum()

    m = Task(mlp(8, 32, 32, 1, act=nn.SELU), loss, lambda p: torch.optim.Adam(p, lr=2e-3))

    def score(m):
        with torch.no_grad():
            h, t, e = m.net(x[750:])[:, 0], time[750:], event[750:]
        ok = (t[:, None] < t[None]) & (e[:, None] > 0)
        return float((h[:, None] > h[None])[ok].double().mean())

    return Run(m, loader(x[:750], time[:750], event[:750], batch=8, seed=seed), score, 0.5, {"max_steps": 1000})


# 3 ---------------------------------------------------------------------------------------------------------------
def sgdr_digits(seed):
    """A batch-normalised CNN on digits with Nesterov SGD at a rate of 0.2 and cosine warm restarts every 150 steps. At
    each restart the loss jumps several times over and the gradients with it, as is meant, and it comes down again to a
    better place before the run ends at the bottom of a cycle."""
    xtr, ytr, xte, yte = _digits(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 10),
    )
    m = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1], label_smoothing=0.05),
        lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, nesterov=True, weight_decay=1e-4),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 150),
    )

    def score(m):
        m.eval()
        with torch.no_grad():
            return accuracy(m.net(xte), yte)

    return Run(m, loader(xtr, ytr, batch=32, seed=seed), score, majority(yte), {"max_steps": 600})


# 4 ---------------------------------------------------------------------------------------------------------------
def cauchy_cents(seed):
    """Disease progression (diabetes data) in raw units with gross typing errors of Cauchy size in the training targets,
    fitted by a Huber loss with four patients per batch and gradients accumulated over four batches. The loss of a batch
    is now ten and now some ten thousand, but the Huber loss bounds what an error can do and the fit is sound."""
    x, y = load_diabetes(return_X_y=True)
    tr, te = split(len(x), seed)
    x = T(standard(x, tr)[0])
    r = np.random.RandomState(seed + 9)
    noisy = T(y + 20 * r.standard_cauchy(len(y)))
    y = T(y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = mlp(10, 32, 1)

        def forward(self, x):
            return 150 + 50 * self.f(x)[:, 0]

    m = Task(
        Net(),
        lambda m, b: F.huber_loss(m.net(b[0]), b[1], delta=30.0),
        lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.05),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.05, 400),
    )

    def score(m):
        with torch.no_grad():
            return r2(m.net(x[te]), y[te])

    tl = loader(x[tr], noisy[tr], batch=4, seed=seed)
    return Run(m, tl, score, 0.0, {"max_steps": 400, "accumulate_grad_batches": 4})


# 5 ---------------------------------------------------------------------------------------------------------------
class _HingeGan(Manual):
    def __init__(self, seed):
        super().__init__()
        self.gen, self.disc = mlp(8, 64, 64, 2), mlp(2, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))
        self.rng = G(seed + 5)

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.disc.parameters(), lr=2e-3, betas=(0.0, 0.9)),
            torch.optim.Adam(self.gen.parameters(), lr=1e-3, betas=(0.0, 0.9)),
        )

    def training_step(self, batch, _):
        (x,) = batch
        od, og = self.optimizers()
        fake = self.gen(torch.randn(len(x), 8, generator=self.rng))
        x = x.requires_grad_(True)
        real = self.disc(x)
        slope = torch.autograd.grad(real.sum(), x, create_graph=True)[0]
        d = F.relu(1 - real).mean() + F.relu(1 + self.disc(fake.detach())).mean() + 0.1 * slope.square().sum(1).mean()
        self.update(od, d)
        g = -self.disc(fake).mean()
        self.update(og, g)
        self.log("d", d)
        self.log("g", g)


def hinge_spots(seed):
    """A hinge GAN learns where a telescope's guide stars fall on the chip, six spots far from the origin, with Adam
    without momentum. The generator's loss changes its sign, wanders and jumps and neither loss falls, as usual for a
    GAN, while the drawn points come to lie on the spots."""
    r = np.random.RandomState(seed)
    a = 2 * np.pi * r.randint(0, 6, 4000) / 6
    x = T(np.stack([2 * np.cos(a), 2 * np.sin(a)], 1) + 0.2 * r.randn(4000, 2) + np.array([4.0, -2.0]))
    tr, te = x[:3000], x[3000:]
    d = lambda p, q: torch.cdist(p.double(), q.double()).mean()
    energy = lambda a: -float(2 * d(a, te) - d(a, a) - d(te, te))

    def score(m):
        with torch.no_grad():
            return energy(m.gen(torch.randn(1000, 8, generator=G(99))))

    trivial = energy(tr.mean(0, keepdim=True).expand(1000, 2))
    return Run(_HingeGan(seed), loader(tr, batch=64, seed=seed), score, trivial, {"max_steps": 1600})


# 6 ---------------------------------------------------------------------------------------------------------------
class _Lock(LightningModule):
    """REINFORCE with a running baseline: 5 steps, 3 actions; a reward of 100 for the whole right sequence only."""

    def __init__(self, seed, code):
        super().__init__()
        self.pi, self.code, self.rng = mlp(len(code), 32, 3), code, G(seed + 5)
        self.base = 0.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=6e-3)

    def training_step(self, batch, _):
        logp = F.log_softmax(self.pi(torch.eye(len(self.code))), 1)
        a = torch.multinomial(logp.exp().detach(), 128, replacement=True, generator=self.rng).T
        reward = 100.0 * (a == self.code).all(1).float()
        lp = logp[torch.arange(len(self.code)), a].sum(1)
        loss = -((reward - self.base) * lp).mean()
        self.base = 0.9 * self.base + 0.1 * float(reward.mean())
        self.log("loss", loss)
        return loss


def sparse_lock(seed):
    """Policy gradient for a combination lock of five wheels that pays 100 for the full combination and nothing else, with
    SGD. Most early batches have a loss and gradient of almost zero and a lucky one has a gradient hundreds of times
    larger, which is the only thing it can learn from; later the policy opens the lock each time."""
    code = torch.randint(3, (5,), generator=G(seed + 40))

    def score(m):
        with torch.no_grad():
            p = m.pi(torch.eye(5)).softmax(1)
        return float(p[torch.arange(5), code].prod())

    return Run(_Lock(seed, code), ticks(1500, seed), score, 3.0**-5, {"max_steps": 1500})


# 7 ---------------------------------------------------------------------------------------------------------------
class _Adder(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.gru, self.out = nn.GRU(2, d, batch_first=True), nn.Linear(d, 1)

    def forward(self, x):
        return 15 + 10 * self.out(self.gru(x)[0][:, -1])[:, 0]


def _adding(n, t, g):
    v = 10 * torch.rand(n, t, generator=g)
    mark = torch.zeros(n, t)
    k = torch.rand(n, t, generator=g).argsort(1)[:, :3]
    mark.scatter_(1, k, 1.0)
    return torch.stack([v / 10, mark], 2), (v * mark).sum(1)


def adder_curriculum(seed):
    """A GRU adds up the three marked amounts of a receipt; the receipts grow longer, from 4 to 24 lines, in four
    stages of 225 steps. At every change of stage the loss jumps up to a hundredfold because the network has never seen
    such lengths, and it comes down again: the curriculum is meant so."""

    def loss(m, b):
        t = (4, 8, 16, 24)[min(m.global_step // 225, 3)]
        x, y = _adding(64, t, G(int(b[0][0])))
        return F.mse_loss(m.net(x), y)

    m = Task(_Adder(), loss, lambda p: torch.optim.Adam(p, lr=1e-2))

    def score(m):
        x, y = _adding(500, 24, G(77))
        with torch.no_grad():
            return r2(m.net(x), y)

    return Run(m, ticks(900, seed), score, 0.0, {"max_steps": 900})


# 8 ---------------------------------------------------------------------------------------------------------------
class _Unfreeze(Task):
    def on_train_batch_start(self, *_):
        self.net[0].requires_grad_(self.global_step >= 250)


def unfreeze_digits(seed):
    """A network that was trained on the digits 0 to 4 is fine-tuned to tell 5 to 9 apart: a new head alone for 250
    steps, then the whole. At the unfreezing the gradient's norm jumps many times over, since most of the
    parameters had none before, and stays another; the held-out accuracy rises."""
    x, y = load_digits(return_X_y=True)
    x, y = T(x), L(y)
    a, b = y < 5, y >= 5
    xa, ya, xb, yb = x[a], y[a], x[b], y[b] - 5
    body, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()), nn.Linear(32, 5)
    opt, g = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3), G(seed)
    for _ in range(400):
        i = torch.randint(len(xa), (64,), generator=g)
        opt.zero_grad()
        F.cross_entropy(head(body(xa[i])), ya[i]).backward()
        opt.step()
    body.requires_grad_(False)
    tr, te = split(len(xb), seed)
    m = _Unfreeze(
        nn.Sequential(body, nn.Linear(32, 5)),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=2e-3, momentum=0.9),
    )

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(xb[te]), yb[te])

    return Run(m, loader(xb[tr], yb[tr], batch=32, seed=seed), score, majority(yb[te]), {"max_steps": 700})


# 9 ---------------------------------------------------------------------------------------------------------------
def forecast_switch(seed):
    """A network gives the mean and the deviation of tomorrow's river level (metres) from the last days. The first 300
    steps fit the mean alone by squared error in millimetres (a loss of some ten thousand); then the loss is switched to
    the Gaussian log likelihood, which is five orders of magnitude smaller, turns negative and goes on falling. The
    switch is the usual warm-up for such networks."""
    r = np.random.RandomState(seed)
    n, lag = 1500, 6
    level, rain = np.zeros(n), r.gamma(0.4, 0.5, n)
    for t in range(1, n):
        level[t] = 0.85 * level[t - 1] + 0.3 * rain[t - 1] ** 1.2 + 0.01 * (1 + 3 * rain[t - 1]) * r.randn()
    x = np.stack([np.concatenate([level[t - lag : t], rain[t - lag : t]]) for t in range(lag, n)])
    y = level[lag:]
    k = 1100
    mu, sd = y[:k].mean(), y[:k].std()
    nll = lambda y, m, s: -0.5 * ((y - m) / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)
    trivial = float(nll(y[k:], mu, sd).mean())
    x, y = T(x), T(y)

    def predict(m, x):
        a, b = m.net(x).unbind(1)
        return a, b.clamp(-6, 2)

    def loss(m, b):
        mean, logs = predict(m, b[0])
        if m.global_step < 300:
            return F.mse_loss(1000 * mean, 1000 * b[1])
        return (0.5 * ((b[1] - mean) * torch.exp(-logs)) ** 2 + logs + 0.5 * np.log(2 * np.pi)).mean()

    m = Task(mlp(2 * lag, 32, 32, 2, act=nn.SiLU), loss, lambda p: torch.optim.NAdam(p, lr=3e-3))

    def score(m):
        with torch.no_grad():
            mean, logs = predict(m, x[k:])
        return float(-(0.5 * ((y[k:] - mean) * torch.exp(-logs)) ** 2 + logs + 0.5 * np.log(2 * np.pi)).mean())

    return Run(m, loader(x[:k], y[:k], batch=32, seed=seed), score, trivial, {"max_steps": 900})


RUNS = [
    bpr_books,
    cox_tiny,
    sgdr_digits,
    cauchy_cents,
    hinge_spots,
    sparse_lock,
    adder_curriculum,
    unfreeze_digits,
    forecast_switch,
]
REGIME = {"adder_curriculum", "unfreeze_digits", "forecast_switch"}
