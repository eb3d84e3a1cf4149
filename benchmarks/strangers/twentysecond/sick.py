from common import *

import math

import torch.nn.functional as F
from sklearn import datasets


class CharGRU(nn.Module):
    def __init__(self, v):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(v, 24), nn.GRU(24, 64, batch_first=True), nn.Linear(64, v)

    def forward(self, x):
        return self.out(self.rnn(self.emb(x))[0])


def manual_pages_perplexity(seed, twin=False):
    """A character GRU trained on the descriptions that come with scikit-learn's data sets, with plain SGD. The mistake:
    the papers report perplexity, so the student minimises exp(cross-entropy) and keeps the learning rate of the
    tutorial; every gradient is multiplied by the perplexity, some eighty at the start. The twin minimises the
    cross-entropy."""
    text = "\n".join(
        f().DESCR
        for f in (datasets.load_wine, datasets.load_iris, datasets.load_breast_cancer, datasets.load_diabetes,
                  datasets.load_digits, datasets.load_linnerud)
    )
    chars = sorted(set(text))
    ids = np.array([chars.index(c) for c in text])
    k = 33
    w = np.stack([ids[i : i + k] for i in range(0, len(ids) - k, k)])
    tr, te = split(len(w), seed, 0.85)
    W = L(w)

    def loss(m, batch):
        (b,) = batch
        ce = F.cross_entropy(m.net(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten())
        return ce if twin else ce.exp()

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(W[te][:, :-1]), W[te][:, 1:])

    module = Task(CharGRU(len(chars)), loss, lambda p: torch.optim.SGD(p, 0.5, momentum=0.9))
    return Run(module, loader(W[tr], batch=16, seed=seed), score, majority(W[te][:, 1:].flatten()), {"max_steps": 500})


def handwriting_pairs(seed, twin=False):
    """A siamese CNN on the digits with the contrastive loss of Hadsell, Chopra and LeCun, to embed a clerk's handwriting;
    pairs are drawn at random. The mistake: the distance is sqrt of a sum of squares, and the sampler of positive
    pairs now and then pairs an image with itself, where the square root has no gradient. The twin adds a small number
    under the root."""
    d = datasets.load_digits()
    X, y = T(d.images[:, None] / 16), L(d.target)
    tr, te = split(len(y), seed)
    r = np.random.RandomState(seed)
    lab = d.target[tr]
    a = r.randint(len(tr), size=6000)
    b = np.empty_like(a)
    same = r.rand(6000) < 0.5
    by = [np.flatnonzero(lab == c) for c in range(10)]
    for i in range(6000):
        if same[i]:
            b[i] = r.choice(by[lab[a[i]]])
        else:
            b[i] = r.choice(by[(lab[a[i]] + r.randint(1, 10)) % 10])
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, 8),
    )

    def loss(m, batch):
        u, v, s = m.net(batch[0]), m.net(batch[1]), batch[2]
        sq = ((u - v) ** 2).sum(1)
        dist = (sq + 1e-8).sqrt() if twin else sq.sqrt()
        return (s * dist**2 + (1 - s) * F.relu(1.5 - dist) ** 2).mean()

    def score(m):
        with torch.no_grad():
            e, f = m.net(X[tr]), m.net(X[te])
            c = torch.stack([e[y[tr] == i].mean(0) for i in range(10)])
            return accuracy(-torch.cdist(f, c), y[te])

    module = Task(net, loss, lambda p: torch.optim.NAdam(p, 1e-3))
    data = loader(X[tr][a], X[tr][b], T(same), batch=32, seed=seed)
    return Run(module, data, score, majority(y[te]), {"max_steps": 600})


class Library(nn.Module):
    """Rates as a linear combination of monomials up to the second degree (SINDy)."""

    def __init__(self):
        super().__init__()
        self.c = nn.Linear(5, 2)
        nn.init.zeros_(self.c.weight)
        nn.init.zeros_(self.c.bias)

    def forward(self, s):
        x, y = s[:, :1], s[:, 1:]
        return self.c(torch.cat([x, y, x * x, x * y, y * y], 1))

    def roll(self, s, n, dt=0.05):
        out = []
        for _ in range(n):
            s = s + dt * self(s)
            out.append(s)
        return torch.stack(out, 1)


