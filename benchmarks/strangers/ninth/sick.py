"""Ten training runs with a mistake; ``twin=True`` builds the same program with the mistake corrected."""

import math

import torch
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from sklearn.datasets import load_digits, make_friedman1, make_moons
from torch import nn
from torch.nn import functional as F


def predict(m, x):
    m.eval()
    with torch.no_grad():
        return m.net(x)


def digits(seed):
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    return T(x / 16.0), L(y), tr, te


def cross_entropy(m, batch):
    return F.cross_entropy(m.net(batch[0]), batch[1])


class RowTransformer(nn.Module):
    def __init__(self, d=32):
        super().__init__()
        self.inp = nn.Linear(8, d)
        self.pos = nn.Parameter(0.02 * torch.randn(8, d))
        layer = nn.TransformerEncoderLayer(d, 4, 64, dropout=0.0, batch_first=True)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(d, 10)

    def forward(self, x):
        return self.out(self.enc(self.inp(x.reshape(-1, 8, 8)) + self.pos).mean(1))


def warmup_never_ends(seed, twin):
    """The warm-up of a transformer's rate lacks its min(1, .), so the rate goes on growing to the last step.

    corrected: the factor stops at 1.
    """
    x, y, tr, te = digits(seed)

    def factor(step):
        return min(1.0, (step + 1) / 10) if twin else (step + 1) / 10

    module = Task(
        RowTransformer(),
        cross_entropy,
        lambda p: torch.optim.AdamW(p, lr=3e-3),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, factor),
    )
    return Run(
        module,
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: accuracy(predict(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 450},
    )


class Forecaster(nn.Module):
    def __init__(self, d=24):
        super().__init__()
        self.rnn = nn.GRU(1, d, batch_first=True)
        self.out = nn.Linear(d, 1)

    def forward(self, x):
        return self.out(self.rnn(x[..., None])[0][:, -1]).squeeze(-1)


def station_outage(seed, twin):
    """A weather series keeps the -9999 that its station writes during an outage; windows are read in order of time.

    corrected: windows that contain the marker are left out.
    """
    n, w = 6600, 20
    t = torch.arange(n, dtype=torch.float32)
    ar, noise = torch.zeros(n), torch.randn(n, generator=G(seed + 50))
    for i in range(1, n):
        ar[i] = 0.9 * ar[i - 1] + noise[i]
    temp = 12 + 6 * torch.sin(2 * math.pi * t / 24) + 3 * torch.sin(2 * math.pi * t / 170) + ar
    z = (temp - 12) / 5
    z[4990:4996] = (-9999.0 - 12) / 5
    win = z.unfold(0, w + 1, 1)
    train, test = win[:5600], win[5700:]
    if twin:
        train = train[train.min(1).values > -100]

    def loss(m, batch):
        return F.mse_loss(m.net(batch[0]), batch[1])

    module = Task(Forecaster(), loss, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    return Run(
        module,
        loader(train[:, :w], train[:, w], batch=16, seed=seed, shuffle=False),
        lambda m: r2(predict(m, test[:, :w]), test[:, w]),
        0.0,
        {"max_steps": 500},
    )


def small_cnn(deeper=0):
    more = [m for _ in range(deeper) for m in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        *more,
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def finetune_keeps_sgd_rate(seed, twin):
    """A pretrained CNN is fine-tuned on rotated, dimmer digits; SGD was exchanged for Adam; its rate of 0.1 stayed.

    corrected: a rate of 1e-3.
    """
    x, y, tr, te = digits(seed)
    rot = 0.7 * torch.rot90(x.reshape(-1, 8, 8), 1, (1, 2))
    rot = (rot + 0.1 * torch.randn(rot.shape, generator=G(seed + 9))).contiguous()
    net = small_cnn(3)
    for part in net:
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    opt, g = torch.optim.SGD(net.parameters(), lr=0.1), G(seed + 70)
    src = x.reshape(-1, 8, 8)
    for _ in range(250):
        i = torch.as_tensor(tr)[torch.randint(len(tr), (32,), generator=g)]
        opt.zero_grad()
        F.cross_entropy(net(src[i]), y[i]).backward()
        opt.step()
    module = Task(net, cross_entropy, lambda p: torch.optim.Adam(p, lr=1e-3 if twin else 0.1))
    return Run(
        module,
        loader(rot[tr], y[tr], batch=32, seed=seed),
        lambda m: accuracy(predict(m, rot[te]), y[te]),
        majority(y[te]),
        {"max_steps": 400},
    )


class Pointing(Task):
    """A Gaussian policy that must point at a target seen through a nonlinear sensor; a rollout serves 40 updates."""

    def __init__(self, clipped, seed):
        super().__init__(mlp(4, 48, 48, 2, act=nn.Tanh), None, lambda p: torch.optim.Adam(p, lr=1e-2))
        self.log_std = nn.Parameter(torch.zeros(2))
        self.clipped, self.buffer = clipped, None
        self.register_buffer("w", torch.randn(4, 2, generator=G(seed + 5)))

    def target(self, s):
        return 2 * torch.tanh(s @ self.w)

    def policy(self, s):
        return torch.distributions.Normal(self.net(s), self.log_std.exp(), validate_args=False)

    def training_step(self, batch, i):
        if self.global_step % 40 == 0:
            g = G(int(batch[0]))
            with torch.no_grad():
                s = torch.randn(512, 4, generator=g)
                pi = self.policy(s)
                a = pi.mean + pi.stddev * torch.randn(512, 2, generator=g)
                reward = -((a - self.target(s)) ** 2).sum(-1)
                adv = (reward - reward.mean()) / (reward.std() + 1e-8)
                self.buffer = s, a, pi.log_prob(a).sum(-1), adv
        s, a, old, adv = self.buffer
        ratio = (self.policy(s).log_prob(a).sum(-1) - old).exp()
        gain = ratio * adv
        if self.clipped:
            gain = torch.minimum(gain, ratio.clamp(0.8, 1.2) * adv)
        loss = -gain.mean()
        self.log("loss", loss)
        return loss


def ppo_without_clip(seed, twin):
    """A policy-gradient agent reuses each rollout for 40 updates with the plain importance ratio, which runs away.

    corrected: PPO's clipped ratio.
    """
    s = torch.randn(1000, 4, generator=G(seed + 999))
    return Run(
        Pointing(twin, seed),
        ticks(900, seed),
        lambda m: r2(predict(m, s), m.target(s)),
        0.0,
        {"max_steps": 900},
    )


def siamese_same_image(seed, twin):
    """A siamese network's distance is a bare sqrt, and two positive pairs of the list are an image with itself.

    corrected: a small constant under the root.
    """
    x, y, tr, te = digits(seed)

    def pairs(idx, n, s):
        g, idx = G(s), torch.as_tensor(idx)
        a = idx[torch.randint(len(idx), (n,), generator=g)]
        b = idx[torch.randint(len(idx), (n,), generator=g)]
        for k in range(0, n, 2):
            same = idx[(y[idx] == y[a[k]]) & (idx != a[k])]
            b[k] = same[torch.randint(len(same), (1,), generator=g)]
        keep = a != b
        return a[keep], b[keep]

    a, b = pairs(tr, 11000, seed + 20)
    for k in (2, 600):
        b[k] = a[k]
    c, d = pairs(te, 1500, seed + 21)

    def distance(m, p, q):
        sq = ((m.net(p) - m.net(q)) ** 2).sum(-1)
        return (sq + 1e-6).sqrt() if twin else sq.sqrt()

    def loss(m, batch):
        dist = distance(m, x[batch[0]], x[batch[1]])
        same = (y[batch[0]] == y[batch[1]]).float()
        return (same * dist**2 + (1 - same) * F.relu(2 - dist) ** 2).mean()

    def score(m):
        m.eval()
        with torch.no_grad():
            dist = distance(m, x[c], x[d])
        if not torch.isfinite(dist).all():
            return float("nan")
        return float(((dist < 1) == (y[c] == y[d])).double().mean())

    share = float((y[c] == y[d]).double().mean())
    module = Task(mlp(64, 64, 16), loss, lambda p: torch.optim.NAdam(p, lr=2e-3))
    return Run(module, loader(a, b, batch=32, seed=seed), score, max(share, 1 - share), {"max_epochs": 1})


class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip, self.net = flip, mlp(1, 48, 48, 2)

    def forward(self, x):
        a, b = x.flip(-1).split(1, -1) if self.flip else x.split(1, -1)
        s, t = self.net(a).split(1, -1)
        out = torch.cat([a, b * s.exp() + t], -1)
        return (out.flip(-1) if self.flip else out), s.squeeze(-1)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(Coupling(k % 2 == 1) for k in range(6))

    def forward(self, x):
        total = 0
        for part in self.parts:
            x, s = part(x)
            total = total + s
        return -0.5 * (x**2).sum(-1) - math.log(2 * math.pi) + total


def flow_on_raw_pixels(seed, twin):
    """A RealNVP flow with exponential scales is given coordinates in pixels (hundreds) as they come from the tracker.

    corrected: coordinates standardised.
    """
    x, _ = make_moons(4000, noise=0.06, random_state=seed)
    tr, te = split(4000, seed)
    raw = T(x) * 180 + T([640.0, 360.0])
    z, _, sd = standard(raw, tr)
    data = z if twin else raw
    shift = 0.0 if twin else float(sd.log().sum())

    def score(m):
        ll = predict(m, data[te])
        return float(ll.mean()) + shift if torch.isfinite(ll).all() else float("nan")

    gauss = torch.distributions.MultivariateNormal(z[tr].mean(0), z[tr].T.cov())
    module = Task(Flow(), lambda m, b: -m.net(b[0]).mean(), lambda p: torch.optim.Adamax(p, lr=5e-3))
    return Run(
        module,
        loader(data[tr], batch=64, seed=seed),
        score,
        float(gauss.log_prob(z[te]).mean()),
        {"max_steps": 700},
    )


class GraphNet(nn.Module):
    def __init__(self, adj, d=16, depth=3):
        super().__init__()
        self.register_buffer("adj", adj)
        dims = [8] + [d] * depth
        self.lins = nn.ModuleList(nn.Linear(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True))
        self.out = nn.Linear(d, 4)
        for lin in self.lins:
            nn.init.kaiming_normal_(lin.weight)
            nn.init.zeros_(lin.bias)

    def forward(self, x):
        for lin in self.lins:
            x = F.relu(self.adj @ lin(x))
        return self.out(x)


def graph_hubs_summed(seed, twin):
    """A deep graph network sums over neighbours in a graph with hubs: activations grow by the degree per layer.

    corrected: the symmetrically normalised adjacency of a GCN.
    """
    n, g = 320, G(seed + 40)
    y = torch.arange(n) % 4
    p = torch.where(y[:, None] == y[None], 0.12, 0.012)
    p = p * torch.where(torch.arange(n) % 40 < 2, 4.0, 1.0)[:, None]
    a = (torch.rand(n, n, generator=g) < p).float()
    a = ((a + a.T) > 0).float()
    a.fill_diagonal_(1.0)
    if twin:
        d = a.sum(1).rsqrt()
        a = d[:, None] * a * d[None]
    x = torch.randn(n, 8, generator=g)
    x[:, :4] += 1.0 * F.one_hot(y, 4)
    tr, te = split(n, seed, 0.4)

    def loss(m, batch):
        return F.cross_entropy(m.net(x)[tr], y[tr])

    module = Task(GraphNet(a), loss, lambda q: torch.optim.SGD(q, lr=0.2, momentum=0.9, weight_decay=5e-4))
    return Run(
        module,
        ticks(300, seed),
        lambda m: accuracy(predict(m, x)[te], y[te]),
        majority(y[te]),
        {"max_steps": 300},
    )


def discs(n, seed, empty):
    g = G(seed)
    c = torch.rand(n, 2, generator=g) * 10 + 3
    r = 2 + 1.5 * torch.rand(n, generator=g)
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"), -1)
    mask = ((grid[None] - c[:, None, None]).norm(dim=-1) < r[:, None, None]).float()
    mask = mask * (torch.rand(n, generator=g) > empty).float()[:, None, None]
    img = 1.2 * mask + 0.8 * torch.randn(n, 16, 16, generator=g) + 0.5 * torch.rand(n, 1, 1, generator=g)
    return img[:, None], mask[:, None]


class TinyUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.d = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x):
        a = self.a(x)
        return self.d(torch.cat([a, F.interpolate(self.c(self.b(a)), scale_factor=2)], 1))


def empty_masks(seed, twin):
    """A lesion segmentation weighs positives by negatives/positives of each batch; now and then no image has a lesion.

    corrected: the count of positives is at least one image's worth (30 pixels).
    """
    x, y = discs(1200, seed + 60, 0.3)
    xt, yt = discs(300, seed + 61, 0.3)

    def loss(m, batch):
        pos = batch[1].sum()
        neg = batch[1].numel() - pos
        weight = neg / (pos.clamp(min=30.0) if twin else pos)
        return F.binary_cross_entropy_with_logits(m.net(batch[0]), batch[1], pos_weight=weight)

    def iou(mask):
        return float((mask * yt).sum() / ((mask + yt) > 0).sum())

    def score(m):
        out = predict(m, xt)
        return iou((out > 1).float()) if torch.isfinite(out).all() else float("nan")

    module = Task(TinyUNet(), loss, lambda p: torch.optim.RMSprop(p, lr=2e-3))
    return Run(module, loader(x, y, batch=4, seed=seed), score, iou(torch.ones_like(yt)), {"max_steps": 700})


def lbfgs_on_minibatches(seed, twin):
    """LBFGS at rate 1 without a line search, on shuffled mini-batches: curvature pairs mix noise of different batches.

    corrected: the full batch with the strong Wolfe line search.
    """
    x, y = make_friedman1(1600, 6, noise=0.3, random_state=seed)
    tr, te = split(len(x), seed)
    x, y = T(x), standard(T(y), tr)[0]

    def make(p):
        return torch.optim.LBFGS(p, lr=1.0, max_iter=3, line_search_fn="strong_wolfe" if twin else None)

    module = Task(mlp(6, 32, 32, 1, act=nn.SiLU), lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]), make)
    return Run(
        module,
        loader(x[tr], y[tr], batch=len(tr) if twin else 32, seed=seed),
        lambda m: r2(predict(m, x[te]), y[te]),
        0.0,
        {"max_steps": 250},
    )


class HandWritten(Manual):
    def __init__(self, net, zero):
        super().__init__()
        self.net, self.zero = net, zero

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)

    def training_step(self, batch, _):
        opt = self.optimizers()
        loss = cross_entropy(self, batch)
        self.log("loss", loss)
        if self.zero:
            self.update(opt, loss)
            return
        self.manual_backward(loss)
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()


def forgotten_zero_grad(seed, twin):
    """A hand-written training loop never calls zero_grad, so each step applies the sum of all gradients so far.

    corrected: gradients cleared before each backward pass.
    """
    x, y, tr, te = digits(seed)
    x = x.reshape(-1, 8, 8)
    return Run(
        HandWritten(small_cnn(), twin),
        loader(x[tr], y[tr], batch=32, seed=seed),
        lambda m: accuracy(predict(m, x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 400},
    )


RUNS = [
    warmup_never_ends,
    station_outage,
    finetune_keeps_sgd_rate,
    ppo_without_clip,
    siamese_same_image,
    flow_on_raw_pixels,
    graph_hubs_summed,
    empty_masks,
    lbfgs_on_minibatches,
    forgotten_zero_grad,
]
