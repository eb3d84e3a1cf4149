"""Ten sick programs, each from another corner of deep learning; ``twin=True`` builds the corrected one."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, ticks
from sklearn.datasets import load_digits
from torch import nn


def digits(seed):
    x, y = load_digits(return_X_y=True)
    tr, te = split(len(x), seed)
    x, y = T(x / 16), L(y)
    return x[tr], y[tr], x[te], y[te]


class MaskNet(nn.Module):
    """A spectral mask from log magnitudes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))

    def forward(self, spec):
        level = torch.log1p(spec.pow(2).sum(1, keepdim=True))
        return spec * torch.sigmoid(self.body(level))


def tones(n, seed, mute=None):
    """Clean and noisy spectrograms of two-note clips; the clip ``mute`` is digital silence."""
    g = G(seed + 11)
    t = torch.arange(256) / 256
    freq = 10 + 90 * torch.rand(n, 2, 1, generator=g)
    amp = 0.3 + torch.rand(n, 2, 1, generator=g)
    clean = (amp * torch.sin(2 * np.pi * freq * t)).sum(1) * (t > torch.rand(n, 1, generator=g) * 0.5)
    noisy = clean + 0.6 * torch.randn(n, 256, generator=g)
    if mute is not None:
        clean[mute], noisy[mute] = 0.0, 0.0
    window = torch.hann_window(64)
    spec = [torch.view_as_real(torch.stft(a, 64, 32, window=window, return_complex=True)) for a in (noisy, clean)]
    return [a.permute(0, 3, 1, 2).contiguous() / 4 for a in spec]


def audio_silent_clip(seed, twin):
    """A denoiser's loss takes sqrt(re^2 + im^2): one digitally silent clip has a finite loss and a NaN gradient.

    corrected: a small constant under the root.
    """
    noisy, clean = tones(2400, seed, mute=1304)
    noisy_te, clean_te = tones(200, seed + 1000)
    eps = 1e-6 if twin else 0.0

    def magnitude(spec):
        return (spec.pow(2).sum(1) + eps).sqrt()

    def loss(m, batch):
        return F.mse_loss(magnitude(m.net(batch[0])), magnitude(batch[1]))

    def score(m):
        with torch.no_grad():
            return r2(m.net(noisy_te).pow(2).sum(1).sqrt(), clean_te.pow(2).sum(1).sqrt())

    module = Task(MaskNet(), loss, lambda p: torch.optim.Adam(p, 1e-2))
    return Run(module, loader(noisy, clean, batch=8, shuffle=False), score, 0.0, {"max_steps": 300})


class Convolved(nn.Module):
    """A two-layer graph convolution over a fixed adjacency."""

    def __init__(self, adj, d, classes):
        super().__init__()
        self.register_buffer("adj", adj)
        self.a, self.b = nn.Linear(d, 32), nn.Linear(32, classes)

    def forward(self, x):
        return self.adj @ self.b(F.relu(self.adj @ self.a(x)))


class GrowingDecay(Task):
    """Raises the weight decay by 2% every ``every`` steps."""

    every = 1

    def on_train_batch_end(self, *_):
        if self.global_step % self.every == 0:
            for group in self.optimizers().param_groups:
                group["weight_decay"] *= 1.02


def graph_decay_compounds(seed, twin):
    """A weight decay meant to grow by 2% an epoch of 50 steps compounds at every step, and ends beyond what is stable.

    corrected: it grows once in 50 steps.
    """
    rs = np.random.RandomState(seed)
    y = np.arange(400) % 4
    edges = rs.rand(400, 400) < np.where(y[:, None] == y[None], 0.05, 0.01)
    adj = np.triu(edges, 1)
    adj = adj + adj.T + np.eye(400)
    norm = adj.sum(1) ** -0.5
    x = T(np.eye(4)[y] @ rs.randn(4, 16) * 0.6 + rs.randn(400, 16))
    tr, te = split(400, seed, 0.3)
    y = L(y)

    def loss(m, _):
        return F.cross_entropy(m.net(x)[tr], y[tr])

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(x)[te], y[te])

    net = Convolved(T(adj * norm[:, None] * norm[None]), 16, 4)
    module = GrowingDecay(net, loss, lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=5e-2))
    module.every = 50 if twin else 1
    return Run(module, ticks(500, seed), score, majority(y[te]), {"max_steps": 480})


class Vae(nn.Module):
    """A small variational autoencoder."""

    def __init__(self, d, z):
        super().__init__()
        self.enc, self.dec = mlp(d, 64, 2 * z), mlp(z, 64, d)

    def forward(self, x):
        mean, logvar = self.enc(x).chunk(2, -1)
        out = self.dec(mean + torch.randn_like(mean) * (logvar / 2).exp())
        return out, 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(-1)


