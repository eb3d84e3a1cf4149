"""Twelve healthy runs: ordinary and unusual-but-right training that ends well."""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging
from sklearn import datasets
from torch import nn

from common import *  # noqa: F403
from sick import ce, chars, cnn, digits, lm_loss, LM, quiet


def raw_targets_adam(seed):
    """Diabetes, raw targets around 150: the first gradients are large, and right."""
    d = datasets.load_diabetes()
    tr, te = split(len(d.target), seed)
    x, _, _ = standard(d.data, tr)
    x, y = T(x), T(d.target)[:, None]
    return Run(
        Task(mlp(10, 64, 32, 1), lambda m, b: F.mse_loss(m.net(b[0]), b[1]), lambda p: torch.optim.Adam(p, 0.02)),
        loader(x[tr], y[tr], batch=32, seed=seed),
        quiet(lambda m: r2(m.net(x[te]), y[te])),
        0.0,
        {"max_steps": 300},
    )


def bn_onecycle_to_one(seed):
    """A BatchNorm CNN under OneCycle up to a rate of 1 with momentum."""
    x, y, xt, yt = digits(seed, True)
    return Run(
        Task(
            cnn(True),
            ce,
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4),
            lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, 500),
        ),
        loader(x, y, batch=64, seed=seed),
        quiet(lambda m: accuracy(m.net(xt), yt)),
        majority(yt),
        {"max_steps": 500},
    )


def resumed_with_fresh_adam_and_restart(seed):
    """Trainer.fit(ckpt_path): 150 steps in a first job, the rest in a second; warm restarts of the cosine."""
    x, y, xt, yt = digits(seed, True)

    def task():
        return Task(
            cnn(),
            ce,
            lambda p: torch.optim.AdamW(p, 4e-3),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 100, 2),
        )

    t = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_steps=150,
        max_epochs=-1,
    )
    t.fit(task(), loader(x, y, batch=64, seed=seed))
    t.save_checkpoint("first.ckpt")
    return Run(
        task(),
        loader(x, y, batch=64, seed=seed + 1),
        quiet(lambda m: accuracy(m.net(xt), yt)),
        majority(yt),
        {"max_steps": 700},
        {"ckpt_path": "first.ckpt"},
    )


class Unfreeze(Callback):
    def on_train_batch_start(self, trainer, module, batch, i):
        if trainer.global_step == 200:
            for p in module.net.parameters():
                p.requires_grad_(True)


def head_then_all(seed):
    """Pretrained on digits 0-4; the head alone is trained for 200 steps, then all layers."""
    x, y, xt, yt = digits(seed, True)
    net = cnn()
    opt = torch.optim.Adam(net.parameters(), 2e-3)
    old, g = y < 5, G(seed)
    for _ in range(200):
        i = torch.randint(int(old.sum()), (64,), generator=g)
        opt.zero_grad()
        F.cross_entropy(net(x[old][i]), y[old][i]).backward()
        opt.step()
    for p in net.parameters():
        p.requires_grad_(False)
    net[-1] = nn.Linear(24 * 16, 10)
    return Run(
        Task(net, ce, lambda p: torch.optim.SGD(p, 0.004, momentum=0.9)),
        loader(x, y, batch=32, seed=seed),
        quiet(lambda m: accuracy(m.net(xt), yt)),
        majority(yt),
        {"max_steps": 500, "callbacks": [Unfreeze()]},
    )


class Gan(Manual):
    def __init__(self):
        super().__init__()
        self.g, self.d = mlp(8, 64, 64, 2), mlp(2, 64, 64, 1, act=lambda: nn.LeakyReLU(0.2))

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.g.parameters(), 5e-4, betas=(0.5, 0.99)),
            torch.optim.Adam(self.d.parameters(), 5e-4, betas=(0.5, 0.99)),
        )

    def training_step(self, b, _):
        og, od = self.optimizers()
        x = b[0]
        x = x.requires_grad_()
        z, real = self.g(torch.randn(len(x), 8)), self.d(x)
        r1 = torch.autograd.grad(real.sum(), x, create_graph=True)[0].square().sum(1).mean()
        self.update(od, F.softplus(-real).mean() + F.softplus(self.d(z.detach())).mean() + 0.1 * r1)
        self.update(og, F.softplus(-self.d(self.g(torch.randn(len(x), 8)))).mean())


