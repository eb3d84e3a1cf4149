"""Ten training programs with one mistake each; ``twin=True`` is the same program without it."""

import math
import os
import re
import tempfile

import numpy as np
import torch
from common import G, L, Manual, Run, T, Task, accuracy, loader, majority, mlp, r2, split, standard, ticks
from lightning.pytorch import Trainer
from sklearn import datasets
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR


@torch.no_grad()
def out(m, *x):
    m.eval()
    return m.net(*x)


def texts():
    """The descriptions that come with scikit-learn's data sets: real English prose."""
    names = ("digits", "breast_cancer", "wine", "iris", "diabetes", "linnerud")
    return [getattr(datasets, "load_" + n)().DESCR for n in names]


def digits(seed, image=True):
    x, y = datasets.load_digits(return_X_y=True)
    x = T(x / 16.0)
    tr, te = split(len(x), seed)
    return (x.view(-1, 1, 8, 8) if image else x), L(y), tr, te


# --- recommendation -------------------------------------------------------------------------------------------------
class Factors(nn.Module):
    def __init__(self, users, items, d, std, mean):
        super().__init__()
        self.u, self.i = nn.Embedding(users, d), nn.Embedding(items, d)
        self.bu, self.bi = nn.Embedding(users, 1), nn.Embedding(items, 1)
        self.mu = mean
        for e in (self.u, self.i):
            if std is not None:
                nn.init.normal_(e.weight, std=std)
        for b in (self.bu, self.bi):
            nn.init.zeros_(b.weight)

    def forward(self, u, i):
        dot = (self.u(u) * self.i(i)).sum(-1)
        return self.mu + self.bu(u).squeeze(-1) + self.bi(i).squeeze(-1) + dot


def ratings_default_embedding(seed, twin=False):
    """Matrix factorisation of film ratings (generated: 120 users, 80 items, 1 to 5 stars) by SGD with the large rate
    which per-row gradients of a mean loss ask for. The mistake: the factors are left at nn.Embedding's default
    N(0, 1) where the recipe has N(0, 0.1), so that products over 64 factors start at a deviation of 8 stars and the
    factors feed each other's gradients until they overflow."""
    rs = np.random.RandomState(seed)
    nu, ni = 120, 80
    p, q = rs.randn(nu, 3), rs.randn(ni, 3)
    full = 3.2 + 0.5 * rs.randn(nu, 1) + 0.5 * rs.randn(1, ni) + 0.55 * p @ q.T + 0.2 * rs.randn(nu, ni)
    full = full.clip(1, 5)
    u, i = np.nonzero(rs.rand(nu, ni) < 0.7)
    y = T(full[u, i])
    u, i = L(u), L(i)
    tr, te = split(len(u), seed)
    net = Factors(nu, ni, 64, 0.1 if twin else None, float(y[tr].mean()))
    m = Task(
        net,
        lambda m, b: F.mse_loss(m.net(b[0], b[1]), b[2]),
        lambda p: torch.optim.SGD(p, lr=3.0),
    )
    return Run(
        m, loader(u[tr], i[tr], y[tr], batch=128, seed=seed), lambda m: r2(out(m, u[te], i[te]), y[te]), 0.0,
        {"max_steps": 800},
    )


# --- text -----------------------------------------------------------------------------------------------------------
def characters(seed, length):
    text = "\n".join(texts())
    vocab = {c: k for k, c in enumerate(sorted(set(text)))}
    ids = L([vocab[c] for c in text])
    n = len(ids) // (length + 1)
    ids = ids[: n * (length + 1)].view(n, length + 1)
    tr, te = split(n, seed)
    counts = torch.bincount(ids[tr].reshape(-1), minlength=len(vocab)).double() + 1
    unigram = float((counts / counts.sum()).log()[ids[te][:, 1:]].mean().exp())
    return ids[tr], ids[te], len(vocab), unigram


class CharNet(nn.Module):
    def __init__(self, vocab, d=32, h=96, cell=nn.LSTM):
        super().__init__()
        self.emb, self.rnn, self.head = nn.Embedding(vocab, d), cell(d, h, batch_first=True), nn.Linear(h, vocab)

    def forward(self, x):
        return self.head(self.rnn(self.emb(x))[0])


def next_char(m, b):
    return F.cross_entropy(m.net(b[0][:, :-1]).flatten(0, 1), b[0][:, 1:].flatten())


