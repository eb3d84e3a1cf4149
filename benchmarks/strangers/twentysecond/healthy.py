from common import *

import math

import torch.nn.functional as F
from sklearn import datasets


def wind_power_nll(seed):
    """The power of a wind turbine with a Gaussian likelihood; in calm hours the meter's noise is a thousandth of that in
    storms. It looks scary since the loss falls through zero to below -2 and its gradients grow as the widths shrink,
    with spikes of loss where a calm hour is missed by many widths. The widths have a floor, and it learns well."""
    r = np.random.RandomState(seed)
    n = 3000
    x = r.randn(n, 6)
    w = np.abs(x[:, 0] + 0.5 * x[:, 1])
    y = np.minimum(w, 2) ** 2 / 2 + 0.2 * np.tanh(x[:, 2]) + np.where(w < 1, 0.0005, 0.2 * w) * r.randn(n)
    tr, te = split(n, seed)
    X, Y = T(x), T(y)

    def loss(m, b):
        mu, s = m.net(b[0]).unbind(1)
        s = F.softplus(s) + 0.005
        return (s.log() + 0.5 * ((b[1] - mu) / s) ** 2).mean()

    def score(m):
        with torch.no_grad():
            return r2(m.net(X[te])[:, 0], Y[te])

    module = Task(mlp(6, 64, 64, 2, act=nn.SiLU), loss, lambda p: torch.optim.AdamW(p, 2e-3))
    return Run(module, loader(X[tr], Y[tr], batch=32, seed=seed), score, 0.0, {"max_steps": 1000})


def claims_in_dollars(seed):
    """An insurer's claims in raw dollars, log-normal with a heavy tail, in batches of eight with gradients accumulated over
    four, and a squared error. It looks scary since losses are around 3e8, with batches of a hundred times that. Adam's
    steps do not depend on the scale of the loss, and the last layer is scaled to dollars."""
    r = np.random.RandomState(seed)
    n = 4000
    x = r.randn(n, 6)
    mean = 20000 * np.exp(0.5 * x[:, 0] + 0.4 * np.sin(2 * x[:, 1]) + 0.3 * x[:, 2] * (x[:, 3] > 0))
    y = mean * np.exp(0.6 * r.standard_t(5, n).clip(-5, 5) - 0.25)
    tr, te = split(n, seed)
    X, Y = T(x), T(y)
    M = T(mean)

    def loss(m, b):
        return F.mse_loss(20000 * (1 + m.net(b[0])[:, 0]), b[1])

    def score(m):
        with torch.no_grad():
            return r2(20000 * (1 + m.net(X[te])[:, 0]), M[te])

    module = Task(mlp(6, 32, 32, 1), loss, lambda p: torch.optim.Adam(p, 2e-3))
    return Run(module, loader(X[tr], Y[tr], batch=8, seed=seed), score, 0.0,
               {"max_steps": 400, "accumulate_grad_batches": 4})


def restarts_and_shouts(seed):
    """A CNN on the digits with Nesterov SGD and cosine warm restarts from a rate of 0.2 every 150 steps. It looks scary
    since a restart throws the loss up, the first about fourfold, after it had come near zero. It comes back each time, and
    the run ends at the end of a cycle."""
    d = datasets.load_digits()
    X, y = T(d.images[:, None] / 16), L(d.target)
    tr, te = split(len(y), seed)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, 10),
    )

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(X[te]), y[te])

    module = Task(
        net, lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, 0.2, momentum=0.9, nesterov=True),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 150),
    )
    return Run(module, loader(X[tr], y[tr], batch=32, seed=seed), score, majority(y[te]), {"max_steps": 900})


class Thaw(Task):
    """Trains the head alone until step 400, then everything."""

    def training_step(self, batch, i):
        warm = self.global_step < 400
        for p in self.net[0].parameters():
            p.requires_grad_(not warm)
        return super().training_step(batch, i)


