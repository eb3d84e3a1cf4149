from common import *

import copy

import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.neighbors import kneighbors_graph


def _digits(seed, share=0.75):
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed, share)
    x, y = T(x / 16.0), L(y)
    return x[tr], y[tr], x[te], y[te]


def _energy(a, b):
    d = lambda p, q: torch.cdist(p.double(), q.double()).mean()
    return float(2 * d(a, b) - d(a, a) - d(b, b))


# 1 ---------------------------------------------------------------------------------------------------------------
class _Wgan(Manual):
    def __init__(self, seed, twin):
        super().__init__()
        self.gen, self.critic = mlp(4, 64, 64, 2), mlp(2, 64, 64, 1)
        self.twin, self.rng = twin, G(seed + 5)

    def configure_optimizers(self):
        return (
            torch.optim.SGD(self.critic.parameters(), lr=0.05),
            torch.optim.RMSprop(self.gen.parameters(), lr=2e-3),
        )

    def sample(self, n):
        return self.gen(torch.randn(n, 4, generator=self.rng))

    def training_step(self, batch, i):
        (x,) = batch
        oc, og = self.optimizers()
        wdist = self.critic(x).mean() - self.critic(self.sample(len(x)).detach()).mean()
        self.update(oc, -wdist)
        for p in self.critic.parameters():
            if self.twin:
                p.data.clamp_(-0.15, 0.15)
            else:
                p = p.data.clamp(-0.15, 0.15)
        self.log("wdist", wdist)
        if i % 3 == 2:
            self.update(og, -self.critic(self.sample(len(x))).mean())


def wgan_wind(seed, twin=False):
    """A Wasserstein GAN that learns to draw wind vectors (speed and direction at a coastal mast, a ring-like cloud).
    The author wrote `p = p.data.clamp(...)` for the weight clipping of the critic, which makes a new tensor and leaves
    the weights as they are, so the critic is unbounded and its scores and gradients grow without end."""
    r = np.random.RandomState(seed)
    n = 4000
    a, rad = r.vonmises(1.0, 0.7, n), 3 + 0.3 * r.randn(n)
    x = T(np.stack([rad * np.cos(a) + 1.5, rad * np.sin(a) - 1], 1))
    tr, te = x[:3000], x[3000:]
    m = _Wgan(seed, twin)

    def score(m):
        with torch.no_grad():
            return -_energy(m.gen(torch.randn(1000, 4, generator=G(99))), te)

    trivial = -_energy(tr.mean(0, keepdim=True).expand(1000, 2), te)
    return Run(m, loader(tr, batch=64, seed=seed), score, trivial, {"max_steps": 1600})


# 2 ---------------------------------------------------------------------------------------------------------------
def pinn_lbfgs(seed, twin=False):
    """A physics-informed network for the temperature along a heated rod with a nonlinear loss term, polished with
    torch's LBFGS. The few collocation points are drawn anew in every training step, so the curvature pairs that LBFGS
    builds from successive gradients belong to different objectives and its steps fly off; with fixed points it works."""
    exact = lambda x: torch.sin(np.pi * x) + 0.5 * torch.sin(4 * np.pi * x)

    def source(x):
        u = exact(x)
        uxx = -(np.pi**2) * torch.sin(np.pi * x) - 8 * np.pi**2 * torch.sin(4 * np.pi * x)
        return -uxx + u**3

    fixed = torch.linspace(0, 1, 64)[:, None]

    def loss(m, batch):
        x = fixed.clone() if twin else torch.rand(16, 1, generator=G(int(batch[0][0])))
        x.requires_grad_(True)
        with torch.enable_grad():
            u = m.net(x)
            ux = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
            uxx = torch.autograd.grad(ux.sum(), x, create_graph=True)[0]
        res = -uxx + u**3 - source(x.detach())
        edge = m.net(torch.tensor([[0.0], [1.0]]))
        return (res**2).mean() + 1000 * (edge**2).mean()

    m = Task(
        mlp(1, 24, 24, 1, act=nn.Tanh),
        loss,
        lambda p: torch.optim.LBFGS(p, lr=1.0, max_iter=4, history_size=20),
    )
    grid = torch.linspace(0, 1, 101)[:, None]

    def score(m):
        with torch.no_grad():
            return r2(m.net(grid), exact(grid))

    return Run(m, ticks(300, seed), score, 0.0, {"max_steps": 300})