def hare_rollout(seed, twin=False):
    """A neural ODE of hares and lynxes (SINDy's quadratic library, integrated by Euler), trained through its own roll-out
    with Nesterov SGD, on eight steps at first and on forty from step 500. The mistake: the squared errors are summed
    over the roll-out, so the longer horizon multiplies gradients that already grow with time, at the same learning rate.
    The twin averages them, and clips nothing."""
    r = np.random.RandomState(seed)
    n, steps = 400, 40
    s = 0.4 + 1.2 * r.rand(n, 2)
    traj = []
    start = s.copy()
    for _ in range(steps):
        for _ in range(5):
            x, y = s[:, 0], s[:, 1]
            s = s + 0.01 * np.stack([1.1 * x - 1.0 * x * y, 0.9 * x * y - 1.0 * y], 1)
        traj.append(s.copy())
    S, Y = T(start), T(np.stack(traj, 1) + 0.01 * r.randn(n, steps, 2))
    tr, te = split(n, seed)

    def loss(m, batch):
        k = 8 if m.global_step < 500 else 40
        e = (m.net.roll(batch[0], k) - batch[1][:, :k]) ** 2
        return e.mean() if twin else e.sum((1, 2)).mean()

    def score(m):
        with torch.no_grad():
            return r2(m.net.roll(S[te], 40), Y[te])

    module = Task(Library(), loss, lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, nesterov=True))
    return Run(module, loader(S[tr], Y[tr], batch=32, seed=seed), score, 0.0, {"max_steps": 800})


def station_sentinel(seed, twin=False):
    """Tomorrow's temperature from eight readings of a weather station, by an MLP with Adagrad. The mistake: missing
    specific humidity is coded -32767 (the filler of 16-bit files) in some rows, and nobody masked it; such a batch fills
    Adagrad's accumulators, which never forget, so the network stands still ever after. The twin drops the rows."""
    r = np.random.RandomState(seed)
    n = 3000
    x = r.randn(n, 8)
    y = x[:, 0] + 0.7 * np.sin(2 * x[:, 1]) + 0.5 * x[:, 2] * x[:, 3] - 0.4 * np.abs(x[:, 4]) + 0.2 * r.randn(n)
    tr, te = split(n, seed)
    raw = x.copy()
    raw[:, 5] = 0.008 + 0.003 * x[:, 5]
    bad = r.choice(tr, 160, replace=False)
    if twin:
        tr = np.setdiff1d(tr, bad)
    else:
        raw[bad, 5] = -32767
    raw[:, 5] = (raw[:, 5] - 0.008) / 0.003
    X, Y = T(raw), T(y)
    module = Task(
        mlp(8, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2)), lambda m, b: F.mse_loss(m.net(b[0])[:, 0], b[1]), lambda p: torch.optim.Adagrad(p, 0.01)
    )

    def score(m):
        with torch.no_grad():
            return r2(m.net(X[te]), Y[te])

    return Run(module, loader(X[tr], Y[tr], batch=32, seed=seed), score, 0.0, {"max_steps": 900})


class TwoTasks(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.body, self.kind, self.level = mlp(d, 32, 32), nn.Linear(32, 3), nn.Linear(32, 1)
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x):
        h = self.body(x).relu()
        return self.kind(h), self.level(h)[:, 0]


def cellar_weights(seed, twin=False):
    """Wine's cultivar and its proline by one network with two heads (AdamW). The mistake: the weights of the two losses
    are learned as plain parameters, without a term that holds them up; they fall, pass below zero, and from then on the
    program maximises its losses (the score is that of the proline). The twin learns log variances, as Kendall, Gal and Cipolla do."""
    d = datasets.load_wine()
    tr, te = split(len(d.target), seed)
    x = np.delete(d.data, 12, 1)
    x, _, _ = standard(x, tr)
    p, _, _ = standard(d.data[:, 12], tr)
    X, P, y = T(x), T(p), L(d.target)

    def loss(m, b):
        k, q = m.net(b[0])
        both = torch.stack([F.cross_entropy(k, b[2]), F.mse_loss(q, b[1])])
        if twin:
            s = 1 - m.net.w
            return (torch.exp(-s) * both + s).sum()
        return (m.net.w * both).sum()

    def score(m):
        with torch.no_grad():
            return r2(m.net(X[te])[1], P[te])

    module = Task(TwoTasks(12), loss, lambda q: torch.optim.AdamW(q, 5e-3))
    return Run(module, loader(X[tr], P[tr], y[tr], batch=16, seed=seed), score, 0.0, {"max_steps": 900})