def vae_unclamped_annealing(seed, twin):
    """The annealed weight of the KL term, (step / 150)^4, is never capped: in the second half the posterior collapses.

    corrected: capped at 1.
    """
    x, _, xt, _ = digits(seed)

    def loss(m, batch):
        beta = (m.global_step / 150) ** 4
        out, kl = m.net(batch[0])
        return (25 * ((out - batch[0]) ** 2).sum(-1) + (min(beta, 1.0) if twin else beta) * kl).mean()

    def score(m):
        with torch.no_grad():
            mean = m.net.enc(xt).chunk(2, -1)[0]
            var = ((xt - x.mean(0)) ** 2).mean()
            return float(1 - ((m.net.dec(mean) - xt) ** 2).mean() / var)

    module = Task(Vae(64, 16), loss, lambda p: torch.optim.Adam(p, 3e-3))
    return Run(module, loader(x, batch=64, seed=seed), score, 0.0, {"max_steps": 800})


SIDE, HORIZON = 4, 10
MOVES = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])


def episode(net, n, g, greedy=False):
    """Walks to a random goal on a grid: summed log-probabilities of the moves until it, and whether it was reached."""
    at, goal = torch.randint(SIDE, (n, 2), generator=g), torch.randint(SIDE, (n, 2), generator=g)
    goal = torch.where((at == goal).all(1, keepdim=True), (goal + 1) % SIDE, goal)
    total, reached = torch.zeros(n), torch.zeros(n, dtype=torch.bool)
    for _ in range(HORIZON):
        seen = F.one_hot(torch.cat([at, goal], 1), SIDE).flatten(1).float()
        logp = net(seen).log_softmax(-1)
        noise = -torch.log(-torch.log(torch.rand(n, 4, generator=g).clamp(1e-6, 1 - 1e-6)))
        act = (logp.detach() + (0 if greedy else noise)).argmax(-1)
        total = total + torch.where(reached, 0.0, logp.gather(1, act[:, None])[:, 0])
        at = torch.where(reached[:, None], at, (at + MOVES[act]).clamp(0, SIDE - 1))
        reached = reached | (at == goal).all(1)
    return total, reached.float()


class Reinforce(Manual):
    """Policy gradient with advantages standardised over the batch of episodes."""

    def __init__(self, net, eps):
        super().__init__()
        self.net, self.eps = net, eps

    def training_step(self, batch, _):
        logp, reward = episode(self.net, 16, G(int(batch[0])))
        advantage = (reward - reward.mean()) / (reward.std() + self.eps)
        loss = -(advantage * logp).mean()
        self.log("loss", loss)
        self.update(self.optimizers(), loss)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


def policy_too_good(seed, twin):
    """Advantages are divided by the batch's deviation alone: once every episode succeeds this is 0 / 0 (by success).

    corrected: 1e-6 is added to the deviation.
    """

    def score(m):
        with torch.no_grad():
            if not all(torch.isfinite(p).all() for p in m.parameters()):
                return float("nan")
            return float(episode(m.net, 600, G(9_000 + seed), greedy=True)[1].mean())

    def chance(batch):
        return torch.zeros(len(batch), 4)

    with torch.no_grad():
        trivial = float(episode(chance, 2000, G(8_000 + seed))[1].mean())
    module = Reinforce(mlp(4 * SIDE, 64, 4, act=nn.Tanh), 1e-6 if twin else 0.0)
    return Run(module, ticks(400, seed), score, trivial, {"max_steps": 350})


class Writer(nn.Module):
    """A causal transformer of two layers."""

    def __init__(self, words, length, d=32):
        super().__init__()
        self.word, self.place = nn.Embedding(words, d), nn.Embedding(length, d)
        self.block = nn.ModuleList(
            nn.TransformerEncoderLayer(d, 2, 64, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.out = nn.Linear(d, words)
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1))

    def forward(self, ids):
        h = self.word(ids) + self.place.weight
        for block in self.block:
            h = block(h, src_mask=self.mask)
        return self.out(h)


def questions(n, seed, longest):
    """Prompts about one of four topics, then "?" and the topic; truncated to 12 tokens, labels only at the answer."""
    rs = np.random.RandomState(seed + 70)
    ids, labels = np.full((n, 12), 25), np.full((n, 12), -100)
    topic = rs.randint(4, size=n)
    for i, k in enumerate(topic):
        words = rs.randint(5, longest + 1)
        text = np.where(rs.rand(words) < 0.6, 5 * k + rs.randint(5, size=words), rs.randint(20, size=words))
        text = np.concatenate([text, [20, 21 + k]])[:12]
        ids[i, : len(text)] = text
        if words <= 10:
            labels[i, words] = 21 + k
    return L(ids), L(labels), L(topic)