def charlm_without_clip(seed, twin=False):
    """A character language model on English prose (the texts about scikit-learn's data sets): a plain tanh RNN trained
    by SGD in the style of PyTorch's word_language_model, whose very high rate goes together with clipping the
    gradient's norm at 0.25. The mistake: the clipping was lost when the loop was moved to Lightning (no
    gradient_clip_val)."""
    tr, te, vocab, unigram = characters(seed, 40)
    m = Task(CharNet(vocab, cell=nn.RNN), next_char, lambda p: torch.optim.SGD(p, lr=3.0))

    def score(m):
        x = out(m, te[:, :-1])
        return math.exp(-F.cross_entropy(x.flatten(0, 1), te[:, 1:].flatten()))

    trainer = {"max_steps": 600, **({"gradient_clip_val": 0.25} if twin else {})}
    return Run(m, loader(tr, batch=16, seed=seed), score, unigram, trainer)


class AttentionPool(nn.Module):
    def __init__(self, vocab, d, classes, safe):
        super().__init__()
        self.emb, self.key, self.head = nn.Embedding(vocab, d, padding_idx=0), nn.Linear(d, 1), nn.Linear(d, classes)
        self.safe = safe

    def forward(self, x):
        e, mask = self.emb(x), x == 0
        if self.safe:
            mask = mask & ~mask.all(1, keepdim=True)
        a = self.key(torch.tanh(e)).squeeze(-1).masked_fill(mask, float("-inf")).softmax(-1)
        return self.head((a.unsqueeze(-1) * e).sum(1))


def passages_empty_mask(seed, twin=False):
    """Which of six texts is a passage of 14 words from? Word embeddings, attention pooling and Adagrad. Stop words,
    numbers and rare words are removed, so that a few passages are left without any
    word. The mistake: the padding mask fills the scores with -inf also where all of a row is padding, so the softmax
    of such a passage is NaN."""
    docs = [[w for w in re.findall(r"[a-z]+|\d+|[-=|:]+", t.lower())] for t in texts()]
    stop = set("the a an of and to in is are was by for on with from as this that it be at or which".split())
    count = {}
    for d in docs:
        for w in d:
            count[w] = count.get(w, 0) + 1
    vocab = {}
    for w, c in count.items():
        if c >= 3 and w.isalpha() and w not in stop and len(w) > 2:
            vocab[w] = len(vocab) + 1
    xs, ys = [], []
    for k, d in enumerate(docs):
        for s in range(0, len(d) - 14, 3):
            ids = [vocab[w] for w in d[s : s + 14] if w in vocab]
            xs.append(ids + [0] * (14 - len(ids)))
            ys.append(k)
    x, y = L(xs), L(ys)
    tr, te = split(len(x), seed)
    te = te[(x[te] != 0).any(1).numpy()]
    empty = (x[tr] == 0).all(1)
    keep = np.flatnonzero(~empty.numpy()).tolist() + np.flatnonzero(empty.numpy())[:3].tolist()
    tr = tr[np.sort(np.array(keep))]
    m = Task(
        AttentionPool(len(vocab) + 1, 48, 6, twin),
        lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    )
    return Run(
        m, loader(x[tr], y[tr], batch=32, seed=seed), lambda m: accuracy(out(m, x[te]), y[te]), majority(y[te]),
        {"max_steps": 600},
    )