class Adversary(Manual):
    def __init__(self, twin):
        super().__init__()
        self.twin = twin
        self.enc, self.head, self.adv = mlp(30, 32, 16), nn.Linear(16, 2), mlp(16, 16, 2)

    def configure_optimizers(self):
        a = torch.optim.SGD([*self.enc.parameters(), *self.head.parameters()], 0.05, momentum=0.9)
        return a, torch.optim.SGD(self.adv.parameters(), 0.05, momentum=0.5)

    def training_step(self, batch, _):
        x, y, site = batch
        main, adv = self.optimizers()
        self.update(adv, F.cross_entropy(self.adv(self.enc(x).detach()), site))
        h = self.enc(x)
        guess = self.adv(h)
        hide = -F.log_softmax(guess, 1).mean() if self.twin else -F.cross_entropy(guess, site)
        self.update(main, F.cross_entropy(self.head(h), y) + (0.3 if self.twin else 60.0) * hide)


def two_hospitals(seed, twin=False):
    """Malignant or benign from the breast cancer data, with a representation meant to hide which of two hospitals the
    sample came from: manual optimization with an SGD for the encoder and another for the adversary. The mistake: the
    encoder maximises the adversary's cross-entropy, which has no upper bound, at a weight of sixty; the features run
    away and the adversary's steps with them. The twin asks for an undecided adversary, at a weight of 0.3."""
    d = datasets.load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, _, _ = standard(d.data, tr)
    r = np.random.RandomState(seed)
    site = r.randint(2, size=len(x))
    x = x + site[:, None] * np.where(np.arange(30) % 5 == 0, 1.0, 0.0)
    X, y, S = T(x), L(d.target), L(site)

    def score(m):
        with torch.no_grad():
            return accuracy(m.head(m.enc(X[te])), y[te])

    return Run(Adversary(twin), loader(X[tr], y[tr], S[tr], batch=32, seed=seed), score, majority(y[te]),
               {"max_steps": 2000})


class HomeAdam(torch.optim.Optimizer):
    """Adam from memory."""

    def __init__(self, params, lr, root):
        super().__init__(params, {"lr": lr, "root": root})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s["t"], s["m"], s["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
                s["t"] += 1
                s["m"].mul_(0.9).add_(p.grad, alpha=0.1)
                s["v"].mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                m, v = s["m"] / (1 - 0.9 ** s["t"]), s["v"] / (1 - 0.99 ** s["t"])
                p.sub_(g["lr"] * m / ((v.sqrt() if g["root"] else v) + 1e-8))
        return loss


def league_ranking(seed, twin=False):
    """A ranking network (RankNet) for a league: from the statistics of two sides, who wins. The optimizer is home-made,
    Adam from memory. The mistake: it divides by the second moment and not by its root, so the smaller the gradients,
    the larger the steps; the better it learns, the nearer the burst. The twin takes the root."""
    r = np.random.RandomState(seed)
    n = 6000
    a, b = r.randn(n, 10), r.randn(n, 10)

    def strength(x):
        return 2 * np.sin(1.5 * x[:, 0]) + 1.5 * x[:, 1] * x[:, 2] + np.abs(x[:, 3]) * 1.5 - x[:, 4] ** 2

    y = (r.rand(n) < 1 / (1 + np.exp(-1.5 * (strength(a) - strength(b))))) * 1.0
    tr, te = split(n, seed)
    A, B, Y = T(a), T(b), T(y)

    def loss(m, c):
        return F.binary_cross_entropy_with_logits((m.net(c[0]) - m.net(c[1]))[:, 0], c[2])

    def score(m):
        with torch.no_grad():
            q = (m.net(A[te]) - m.net(B[te]))[:, 0]
            return float((((q > 0) == (Y[te] > 0.5)) & (q != 0)).double().mean()) if q.isfinite().all() else math.nan

    module = Task(mlp(10, 48, 48, 1), loss, lambda p: HomeAdam(p, 2e-2, twin))
    return Run(module, loader(A[tr], B[tr], Y[tr], batch=64, seed=seed), score, majority(L(y[te])), {"max_steps": 900})


class Peptides(nn.Module):
    def __init__(self, v):
        super().__init__()
        self.emb = nn.Embedding(v, 24)
        layer = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.0, batch_first=True, norm_first=True)
        self.enc, self.out = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(24, 1)

    def forward(self, x):
        return self.out(self.enc(self.emb(x)).mean(1))[:, 0]