# 3 ---------------------------------------------------------------------------------------------------------------
class _Flow(nn.Module):
    def __init__(self, d, twin):
        super().__init__()
        self.twin = twin
        self.shift = nn.Parameter(torch.zeros(d))
        self.scale = nn.Parameter(torch.zeros(d))
        self.nets = nn.ModuleList([mlp(d // 2, 32, d) for _ in range(4)])

    def forward(self, x):
        z, logdet = x * self.scale.exp() + self.shift, self.scale.sum()
        h = z.shape[1] // 2
        for net in self.nets:
            a, b = z[:, :h], z[:, h:]
            s, t = net(a).chunk(2, 1)
            if self.twin:
                s = torch.tanh(s)
            z = torch.cat([b * s.exp() + t, a], 1)
            logdet = logdet + s.sum(1)
        return -0.5 * (z**2).sum(1) + logdet - 0.5 * z.shape[1] * np.log(2 * np.pi)


def flow_cells(seed, twin=False):
    """A RealNVP flow for the joint density of cell measurements (radius, texture, perimeter, area, ...; centred) of the
    breast cancer data, used to flag odd samples. The coupling layers put the raw output of their networks into the exponential; the
    measurements are in their own units (areas of hundreds), so the exponent is some tens and the likelihood overflows.
    The right version bounds the exponent by tanh, as the paper's code does."""
    x = load_breast_cancer().data[:, [0, 1, 2, 3, 20, 22]]
    tr, te = split(len(x), seed)
    x = x - x[tr].mean(0)
    mu, sd = x[tr].mean(0), x[tr].std(0)
    z = (x[te] - mu) / sd
    trivial = float((-0.5 * z**2 - np.log(sd) - 0.5 * np.log(2 * np.pi)).sum(1).mean())
    x = T(x)
    m = Task(_Flow(6, twin), lambda m, b: -m.net(b[0]).mean(), lambda p: torch.optim.RMSprop(p, lr=1e-2))

    def score(m):
        with torch.no_grad():
            return float(m.net(x[te]).mean())

    return Run(m, loader(x[tr], batch=64, seed=seed), score, trivial, {"max_steps": 1000})


# 4 ---------------------------------------------------------------------------------------------------------------
class _Gcn(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 48), nn.Linear(48, 10)

    def forward(self, x, adj):
        d = adj.sum(1).pow(-0.5)
        adj = d[:, None] * adj * d[None]
        return adj @ self.b(F.relu(adj @ self.a(x)))


def gcn_dropedge(seed, twin=False):
    """A graph convolutional network labels scanned digits in a neighbour graph in which one page in ten is labelled.
    Edges are dropped at random in training (DropEdge) and the adjacency is normalised by the degrees afterwards, but
    self-loops were never added: once a node loses all its edges its degree is 0, the normaliser is infinite, and the
    weights are NaN."""
    x, y = load_digits(return_X_y=True)
    p = np.random.RandomState(seed).permutation(len(x))[:600]
    x, y = x[p] / 16.0, L(y[p])
    adj = kneighbors_graph(x, 4, include_self=False).toarray()
    adj = T(np.maximum(adj, adj.T))
    eye = torch.eye(600) if twin else torch.zeros(600, 600)
    x, tr, te = T(x), slice(0, 60), slice(60, 600)

    def loss(m, batch):
        keep = torch.triu(torch.rand(600, 600, generator=G(int(batch[0][0]))) > 0.1).float()
        return F.cross_entropy(m.net(x, adj * (keep.triu(1) + keep.triu(1).T) + eye)[tr], y[tr])

    m = Task(_Gcn(), loss, lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=5e-3))

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(x, adj + eye)[te], y[te])

    return Run(m, ticks(500, seed), score, majority(y[te]), {"max_steps": 500})


# 5 ---------------------------------------------------------------------------------------------------------------
class _Rows(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.inp, self.pos = nn.Linear(8, d), nn.Parameter(0.1 * torch.randn(8, d))
        self.enc = nn.ModuleList([nn.TransformerEncoderLayer(d, 4, 64, 0.0, batch_first=True) for _ in range(2)])
        self.out = nn.Linear(d, 10)

    def forward(self, x):
        h = self.inp(x.view(-1, 8, 8)) + self.pos
        for e in self.enc:
            h = e(h)
        return self.out(h.mean(1))


def noam_resumed(seed, twin=False):
    """A small transformer reads digits row by row; a first session of 300 steps has been cut off and this one goes on
    from its weights with the inverse-square-root ("Noam") schedule. The step counter was not restored and the warm-up
    was switched off because the model "is already warm", so the rate starts at 2 * d**-0.5, some hundred times any rate the model
    had seen. The right version starts the counter where the first session ended."""
    xtr, ytr, xte, yte = _digits(seed)
    net, warm = _Rows(), 4000
    noam = lambda s, w: 32**-0.5 * min(s**-0.5, s * w**-1.5)
    opt = torch.optim.Adam(net.parameters(), lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    g = G(seed)
    for s in range(1, 301):
        i = torch.randint(len(xtr), (64,), generator=g)
        opt.param_groups[0]["lr"] = 2 * noam(s, warm)
        opt.zero_grad()
        F.cross_entropy(net(xtr[i]), ytr[i]).backward()
        opt.step()
    rate = (lambda s: 2 * noam(s + 301, warm)) if twin else (lambda s: 2 * noam(s + 1, 1))
    m = Task(
        net,
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.Adam(p, lr=1.0, betas=(0.9, 0.98), eps=1e-9),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, rate),
    )

    def score(m):
        m.eval()
        with torch.no_grad():
            return accuracy(m.net(xte), yte)

    return Run(m, loader(xtr, ytr, batch=64, seed=seed), score, majority(yte), {"max_steps": 400})


# 6 ---------------------------------------------------------------------------------------------------------------
class _Resonator(nn.Module):
    def __init__(self, twin):
        super().__init__()
        self.twin = twin
        a1, a2 = -1.32, 0.64
        self.p = nn.Parameter(T([np.arctanh(a1 / 2), np.arctanh((2 * a2 + a1) / (2 + a1))] if twin else [a1, a2]))
        self.b = nn.Parameter(torch.tensor([0.5, 0.0]))
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        if self.twin:
            a1 = 2 * torch.tanh(self.p[0])
            a2 = ((2 - a1.abs()) * torch.tanh(self.p[1]) + a1.abs()) / 2
        else:
            a1, a2 = self.p[0], self.p[1]
        return self.gain * _biquad(x, self.b[0], self.b[1], a1, a2)


def _biquad(x, b0, b1, a1, a2):
    u = (b0 * x + b1 * F.pad(x, (1, 0))[:, :-1]).unbind(1)
    y1 = y2 = torch.zeros_like(u[0])
    out = []
    for t in u:
        y1, y2 = t - a1 * y1 - a2 * y2, y1
        out.append(y1)
    return torch.stack(out, 1)


def iir_pedal(seed, twin=False):
    """A differentiable resonant filter is fitted to recordings of a wah pedal at one setting (input and output audio in
    frames). The feedback coefficients are free parameters, and on the way to the strongly resonant target a step puts
    a pole outside the unit circle, after which the output grows exponentially along the frame. The right version maps
    free numbers into the triangle of stable coefficients."""
    r = np.random.RandomState(seed)
    x = T(r.randn(240, 128))
    rad, th = 0.96 + 0.01 * r.rand(), 0.5 + 0.1 * r.rand()
    with torch.no_grad():
        y = _biquad(x, 0.4, 0.1, -2 * rad * np.cos(th), rad**2) + 0.05 * T(r.randn(240, 128))
    m = Task(
        _Resonator(twin),
        lambda m, b: F.mse_loss(m.net(b[0]), b[1]),
        lambda p: torch.optim.SGD(p, lr=2e-3, momentum=0.9),
    )

    def score(m):
        with torch.no_grad():
            return r2(m.net(x[200:]), y[200:])

    return Run(m, loader(x[:200], y[:200], batch=16, seed=seed), score, 0.0, {"max_steps": 400})


# 7 ---------------------------------------------------------------------------------------------------------------
def half_biopsy(seed, twin=False):
    """A classifier of biopsies (breast cancer data) trained in pure half precision to fit an edge device. Adam was left
    at eps=1e-8, which is zero in half precision, as are the squares of small gradients: the update is a division by
    zero. The right version sets eps=1e-3, as the forum says."""
    x, y = load_breast_cancer(return_X_y=True)
    tr, te = split(len(x), seed)
    x, y = T(standard(x, tr)[0]), L(y)
    eps = 1e-3 if twin else 1e-8
    m = Task(
        mlp(30, 64, 32, 2),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.Adam(p, lr=2e-3, eps=eps),
    )

    def score(m):
        with torch.no_grad():
            return accuracy(copy.deepcopy(m.net).float()(x[te]), y[te])

    tl = loader(x[tr].half(), y[tr], batch=32, seed=seed)
    return Run(m, tl, score, majority(y[te]), {"max_steps": 500, "precision": "16-true"})


# 8 ---------------------------------------------------------------------------------------------------------------
def focal_cnn(seed, twin=False):
    """A CNN on digits with a hand-written focal loss of exponent 0.5, trained with RMSprop. When the network becomes so
    sure of an image that its probability rounds to one, the derivative of (1 - p)**0.5 is infinite and its product
    with log(p) = 0 is NaN: the training dies just when it goes well. The right version clamps p below one."""
    xtr, ytr, xte, yte = _digits(seed)
    xtr, xte = 16 * xtr, 16 * xte
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )

    def loss(m, b):
        p = m.net(b[0]).softmax(1).gather(1, b[1][:, None])
        if twin:
            p = p.clamp(1e-6, 1 - 1e-6)
        return -((1 - p) ** 0.5 * torch.log(p)).mean()

    m = Task(net, loss, lambda p: torch.optim.RMSprop(p, lr=2e-3))

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(xte), yte)

    return Run(m, loader(xtr, ytr, batch=32, seed=seed), score, majority(yte), {"max_steps": 900})