# --- vision ---------------------------------------------------------------------------------------------------------
def convnet(c=16):
    return nn.Sequential(
        nn.Conv2d(1, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, 2 * c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(2 * c, 2 * c, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * c, 10),
    )  # fmt: skip


class Resumable(Task):
    """Sets the rate asked for at the start, since the checkpoint brings that of the earlier run back."""

    rate = None

    def on_train_start(self):
        if self.rate is not None:
            for g in self.optimizers().param_groups:
                g["lr"] = self.rate


def digits_resumed_rate(seed, twin=False):
    """A convolutional classifier of handwritten digits by SGD with momentum, resumed from a checkpoint on disk after
    60 steps. To continue with a rate of its own the program writes the rate into the restored optimizer. The
    mistake: the rate for resuming was typed as 2 in place of 0.02."""
    x, y, tr, te = digits(seed)

    def make():
        return Resumable(
            convnet(),
            lambda m, b: F.cross_entropy(m.net(b[0]), b[1]),
            lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
        )

    train = loader(x[tr], y[tr], batch=32, seed=seed)
    first = Trainer(
        accelerator="cpu", max_steps=60, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    first.fit(make(), train)
    fd, path = tempfile.mkstemp(suffix=".ckpt")
    os.close(fd)
    first.save_checkpoint(path)
    m = make()
    m.rate = 0.02 if twin else 2.0
    return Run(
        m, loader(x[tr], y[tr], batch=32, seed=seed + 7), lambda m: accuracy(out(m, x[te]), y[te]), majority(y[te]),
        {"max_steps": 500}, {"ckpt_path": path},
    )


# --- reinforcement learning -----------------------------------------------------------------------------------------
class CartPole:
    """Barto's cart and pole, many at once."""

    def __init__(self, n, rs):
        self.s, self.done = rs.uniform(-0.05, 0.05, (n, 4)), np.zeros(n, bool)

    def step(self, a):
        x, v, th, w = self.s.T
        force = np.where(a == 1, 10.0, -10.0)
        c, s = np.cos(th), np.sin(th)
        tmp = (force + 0.05 * w**2 * s) / 1.1
        acc = (9.8 * s - c * tmp) / (0.5 * (4 / 3 - 0.1 * c**2 / 1.1))
        xa = tmp - 0.05 * acc * c / 1.1
        new = np.stack([x + 0.02 * v, v + 0.02 * xa, th + 0.02 * w, w + 0.02 * acc], 1)
        self.s = np.where(self.done[:, None], self.s, new)
        self.done = self.done | (np.abs(self.s[:, 0]) > 2.4) | (np.abs(self.s[:, 2]) > 0.2095)


def balance(net, n, horizon, seed, greedy=False):
    """Lets the policy act; states, actions and which of them counted, (time, cart)."""
    rs = np.random.RandomState(seed)
    env, states, acts, alive = CartPole(n, rs), [], [], []
    scale = np.array([1.0, 1.0, 5.0, 1.0])
    with torch.no_grad():
        for _ in range(horizon):
            if env.done.all():
                break
            s = T(env.s * scale)
            z = net(s)
            gap = (z[:, 1] - z[:, 0]).double().numpy()
            p = 1 / (1 + np.exp(-np.clip(gap, -50, 50)))
            a = (p > 0.5) if greedy else (rs.rand(n) < p)
            states.append(s)
            acts.append(a.astype(int))
            alive.append(~env.done)
            env.step(a.astype(int))
    return torch.stack(states), L(np.array(acts)), T(np.array(alive))


def cartpole_raw_returns(seed, twin=False):
    """REINFORCE balances the pole on a cart: 12 episodes of at most 120 moves for each update, SGD with momentum. The
    mistake: the returns, which are up to 70, are used as they come; the line that centres them and divides them by
    their deviation is missing, so that the first updates saturate the policy and there is nothing left to learn
    from."""

    def loss(m, b):
        s, a, alive = balance(m.net, 12, 120, int(b[0][0]))
        ret, g = torch.zeros_like(alive), torch.zeros(alive.shape[1])
        for t in range(len(alive) - 1, -1, -1):
            g = alive[t] * (1 + 0.99 * g)
            ret[t] = g
        n = alive.sum()
        adv = ret
        if twin:
            mean = (ret * alive).sum() / n
            sd = (((ret - mean) ** 2 * alive).sum() / n).sqrt()
            adv = (ret - mean) / (sd + 1e-6)
        logp = F.log_softmax(m.net(s), -1).gather(-1, a.unsqueeze(-1)).squeeze(-1)
        return -(logp * adv * alive).sum() / n

    def score(m):
        return float(balance(m.net, 40, 200, 999 + seed)[2].sum(0).mean()) / 200

    m = Task(mlp(4, 32, 2, act=nn.Tanh), loss, lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9))
    return Run(m, ticks(400, seed), score, 0.11, {"max_steps": 250})


# --- generative models ----------------------------------------------------------------------------------------------
class VAE(nn.Module):
    def __init__(self, d=8):
        super().__init__()
        self.enc, self.dec = mlp(64, 128, 2 * d), mlp(d, 128, 64)

    def forward(self, x):
        mu, lv = self.enc(x).chunk(2, -1)
        z = mu + torch.randn_like(mu) * (0.5 * lv).exp() if self.training else mu
        return self.dec(z), mu, lv


def vae_own_cross_entropy(seed, twin=False):
    """A variational autoencoder of handwritten digits as ink on white paper (white is 1, binarised), by Adam. The
    mistake: the cross-entropy is written out with log(p) and log(1 - p) of a sigmoid, without logits; as soon as
    the decoder is sure of the white margin the sigmoid rounds to 1, and 0 * log(0) is NaN."""
    x, _, tr, te = digits(seed, image=False)
    x = (x < 0.5).float()

    def loss(m, b):
        z, mu, lv = m.net(b[0])
        if twin:
            rec = F.binary_cross_entropy_with_logits(z, b[0], reduction="none")
        else:
            p = torch.sigmoid(z)
            rec = -(b[0] * torch.log(p) + (1 - b[0]) * torch.log(1 - p))
        kl = 0.5 * (mu**2 + lv.exp() - 1 - lv).sum(-1)
        return (rec.sum(-1) + 0.5 * kl).mean()

    def score(m):
        return r2(torch.sigmoid(out(m, x[te])[0]), x[te])

    m = Task(VAE(), loss, lambda p: torch.optim.Adam(p, lr=4e-3))
    mean = x[tr].mean(0).expand(len(te), -1)
    return Run(m, loader(x[tr], batch=64, seed=seed), score, r2(mean, x[te]), {"max_steps": 1500})


class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip, self.net = flip, mlp(1, 48, 48, 2, act=nn.Tanh)
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x):
        a, b = x.unbind(-1)
        if self.flip:
            a, b = b, a
        s, t = self.net(a.unsqueeze(-1)).unbind(-1)
        s = 2 * torch.tanh(s / 2)
        b = b * s.exp() + t
        return torch.stack([b, a] if self.flip else [a, b], -1), s