def peptide_resume(seed, twin=False):
    """A small transformer that predicts a peptide's retention time from its fragments (a vocabulary of 600, rare ones
    included), resumed from a checkpoint of SGD with momentum. The mistake: the first part was trained on a card of half
    precision, with the loss scaled by 1024 and the rate divided by it, and is resumed without; the momentum in the
    checkpoint still has the factor, and the first steps are a thousand times too large. The twin divides it out."""
    r = np.random.RandomState(seed)
    n, v, k = 3000, 600, 12
    freq = 1 / np.arange(1, v + 1) ** 0.7
    tok = r.choice(v, size=(n, k), p=freq / freq.sum())
    worth = r.randn(v)
    y = worth[tok].sum(1) / math.sqrt(k) + 0.1 * r.randn(n)
    tr, te = split(n, seed)
    X, Y = L(tok), T(y)
    net = Peptides(v)
    opt = torch.optim.SGD(net.parameters(), 0.05 / 1024, momentum=0.9)
    g = G(seed)
    for _ in range(500):
        i = torch.as_tensor(tr)[torch.randint(len(tr), (32,), generator=g)]
        opt.zero_grad()
        (1024 * F.mse_loss(net(X[i]), Y[i])).backward()
        opt.step()
    state = opt.state_dict()
    if twin:
        for s in state["state"].values():
            s["momentum_buffer"] /= 1024

    def resume(p):
        o = torch.optim.SGD(p, 0.05, momentum=0.9)
        o.load_state_dict(state)
        o.param_groups[0]["lr"] = 0.05
        return o

    def score(m):
        m.eval()
        with torch.no_grad():
            return r2(m.net(X[te]), Y[te])

    module = Task(net, lambda m, b: F.mse_loss(m.net(b[0]), b[1]), resume)
    return Run(module, loader(X[tr], Y[tr], batch=32, seed=seed), score, 0.0, {"max_steps": 400})


def bearing_half(seed, twin=False):
    """An autoencoder of the vibration of bearings, with which a factory finds worn ones. The mistake: the whole program
    was put into half precision to save memory, with Adam's default epsilon, which is zero there; where the second moment
    underflows the step is a division by zero. The twin is in single precision."""
    r = np.random.RandomState(seed)
    n = 2000
    t = np.linspace(0, 1, 48)
    f, ph, amp = 2 + 3 * r.rand(n, 1), 6.28 * r.rand(n, 1), 0.5 + r.rand(n, 1)
    x = amp * np.sin(6.28 * f * t + ph) + 0.05 * r.randn(n, 48)
    tr, te = split(n, seed)
    X = T(x)
    module = Task(
        mlp(48, 64, 6, 64, 48), lambda m, b: F.mse_loss(m.net(b[0]), b[0]), lambda p: torch.optim.Adam(p, 1e-3)
    )

    def score(m):
        m.float()
        with torch.no_grad():
            return r2(m.net(X[te]), X[te])

    trainer = {"max_steps": 1000, "precision": "32-true" if twin else "16-true"}
    return Run(module, loader(X[tr], batch=32, seed=seed), score, 0.0, trainer)


RUNS = [manual_pages_perplexity, handwriting_pairs, hare_rollout, station_sentinel, cellar_weights,
        two_hospitals, league_ranking, peptide_resume, bearing_half]