# 9 ---------------------------------------------------------------------------------------------------------------
def _cart(x, v, a):
    v2 = (0.95 * v + 0.15 * (a.float() - 1) + 0.05 * x).clamp(-2, 2)
    x2 = (x + 0.2 * v2).clamp(-3, 3)
    return x2, v2, -(x2**2) - 0.1 * v2**2


class _Dqn(LightningModule):
    def __init__(self, twin, tau=0.01):
        super().__init__()
        self.q = mlp(2, 64, 64, 3)
        self.target = copy.deepcopy(self.q).requires_grad_(False)
        self.twin, self.tau = twin, tau

    def configure_optimizers(self):
        return torch.optim.SGD(self.q.parameters(), lr=5e-3, momentum=0.9)

    def training_step(self, b, _):
        s, a, r, s2 = b
        with torch.no_grad():
            goal = r + 0.9 * self.target(s2).max(1)[0]
        loss = F.mse_loss(self.q(s).gather(1, a[:, None])[:, 0], goal)
        self.log("td", loss)
        return loss

    def on_train_batch_end(self, *_):
        for t, p in zip(self.target.parameters(), self.q.parameters(), strict=True):
            if self.twin:
                t.data.mul_(1 - self.tau)
            t.data.add_(self.tau * p.data)


def dqn_cart(seed, twin=False):
    """Q-learning from a log of random pushes for keeping an unstable cart at the centre of its rail. The soft update of
    the target network adds tau times the online weights but the line that scales the old target weights by 1 - tau is
    missing, so the target network grows, the values chase it and the whole runs away."""
    g = G(seed)
    n = 6000
    x, v = 4 * torch.rand(n, generator=g) - 2, 2 * torch.rand(n, generator=g) - 1
    a = torch.randint(3, (n,), generator=g)
    x2, v2, r = _cart(x, v, a)
    tl = loader(torch.stack([x, v], 1), a, r, torch.stack([x2, v2], 1), batch=64, seed=seed)
    x0, v0 = 3 * torch.rand(200, generator=G(7)) - 1.5, torch.zeros(200)

    def play(policy):
        x, v, total = x0, v0, 0.0
        for _ in range(60):
            x, v, r = _cart(x, v, policy(torch.stack([x, v], 1)))
            total += float(r.mean()) / 60
        return total

    def score(m):
        if not all(torch.isfinite(p).all() for p in m.parameters()):
            return float("nan")
        with torch.no_grad():
            return play(lambda s: m.q(s).argmax(1))

    h = G(8)
    trivial = play(lambda s: torch.randint(3, (len(s),), generator=h))
    return Run(_Dqn(twin), tl, score, trivial, {"max_steps": 1200})


RUNS = [
    wgan_wind,
    pinn_lbfgs,
    flow_cells,
    gcn_dropedge,
    noam_resumed,
    iir_pedal,
    half_biopsy,
    focal_cnn,
    dqn_cart,
]