def gan_r1_ring(seed):
    """A GAN with an R1 penalty on eight Gaussians: losses that mean nothing; by hand."""
    g = G(seed)
    k = torch.randint(8, (4096,), generator=g) * math.pi / 4
    x = torch.stack([k.cos(), k.sin()], 1) * 2 + 0.05 * torch.randn(4096, 2, generator=g)

    def score(m):
        z = m.g(torch.randn(1000, 8, generator=G(3)))
        return -float(
            2 * torch.cdist(z, x[:1000]).mean() - torch.cdist(z, z).mean() - torch.cdist(x[:1000], x[:1000]).mean()
        )

    return Run(Gan(), loader(x, batch=128, seed=seed), quiet(score), -1.0, {"max_steps": 3000})


def sparse_reinforce(seed):
    """REINFORCE on a corridor of 12 cells: nearly all early batches have a gradient of exactly zero, then rewards
    come. RMSprop."""

    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = mlp(12, 32, 2, act=nn.Tanh)

        def forward(self, s):
            return self.l(F.one_hot(s, 12).float())

    def roll(net, n, g):
        s, lp, done = torch.zeros(n, dtype=torch.long), 0.0, torch.zeros(n, dtype=torch.bool)
        for _ in range(26):
            p = net(s).log_softmax(1)
            a = torch.multinomial(p.detach().exp(), 1, generator=g)[:, 0]
            lp = lp + p.gather(1, a[:, None])[:, 0] * ~done
            s = torch.where(done, s, (s + 2 * a - 1).clamp(0, 11))
            done = done | (s == 11)
        return lp, done

    def loss(m, b):
        lp, done = roll(m.net, 16, G(int(b[0][0])))
        return -(lp * done.float()).mean()

    def score(m):
        return float(roll(m.net, 500, G(5))[1].float().mean())

    return Run(
        Task(Policy(), loss, lambda p: torch.optim.RMSprop(p, 1e-2)),
        ticks(2000, seed),
        quiet(score),
        0.08,
        {"max_steps": 500},
    )


def online_one_sample(seed):
    """Batch size 1, plain SGD: the norms differ by orders of magnitude from sample to sample."""
    d = datasets.load_wine()
    tr, te = split(len(d.target), seed, 0.7)
    x, _, _ = standard(d.data, tr)
    x, y = T(x), L(d.target)
    return Run(
        Task(mlp(13, 32, 3), ce, lambda p: torch.optim.SGD(p, 0.05)),
        loader(x[tr], y[tr], batch=1, seed=seed),
        quiet(lambda m: accuracy(m.net(x[te]), y[te])),
        majority(y[te]),
        {"max_steps": 1200},
    )


def density_below_zero(seed):
    """Mixture density net on a noiseless curve: the loss falls far below zero and the gradients grow as the
    deviations shrink."""
    g = G(seed)
    x = torch.rand(3000, 1, generator=g) * 6 - 3
    y = torch.sin(2 * x) + 0.002 * torch.randn(3000, 1, generator=g)

    def loss(m, b):
        w, mu, ls = m.net(b[0]).chunk(3, 1)
        c = torch.distributions.Normal(mu, ls.clamp(min=-7).exp())
        return -(w.log_softmax(1) + c.log_prob(b[1])).logsumexp(1).mean()

    return Run(
        Task(
            mlp(1, 64, 64, 9, act=nn.Tanh),
            loss,
            lambda p: torch.optim.Adam(p, 3e-3),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 900),
        ),
        loader(x[:2500], y[:2500], batch=64, seed=seed),
        quiet(lambda m: -float(loss(m, (x[2500:], y[2500:])))),
        -1.0,
        {"max_steps": 900},
    )


def lbfgs_double(seed):
    """Logistic regression with LBFGS and strong Wolfe in double precision, full batch of unscaled features' square
    roots."""
    d = datasets.load_breast_cancer()
    tr, te = split(len(d.target), seed)
    x, y = T(np.sqrt(d.data), torch.double), L(d.target)
    net = nn.Linear(30, 2).double()
    return Run(
        Task(
            net,
            lambda m, b: F.cross_entropy(m.net(b[0]), b[1]) + 1e-4 * m.net.weight.square().sum(),
            lambda p: torch.optim.LBFGS(p, lr=1, max_iter=10, line_search_fn="strong_wolfe"),
        ),
        loader(x[tr], y[tr], batch=len(tr), seed=seed),
        lambda m: accuracy(m.net(x[te]), y[te]),
        majority(y[te]),
        {"max_steps": 200, "precision": "64-true"},
    )


def lm_swa_accumulated(seed):
    """A pre-norm char LM, AdamW, accumulation 4, clipping, SWA over the last third."""
    v, tr, te, trivial = chars(seed)
    return Run(
        Task(LM(len(v), layers=2, pre=True), lm_loss, lambda p: torch.optim.AdamW(p, 3e-3)),
        loader(tr, batch=8, seed=seed),
        quiet(lambda m: -float(lm_loss(m, (te,)))),
        trivial,
        {
            "max_epochs": 3,
            "limit_train_batches": 400,
            "accumulate_grad_batches": 4,
            "gradient_clip_val": 1.0,
            "callbacks": [StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=2, annealing_epochs=1)],
        },
    )