class Flow(nn.Module):
    def __init__(self, n=8):
        super().__init__()
        self.parts = nn.ModuleList([Coupling(k % 2) for k in range(n)])

    def forward(self, x):
        ld = 0
        for p in self.parts:
            x, s = p(x)
            ld = ld + s
        return -0.5 * (x**2).sum(-1) - math.log(2 * math.pi) + ld


class ManualFlow(Manual):
    def __init__(self, scale, unscale):
        super().__init__()
        self.net, self.scale, self.unscale = Flow(), scale, unscale

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)

    def training_step(self, batch, _):
        opt = self.optimizers()
        loss = -self.net(batch[0]).mean()
        self.log("loss", loss)
        opt.zero_grad()
        self.manual_backward(loss * self.scale)
        if self.unscale:
            for p in self.parameters():
                p.grad /= self.scale
        if self.clip is not None:
            self.clip_gradients(opt, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
        opt.step()


def flow_scaled_loss(seed, twin=False):
    """A RealNVP flow learns the density of two moons, with manual optimization by SGD with momentum. The program had
    been written for half precision and multiplies the loss by 512 before the backward pass. The mistake: the
    division of the gradients by 512 before the step was forgotten."""
    x, _ = datasets.make_moons(2000, noise=0.07, random_state=seed)
    tr, te = split(len(x), seed)
    x, _, _ = standard(x, tr)
    x = T(x)

    def score(m):
        return math.exp(float(out(m, x[te]).double().mean()) / 2)

    c = np.cov(x[tr].numpy().T)
    trivial = math.exp(-(2 * math.log(2 * math.pi) + np.linalg.slogdet(c)[1] + 2) / 4)
    return Run(ManualFlow(512.0, twin), loader(x[tr], batch=64, seed=seed), score, trivial, {"max_steps": 1200})


# --- graphs ---------------------------------------------------------------------------------------------------------
class GCN(nn.Module):
    def __init__(self, a, d, h, classes, layers=3):
        super().__init__()
        self.register_buffer("a", a)
        dims = [d] + [h] * (layers - 1) + [classes]
        self.lin = nn.ModuleList([nn.Linear(dims[k], dims[k + 1]) for k in range(layers)])

    def forward(self, x):
        for k, lin in enumerate(self.lin):
            x = self.a @ lin(x)
            x = torch.relu(x) if k < len(self.lin) - 1 else x
        return x


def graph_without_degrees(seed, twin=False):
    """A graph convolutional network says which of four communities the nodes of a network belong to (generated, 400
    nodes, some of them hubs), full batch, SGD with momentum. The mistake: messages are summed over the neighbours
    with the raw adjacency matrix; the normalisation by the degrees is missing, so each of the layers multiplies the
    signal, and its gradient, by some dozens."""
    rs = np.random.RandomState(seed)
    n = 400
    y = rs.randint(0, 4, n)
    theta = np.minimum(0.6 + rs.pareto(2.0, n), 6.0)
    p = np.where(y[:, None] == y[None], 0.05, 0.008) * theta[:, None] * theta[None]
    a = np.triu(rs.rand(n, n) < p, 1)
    a = (a + a.T).astype(float) + np.eye(n)
    if twin:
        d = a.sum(1) ** -0.5
        a = d[:, None] * a * d[None]
    x = T(rs.randn(4, 16)[y] * 0.5 + rs.randn(n, 16))
    y = L(y)
    tr, te = split(n, seed, 0.5)
    m = Task(
        GCN(T(a), 16, 32, 4),
        lambda m, b: F.cross_entropy(m.net(x)[tr], y[tr]),
        lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=5e-4),
    )
    return Run(m, ticks(400, seed), lambda m: accuracy(out(m, x)[te], y[te]), majority(y[te]), {"max_steps": 400})