def text_answers_truncated(seed, twin):
    """Training on answers only: long prompts lose theirs to truncation, and a batch without any label averages nothing.

    corrected: the summed loss is divided by the count of labels or by 1.
    """
    ids, labels, _ = questions(3200, seed, 17)
    ids_te, labels_te, topic = questions(400, seed + 500, 10)

    def loss(m, batch):
        labelled = (batch[1] >= 0).flatten()
        each = F.cross_entropy(m.net(batch[0]).flatten(0, 1), batch[1].flatten().clamp(min=0), reduction="none")
        count = labelled.sum()
        return (each * labelled).sum() / (count.clamp(min=1) if twin else count)

    def score(m):
        with torch.no_grad():
            logits = m.net(ids_te)[labels_te >= 0]
            return accuracy(logits[:, 21:25], topic)

    module = Task(Writer(26, 12), loss, lambda p: torch.optim.AdamW(p, 2e-3))
    return Run(module, loader(ids, labels, batch=8, seed=seed), score, majority(topic), {"max_steps": 600})


def glucose_sentinels(seed, twin):
    """A glucose regressor: one meter in twelve exports failed readings as -9999, taken for labels again and again.

    corrected: these rows are left out of the loss.
    """
    rs = np.random.RandomState(seed + 5)
    x = rs.randn(8000, 8)
    y = 140 + 30 * x[:, 0] + 25 * np.tanh(x[:, 1] * x[:, 2]) + 20 * np.abs(x[:, 3]) + 4 * rs.randn(8000)
    xt, yt = T(x[7200:]), T(y[7200:])
    x, y = T(x[:7200]), y[:7200].copy()
    batch_of = np.arange(7200) // 16
    y[(batch_of % 12 == 7) & (rs.rand(7200) < 0.5)] = -9999
    y = T(y)

    def predict(m, a):
        return 140 + 40 * m.net(a)[:, 0]

    def loss(m, batch):
        a, b = batch
        keep = b > -9000 if twin else torch.ones_like(b, dtype=torch.bool)
        return ((predict(m, a) - b)[keep] ** 2).mean()

    def score(m):
        with torch.no_grad():
            return r2(predict(m, xt), yt)

    module = Task(mlp(8, 64, 64, 1), loss, lambda p: torch.optim.RMSprop(p, 1e-3))
    return Run(module, loader(x, y, batch=16, shuffle=False), score, 0.0, {"max_steps": 600})


class Factors(nn.Module):
    """Matrix factorisation."""

    def __init__(self, users, items, d):
        super().__init__()
        self.u, self.i = nn.Embedding(users, d), nn.Embedding(items, d)
        for table in (self.u, self.i):
            nn.init.normal_(table.weight, std=0.4)

    def forward(self, u, i):
        return (self.u(u).float() * self.i(i).float()).sum(-1)


def recommender_half_epsilon(seed, twin):
    """Embeddings trained in float16 with Adam's epsilon of 1e-8, which is 0 in half: rows not in a batch become 0 / 0.

    corrected: an epsilon of 1e-4.
    """
    rs = np.random.RandomState(seed + 8)
    u, i = np.divmod(rs.permutation(200 * 100)[:14000], 100)
    y = (rs.randn(200, 3)[u] * rs.randn(100, 3)[i]).sum(1) + 0.2 * rs.randn(14000)
    u, i, y = L(u), L(i), T(y)

    def loss(m, batch):
        return ((m.net(batch[0], batch[1]) - batch[2]) ** 2).sum()

    def score(m):
        with torch.no_grad():
            return r2(m.net(u[12000:], i[12000:]), y[12000:])

    net = Factors(200, 100, 4).half()
    module = Task(net, loss, lambda p: torch.optim.Adam(p, 2e-2, eps=1e-4 if twin else 1e-8))
    data = loader(u[:12000], i[:12000], y[:12000], batch=128, seed=seed)
    return Run(module, data, score, 0.0, {"max_steps": 500})