def thawed_digits(seed):
    """A body pretrained on the digits 0 to 4 learns 5 to 9: for 400 steps the new head alone, with the body frozen, then
    all of it, at the same rather high rate of RMSprop. It looks scary since the norm of the gradient jumps many times over
    when the body thaws, and the loss leaps. The change is meant, it stays, and accuracy rises after it."""
    d = datasets.load_digits()
    X, y = T(d.images.reshape(-1, 64) / 16), L(d.target)
    old, new = d.target < 5, np.flatnonzero(d.target >= 5)
    body, head = mlp(64, 64, 12), nn.Linear(12, 5)
    opt, g = torch.optim.Adam([*body.parameters(), *head.parameters()], 2e-3), G(seed)
    Xo, yo = X[old], y[old]
    for _ in range(250):
        i = torch.randint(len(yo), (32,), generator=g)
        opt.zero_grad()
        F.cross_entropy(head(body(Xo[i])), yo[i]).backward()
        opt.step()
    p, q = split(len(new), seed)
    tr, te = new[p], new[q]

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(X[te]), y[te] - 5)

    module = Thaw(
        nn.Sequential(body, nn.Linear(12, 5)), lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda q: torch.optim.RMSprop(q, 2e-3),
    )
    return Run(module, loader(X[tr], y[tr] - 5, batch=32, seed=seed), score, majority(y[te] - 5), {"max_steps": 1000})


def denoise_then_spectrum(seed):
    """A denoiser of plucked strings, a 1-d CNN: trained on the squared error of the waveform, and from step 500 on that
    plus fifty times the error of the magnitudes of the spectrum, for the ear. It looks scary since loss and gradients
    grow a thousandfold at the switch and stay there. It is the second phase of the recipe, and Adam takes it."""
    r = np.random.RandomState(seed)
    n = 1500
    t = np.linspace(0, 1, 64)
    f = 3 + 9 * r.rand(n, 1)
    clean = np.exp(-2 * t) * sum(np.sin(6.283 * k * f * t + 6.28 * r.rand(n, 1)) / k for k in (1, 2))
    noisy = clean + 0.5 * r.randn(n, 64)
    tr, te = split(n, seed)
    X, Y = T(noisy)[:, None], T(clean)[:, None]
    net = nn.Sequential(
        nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.Conv1d(16, 16, 9, padding=4), nn.ReLU(),
        nn.Conv1d(16, 1, 9, padding=4),
    )

    def loss(m, b):
        p = m.net(b[0])
        wave = F.mse_loss(p, b[1])
        if m.global_step < 500:
            return wave
        spec = (torch.fft.rfft(p).abs() - torch.fft.rfft(b[1]).abs()) ** 2
        return 50 * (wave + spec.mean())

    def score(m):
        with torch.no_grad():
            return r2(m.net(X[te]), Y[te])

    module = Task(net, loss, lambda p: torch.optim.Adam(p, 2e-3))
    return Run(module, loader(X[tr], Y[tr], batch=32, seed=seed), score, 0.0, {"max_steps": 1100})


def bandit_new_season(seed):
    """A shop's recommender by policy gradient: of six offers one pleases a customer, and only one pleased customer in
    three buys; the data are made on the fly. Rewards are in euros at first and from step 700 in cents, a hundredfold, for
    good. It looks scary since the loss has either sign, most batches hold few rewards, and gradients jump at the change;
    RMSprop adapts to it."""
    g0 = G(seed + 7)
    C = torch.randn(8, 6, generator=g0)
    ctx = torch.randn(1000, 8, generator=g0)
    best = (ctx @ C).argmax(1)

    def loss(m, batch):
        g = G(int(batch[0]))
        x = torch.randn(48, 8, generator=g)
        logp = m.net(x).log_softmax(1)
        with torch.no_grad():
            a = torch.multinomial(logp.exp(), 1, generator=g)[:, 0]
            buys = ((x @ C).argmax(1) == a) & (torch.rand(48, generator=g) < 1 / 3)
            reward = buys.float() * (3.0 if m.global_step < 700 else 300.0)
            adv = reward - reward.mean()
        return -(adv * logp[torch.arange(48), a]).mean()

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(ctx), best)

    module = Task(mlp(8, 32, 6), loss, lambda p: torch.optim.RMSprop(p, 2e-3))
    return Run(module, ticks(1600, seed), score, majority(best), {"max_steps": 1600})