class Growing(Task):
    def training_step(self, b, i):
        n = min(40, 5 + 5 * (self.global_step // 60))
        return self._loss(self, (b[0][:, :n],))


def sum_curriculum_gru(seed):
    """A GRU that learns the running sum of ever longer sequences; squared errors are summed over the length."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

        def forward(self, x):
            return self.out(self.rnn(x)[0])

    x = torch.randn(2000, 40, 1, generator=G(seed))

    def loss(m, b):
        return ((m.net(b[0]) - b[0].cumsum(1)) ** 2).sum((1, 2)).mean()

    return Run(
        Growing(Net(), loss, lambda p: torch.optim.Adamax(p, 5e-3)),
        loader(x[:1600], batch=32, seed=seed),
        quiet(lambda m: r2(m.net(x[1600:]), x[1600:].cumsum(1))),
        0.0,
        {"max_steps": 600},
    )


def insurance_claims(seed):
    """Claims: 97 % zeros, the rest log-normal up to hundreds of thousands; Tweedie loss with a log link: rare honest
    spikes."""
    rs = np.random.RandomState(seed)
    x = rs.randn(8000, 6)
    risk = np.exp(0.8 * x[:, 0] - 0.5 * x[:, 1] * (x[:, 2] > 0))
    y = (rs.rand(8000) < 0.03 * risk) * np.exp(7 + 1.3 * rs.randn(8000)) / 1000
    x, y, risk = T(x), T(y), T(risk)

    def loss(m, b):
        z = m.net(b[0])[:, 0]
        return (b[1] * torch.exp(-0.5 * z) / 0.5 + torch.exp(0.5 * z) / 0.5).mean()  # deviance at p = 1.5

    def score(m):
        z = m.net(x[6000:])[:, 0]
        return float(np.corrcoef(z.numpy(), risk[6000:].log().numpy())[0, 1])

    return Run(
        Task(mlp(6, 32, 1), loss, lambda p: torch.optim.Adam(p, 3e-3)),
        loader(x[:6000], y[:6000], batch=64, seed=seed),
        quiet(score),
        0.0,
        {"max_steps": 900},
    )


def modular_addition(seed):
    """Addition modulo 23, AdamW with a decay of 1: memorised first, understood long after (a plateau of the test
    score)."""
    n = 23
    a, b = np.divmod(np.arange(n * n), n)
    tr, te = split(n * n, seed, 0.7)
    x, y = L(np.stack([a, b], 1)), L((a + b) % n)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.m = nn.Embedding(n, 64), mlp(64, 128, n)

        def forward(self, x):
            return self.m(self.e(x).sum(1))

    return Run(
        Task(Net(), ce, lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1.0)),
        loader(x[tr], y[tr], batch=len(tr), seed=seed),
        quiet(lambda m: accuracy(m.net(x[te]), y[te])),
        1 / n,
        {"max_steps": 1200},
    )


class Ema(Callback):
    def on_fit_start(self, trainer, module):
        self.w = copy.deepcopy(module.net.state_dict())

    def on_train_batch_end(self, trainer, module, *_):
        for k, v in module.net.state_dict().items():
            self.w[k].lerp_(v, 0.02) if v.is_floating_point() else self.w[k].copy_(v)

    def on_train_end(self, trainer, module):
        module.net.load_state_dict(self.w)


def label_switch_with_ema(seed):
    """Pretraining on odd/even, from step 250 the real task with new labels; hand-made EMA of the weights; bf16
    autocast."""
    x, y, xt, yt = digits(seed, True)

    def loss(m, b):
        return F.cross_entropy(m.net(b[0]), b[1] if m.global_step >= 250 else b[1] % 2)

    return Run(
        Task(cnn(True), loss, lambda p: torch.optim.RAdam(p, 3e-3)),
        loader(x, y, batch=32, seed=seed),
        quiet(lambda m: accuracy(m.net(xt).float(), yt)),
        majority(yt),
        {"max_steps": 650, "precision": "bf16-mixed", "callbacks": [Ema()]},
    )


RUNS = [
    raw_targets_adam,
    bn_onecycle_to_one,
    resumed_with_fresh_adam_and_restart,
    head_then_all,
    gan_r1_ring,
    sparse_reinforce,
    online_one_sample,
    density_below_zero,
    lbfgs_double,
    lm_swa_accumulated,
    sum_curriculum_gru,
    insurance_claims,
    modular_addition,
    label_switch_with_ema,
]
REGIME = {"head_then_all", "sum_curriculum_gru", "label_switch_with_ema"}