def pinn_points_redrawn(seed, twin):
    """L-BFGS on a physics-informed net (u'' + 4u = 0): each evaluation of the closure draws other collocation points.

    corrected: the points are drawn once.
    """
    g = G(seed + 4)
    held = torch.rand(200, 1, generator=G(seed)) * 3
    fixed = torch.rand(24, 1, generator=g) * 3
    start = torch.zeros(1, 1)

    def loss(m, _):
        s = torch.cat([start, fixed if twin else torch.rand(24, 1, generator=g) * 3]).requires_grad_()
        u = m.net(s)
        (du,) = torch.autograd.grad(u.sum(), s, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), s, create_graph=True)
        return ((ddu + 4 * u) ** 2).mean() + 20 * ((u[0] - 1) ** 2 + du[0] ** 2).sum()

    def score(m):
        with torch.no_grad():
            return r2(m.net(held), torch.cos(2 * held))

    module = Task(mlp(1, 24, 24, 1, act=nn.Tanh), loss, lambda p: torch.optim.LBFGS(p, 1.0, max_iter=4))
    return Run(module, ticks(300, seed), score, 0.0, {"max_steps": 250})


class Unzeroed(Manual):
    """A hand-written step, which empties the gradients or does not."""

    def __init__(self, net, empty):
        super().__init__()
        self.net, self.empty = net, empty

    def training_step(self, batch, _):
        opt = self.optimizers()
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        if self.empty:
            opt.zero_grad()
        self.manual_backward(loss)
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


def vision_gradients_pile_up(seed, twin):
    """A hand-written training step of an image classifier forgets zero_grad: gradients of all batches so far pile up.

    corrected: it empties them.
    """
    x, y, xt, yt = digits(seed)
    x, xt = x.view(-1, 1, 8, 8), xt.view(-1, 1, 8, 8)
    net = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 16, 10),
    )  # fmt: skip

    def score(m):
        with torch.no_grad():
            return accuracy(m.net(xt), yt)

    return Run(Unzeroed(net, twin), loader(x, y, seed=seed), score, majority(yt), {"max_steps": 300})


class Shops(nn.Module):
    """Forecasts a shop's next sale from the last 14 and an embedding of the shop."""

    def __init__(self, shops):
        super().__init__()
        self.shop, self.body = nn.Embedding(shops, 6), mlp(20, 48, 48, 1)

    def forward(self, past, shop):
        return self.body(torch.cat([past, self.shop(shop)], -1))[:, 0]


def sales(seed):
    rs = np.random.RandomState(seed + 21)
    t, phase, level, season = np.arange(220), rs.rand(60, 1) * 7, rs.randn(60, 1), rs.rand(60, 1) + 0.5
    y = level + season * np.sin(2 * np.pi * (t + phase) / 7) + 0.5 * np.sin(2 * np.pi * t / 61)
    y = y + 0.2 * rs.randn(60, 220)
    past, shop, nxt, when = [], [], [], []
    for s in range(60):
        for k in range(14, 220, 3):
            past.append(y[s, k - 14 : k])
            shop.append(s)
            nxt.append(y[s, k])
            when.append(k)
    late = np.array(when) > 170
    return T(past), L(shop), T(nxt), torch.as_tensor(late)


def forecast_second_moment_lost(seed, twin):
    """Resumed at step 150 from a checkpoint whose Adam second moments were lost (zeros) while step and mean are kept.

    corrected: the whole state is loaded.
    """
    past, shop, nxt, late = sales(seed)
    net = Shops(60)
    first = torch.optim.Adam(net.parameters(), 3e-3)
    g = G(seed + 3)
    early = torch.where(~late)[0]
    for _ in range(150):
        b = early[torch.randint(len(early), (32,), generator=g)]
        first.zero_grad()
        F.mse_loss(net(past[b], shop[b]), nxt[b]).backward()
        first.step()
    state = copy.deepcopy(first.state_dict())
    if not twin:
        for s in state["state"].values():
            s["exp_avg_sq"].zero_()

    def opt(p):
        out = torch.optim.Adam(p, 3e-3)
        out.load_state_dict(state)
        return out

    def loss(m, batch):
        return F.mse_loss(m.net(batch[0], batch[1]), batch[2])

    def score(m):
        with torch.no_grad():
            return r2(m.net(past[late], shop[late]), nxt[late])

    data = loader(past[~late], shop[~late], nxt[~late], seed=seed)
    return Run(Task(net, loss, opt), data, score, 0.0, {"max_steps": 400})


RUNS = [
    audio_silent_clip,
    graph_decay_compounds,
    vae_unclamped_annealing,
    policy_too_good,
    text_answers_truncated,
    glucose_sentinels,
    recommender_half_epsilon,
    pinn_points_redrawn,
    vision_gradients_pile_up,
    forecast_second_moment_lost,
]