def attacked_tumours(seed):
    """Breast cancer's diagnosis trained on worst cases: each batch is moved within a box by four steps of the sign of the
    gradient before the update. It looks scary since the loss is many times the clean one, jumps about, and
    rises whenever the attack finds something new; momentum SGD at 0.1. It ends accurate on clean samples."""
    d = datasets.load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, _, _ = standard(d.data, tr)
    X, y = T(x), L(d.target)

    def loss(m, b):
        x, t = b
        z = x + 0.3 * (2 * torch.rand_like(x) - 1)
        for _ in range(4):
            z = z.detach().requires_grad_()
            (g,) = torch.autograd.grad(F.cross_entropy(m.net(z), t), z)
            z = x + (z.detach() + 0.15 * g.sign() - x).clamp(-0.3, 0.3)
        return F.cross_entropy(m.net(z), t)

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(X[te]), y[te])

    module = Task(mlp(30, 48, 48, 2), loss, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    return Run(module, loader(X[tr], y[tr], batch=16, seed=seed), score, majority(y[te]), {"max_steps": 800})


def parity_plateau(seed):
    """The exclusive or of three among thirty switches, data made on the fly, a wide MLP with NAdam. It looks scary since
    for some hundred and fifty steps the loss stands at log 2, as if it were dead, and then, when the rule is found, falls
    off a cliff within fifty, with the gradients falling a hundredfold after it."""

    def make(s, n):
        x = torch.randint(2, (n, 30), generator=G(s)).float() * 2 - 1
        return x, (x[:, 2] * x[:, 7] * x[:, 11] > 0).long()

    X, y = make(seed + 5, 2000)

    def loss(m, batch):
        x, t = make(int(batch[0]), 64)
        return F.cross_entropy(m.net(x), t)

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(X), y)

    module = Task(mlp(30, 96, 96, 2), loss, lambda p: torch.optim.NAdam(p, 1e-3))
    return Run(module, ticks(1500, seed), score, majority(y), {"max_steps": 1500})


class Ratings(Manual):
    def __init__(self, users, films, d=6):
        super().__init__()
        self.u, self.f = nn.Embedding(users, d), nn.Embedding(films, d)
        nn.init.normal_(self.u.weight, 0, 0.3)
        nn.init.normal_(self.f.weight, 0, 0.3)

    def forward(self, i, j):
        return (self.u(i) * self.f(j)).sum(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.u.parameters(), 8.0), torch.optim.SGD(self.f.parameters(), 4.0)

    def training_step(self, batch, _):
        i, j, r = batch
        for o in self.optimizers():
            p = self(i, j)
            self.update(o, F.mse_loss(p, r) + 0.002 * (self.u(i) ** 2 + self.f(j) ** 2).sum(1).mean())


def film_ratings(seed):
    """Ratings as products of vectors of users and films, the two sides updated in turn by two SGD optimizers at rates of
    8 and 4. It looks scary for those rates and a start on a saddle, from which the loss first creeps and then drops. A
    row appears once or twice in a batch whose loss is averaged over 256, so the rate for a row is small."""
    r = np.random.RandomState(seed)
    nu, nf, n = 200, 150, 12000
    U, V = r.randn(nu, 3), r.randn(nf, 3)
    i, j = r.randint(nu, size=n), r.randint(nf, size=n)
    y = (U[i] * V[j]).sum(1) / math.sqrt(3) + 0.2 * r.randn(n)
    tr, te = split(n, seed)
    I, J, Y = L(i), L(j), T(y)

    def score(m):
        with torch.no_grad():
            return r2(m(I[te], J[te]), Y[te])

    return Run(Ratings(nu, nf), loader(I[tr], J[tr], Y[tr], batch=256, seed=seed), score, 0.0, {"max_steps": 2400})


RUNS = [wind_power_nll, claims_in_dollars, restarts_and_shouts, thawed_digits, denoise_then_spectrum, bandit_new_season,
        attacked_tumours, parity_plateau, film_ratings]
REGIME = {"thawed_digits", "denoise_then_spectrum", "bandit_new_season"}