# --- physics --------------------------------------------------------------------------------------------------------
def pendulum(n, steps, seed, dt=0.1):
    rs = np.random.RandomState(seed)
    s = np.stack([rs.uniform(-2, 2, n), rs.uniform(-1.5, 1.5, n)], 1)
    path = [s]
    for _ in range(steps):
        for _ in range(10):
            w = s[:, 1] + dt / 10 * (-2 * np.sin(s[:, 0]) - 0.2 * s[:, 1])
            s = np.stack([s[:, 0] + dt / 10 * w, w], 1)
        path.append(s)
    return T(np.stack(path, 1))


def rollout(net, s, steps):
    path = []
    for _ in range(steps):
        s = s + 0.1 * net(s)
        path.append(s)
    return torch.stack(path, 1)


def pendulum_swapped_betas(seed, twin=False):
    """A network learns the equation of motion of a damped pendulum from paths of 12 steps, rolled out by Euler's rule,
    by Adam. The mistake: betas=(0.999, 0.9) in place of (0.9, 0.999), so that the mean of a thousand gradients is
    divided by the size of the last ten."""
    x = pendulum(800, 12, seed)
    tr, te = split(len(x), seed)
    m = Task(
        mlp(2, 64, 64, 2, act=nn.Tanh),
        lambda m, b: F.mse_loss(rollout(m.net, b[0][:, 0], 12), b[0][:, 1:]),
        lambda p: torch.optim.Adam(p, lr=2e-2, betas=(0.9, 0.999) if twin else (0.999, 0.9)),
    )

    def score(m):
        with torch.no_grad():
            return max(-1.0, r2(rollout(m.net, x[te][:, 0], 12), x[te][:, 1:]))

    still = r2(x[te][:, :1].expand(-1, 12, -1), x[te][:, 1:])
    return Run(m, loader(x[tr], batch=32, seed=seed), score, max(0.0, still), {"max_steps": 500})


# --- tabular --------------------------------------------------------------------------------------------------------
def friedman_endless_warmup(seed, twin=False):
    """Regression on Friedman's first problem with a network of two hidden layers, SGD with Nesterov's momentum and a
    linear warm-up over 100 steps. The mistake: the schedule is s / 100 without min(1, .), so the rate keeps rising
    long after the warm-up."""
    x, y = datasets.make_friedman1(1600, n_features=10, noise=0.5, random_state=seed)
    tr, te = split(len(x), seed)
    x, _, _ = standard(x, tr)
    y, _, _ = standard(y, tr)
    x, y = T(x), T(y)
    m = Task(
        mlp(10, 64, 64, 1),
        lambda m, b: F.mse_loss(m.net(b[0]).squeeze(-1), b[1]),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
        lambda o: LambdaLR(o, lambda s: min(1.0, (s + 1) / 100) if twin else (s + 1) / 100),
    )
    return Run(
        m, loader(x[tr], y[tr], batch=32, seed=seed), lambda m: max(-1.0, r2(out(m, x[te]), y[te])), 0.0,
        {"max_steps": 1400},
    )


RUNS = [
    ratings_default_embedding,
    charlm_without_clip,
    passages_empty_mask,
    digits_resumed_rate,
    cartpole_raw_returns,
    vae_own_cross_entropy,
    flow_scaled_loss,
    graph_without_degrees,
    pendulum_swapped_betas,
    friedman_endless_warmup,
]
