"""The callback on Lightning's Trainer: every loop, and everything put back afterwards."""

from __future__ import annotations

import copy
import logging
import math
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_gradguard import GradGuard, GuardError, Policy, TrainingDiverged
from lightning_gradguard.detectors import Detector, NonFinite
from lightning_gradguard.diagnostics import read_journal, read_runs
from lightning_gradguard.remedies import Reinitialize, Skip
from lightning_gradguard.report import read_stories
from lightning_gradguard.statistics.collectives import Collectives
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, spoil, trainer

ADAM = partial(torch.optim.Adam, lr=0.01)
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)


def hooks_of(module: nn.Module) -> int:
    """Count every hook on a module and its children."""
    kinds = [name for name in vars(module) if name.endswith("_hooks") and isinstance(vars(module)[name], dict)]
    return sum(len(getattr(child, kind)) for child in module.modules() for kind in kinds)


def hooks_on(optimizer: Any) -> int:
    return len(optimizer._optimizer_step_post_hooks) + len(optimizer._optimizer_step_pre_hooks)


class Grows(Net):
    """A module whose loss is multiplied from some step on."""

    def __init__(self, *args: Any, since: int, by: float, until: int = 10**9) -> None:
        super().__init__(*args)
        self.since, self.by, self.until = since, by, until

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        factor = self.by if self.since <= batch_idx < self.until else 1.0
        return super().training_step(batch, batch_idx) * factor


# -- life cycle


def test_no_hook_is_left_on_module_or_optimizer(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[GradGuard(journal=False)])
    module = Net(mlp(), ADAM)
    before = hooks_of(module)
    fit.fit(module, loader(spoil(regression(20), 19)))
    assert hooks_of(module) == before
    assert [hooks_on(o) for o in fit.optimizers] == [0]


class Fails(Callback):
    """Raise at a given point of a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer: Trainer, *_: Any) -> None:
        pass

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyError("in the middle of a step")


def test_rates_and_hooks_are_put_back_after_an_exception_in_mid_step(tmp_path: Path) -> None:
    guard = GradGuard(journal=False, policy=Policy(patience=1))
    fit = trainer(tmp_path, callbacks=[guard, Fails(26)], gradient_clip_val=0.5)
    module = Grows(mlp(), SGD, since=25, by=1e4, until=26)
    before = hooks_of(module)
    with pytest.raises(KeyError, match="in the middle"):
        fit.fit(module, loader(regression(40)))
    assert "backoff" in guard.incidents[0].remedies
    assert [g["lr"] for g in fit.optimizers[0].param_groups] == [0.01]
    assert hooks_of(module) == before
    assert [hooks_on(o) for o in fit.optimizers] == [0]
    assert fit.gradient_clip_val == 0.5


def test_clipping_is_put_back_after_an_exception_on_a_skipped_step(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[GradGuard(journal=False), Fails(25)], gradient_clip_val=0.5)
    module = Net(mlp(), SGD)
    # A hook of the instance's own must come back too.
    own = vars(module)["configure_gradient_clipping"] = module.configure_gradient_clipping
    with pytest.raises(KeyError):
        fit.fit(module, loader(spoil(regression(40), 25)))
    assert vars(module)["configure_gradient_clipping"] is own
    assert fit.gradient_clip_val == 0.5


def test_the_callback_can_be_copied_and_pickled() -> None:
    for other in (copy.deepcopy(GradGuard()), pickle.loads(pickle.dumps(GradGuard()))):
        assert other.incidents == () and other.guard._run.collectives == Collectives()


def test_the_callback_can_be_pickled_after_a_run_too(tmp_path: Path) -> None:
    guard = GradGuard(journal=False)
    trainer(tmp_path, callbacks=[guard]).fit(Net(mlp(), ADAM), loader(spoil(regression(20), 15)))
    assert [i.step for i in pickle.loads(pickle.dumps(guard)).incidents] == [15]


def test_fitting_twice_goes_on_from_what_was_learned(tmp_path: Path) -> None:
    guard, module = GradGuard(journal=False), Net(mlp(), ADAM)
    for _ in range(2):
        trainer(tmp_path, callbacks=[guard]).fit(module, loader(spoil(regression(30), 25)))
    assert [i.number for i in guard.incidents] == [1, 2]
    assert all(i.culprit == "batch" for i in guard.incidents)


def test_validating_and_testing_leave_the_guard_alone(tmp_path: Path) -> None:
    class Tested(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.network(batch[0])

        test_step = validation_step

    fit = trainer(tmp_path, callbacks=[GradGuard(journal=False)])
    module = Tested(mlp(), ADAM)
    fit.validate(module, loader(regression(2)), verbose=False)
    fit.fit(module, loader(regression(5)), loader(regression(2)))
    fit.test(module, loader(regression(2)), verbose=False)
    assert fit.global_step == 5


# -- what is refused


def test_two_guards_in_one_trainer_are_refused(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[GradGuard(journal=False), GradGuard(journal=False, mode="watch")])
    with pytest.raises(MisconfigurationException, match="GradGuard"):
        fit.fit(Net(mlp(), ADAM), loader(regression(2)))


# -- nothing to train


@pytest.mark.parametrize("optimizer", [None, ADAM, partial(torch.optim.SGD, lr=0.1)])
def test_a_run_in_which_nothing_is_trained_ends_as_it_does_unguarded(optimizer: Any, tmp_path: Path) -> None:
    class Frozen(Net):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss if optimizer is None else loss.detach().requires_grad_()

        def configure_optimizers(self) -> Any:
            return None if optimizer is None else super().configure_optimizers()

    ends = []
    for callbacks in ([], [guard := GradGuard(journal=False)]):
        network = mlp(norm=True)
        if optimizer is not None:
            network.requires_grad_(False)
        fit = trainer(tmp_path, callbacks=callbacks)
        fit.fit(Frozen(network, optimizer), loader(regression(60)))
        ends.append((fit.global_step, network.state_dict()))
    assert same(*ends) and not guard.incidents


# -- watching


@pytest.mark.parametrize("value", [math.nan, 1e30, 1e3])
@pytest.mark.parametrize("on_exhausted", ["stop", "raise"])
def test_watching_changes_nothing_even_on_a_sick_run(value: float, on_exhausted: Any, tmp_path: Path) -> None:
    def run(callbacks: list[Callback]) -> Any:
        fit = trainer(tmp_path, callbacks=callbacks)
        fit.fit(Net(mlp(norm=True), ADAM), loader(spoil(regression(150), *range(25, 32), value=value)))
        return fit.global_step, frozen_copy(fit)

    guard = GradGuard(
        mode="watch", journal=False, on_exhausted=on_exhausted, policy=Policy(max_skipped=5, max_trials=1)
    )
    assert same(run([]), run([guard]))
    assert all(i.remedies == () for i in guard.incidents)
    assert guard.incidents or not math.isnan(value)


class Branch(nn.Module):
    """A layer that reads its input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((8,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.weight) * x.sin()


class Residual(nn.Module):
    """A branch beside the identity: three gradients to add up, in an order that must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = Branch()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def resnet() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(8, 8), Residual(), nn.Linear(8, 8), Residual(), nn.Linear(8, 1))


def test_watching_changes_no_order_of_summation(tmp_path: Path) -> None:
    def run(callbacks: list[Callback]) -> Any:
        fit = trainer(tmp_path, callbacks=callbacks)
        module = Grows(resnet(), partial(torch.optim.SGD, lr=1e-3), since=50, by=100.0, until=54)
        fit.fit(module, loader(regression(70)))
        return frozen_copy(fit)

    guard = GradGuard(mode="watch", journal=False)
    plain, watched = run([]), run([guard])
    assert guard.incidents and all(value.isfinite().all() for value in plain["weights"].values())
    assert same(plain, watched)


def test_a_nan_leaves_no_trace_in_an_order_of_summation(tmp_path: Path) -> None:
    batches, ends = regression(40), []
    for chosen in (spoil(batches, 20), batches[:20] + batches[21:]):
        fit = trainer(tmp_path, callbacks=[GradGuard(journal=False)])
        fit.fit(Net(resnet(), SGD), loader(chosen))
        ends.append(frozen_copy(fit))
    assert same(*ends)


# -- the journal


@pytest.mark.parametrize(("sick", "expected"), [((), []), ((20,), ["gradguard.jsonl"])])
def test_without_a_logger_only_an_incident_leaves_a_journal(
    sick: tuple[int, ...], expected: list[str], tmp_path: Path
) -> None:
    trainer(tmp_path, callbacks=[GradGuard(log_every=5)]).fit(Net(mlp(), ADAM), loader(spoil(regression(30), *sick)))
    assert [path.name for path in tmp_path.iterdir()] == expected


def test_with_a_logger_the_journal_tells_of_healthy_runs_too(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    trainer(tmp_path, logger=logger, callbacks=[GradGuard(log_every=5)]).fit(Net(mlp(), ADAM), loader(regression(30)))
    windows = read_journal(Path(logger.log_dir) / "gradguard.jsonl").windows
    assert [w.first_step for w in windows[1:]] == [w.step + 1 for w in windows[:-1]]
    assert (windows[0].first_step, windows[-1].step) == (0, 29)
    assert [w.step - w.first_step + 1 for w in windows[:9]] == [1] * 9, "the first steps are shown one by one"


class Shared(Logger):
    """A logger whose directory is that of all runs, like those of W&B and MLflow."""

    name, version = "project", None

    def __init__(self, save_dir: str, version: str) -> None:
        super().__init__()
        self._directory, self.version = save_dir, version  # type: ignore[misc, assignment]

    @property
    def save_dir(self) -> str:
        return self._directory

    def log_metrics(self, *_: Any, **__: Any) -> None:
        pass

    log_hyperparams = log_metrics


def test_each_run_of_a_shared_directory_has_a_journal_of_its_own(tmp_path: Path) -> None:
    for version, sick in (("one", (10,)), ("two", ()), ("one", ())):
        logger = Shared(str(tmp_path), version)
        trainer(tmp_path, logger=logger, callbacks=[GradGuard()]).fit(
            Net(mlp(), ADAM), loader(spoil(regression(30), *sick))
        )
    found = sorted(tmp_path.rglob("gradguard.jsonl"))
    assert [str(path.parent.relative_to(tmp_path)) for path in found] == ["project/one", "project/two"]
    assert [len(run.incidents) for run in read_runs(found[0]).values()] == [1, 0]
    assert [story.headline.level for story in read_stories(found[0], tmp_path)] != ["good", "good"]


def test_a_resumed_run_goes_on_in_its_journal(tmp_path: Path) -> None:
    first = trainer(tmp_path, callbacks=[GradGuard()])
    first.fit(Net(mlp(), ADAM), loader(spoil(regression(30), 10)))
    first.save_checkpoint(tmp_path / "end.ckpt")
    more = trainer(tmp_path, callbacks=[GradGuard()], max_epochs=2)
    more.fit(Net(mlp(), ADAM), loader(spoil(regression(30), 20)), ckpt_path=tmp_path / "end.ckpt")
    (run,) = read_runs(tmp_path / "gradguard.jsonl").values()
    assert run.sessions == 2 and [i.step for i in run.incidents] == [10, 50]


def test_no_file_is_left_beside_the_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "lightning_gradguard")
    for _ in range(2):
        trainer(tmp_path, callbacks=[GradGuard()]).fit(Net(mlp(), ADAM), loader(spoil(regression(30), 20)))
    assert [path.name for path in tmp_path.iterdir()] == ["gradguard_logs"]
    journals = sorted(tmp_path.glob("gradguard_logs/*/gradguard.jsonl"))
    assert len(journals) == 2
    assert sum("the journal of this run is" in message for message in caplog.messages) == 2


def test_no_local_folder_is_made_of_a_remote_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "lightning_gradguard")
    url = "memory://runs"
    trainer(url, logger=CSVLogger(url), callbacks=[GradGuard()]).fit(Net(mlp(), ADAM), loader(regression(5)))
    assert list(tmp_path.iterdir()) == []
    assert sum("no journal is written: memory://runs" in message for message in caplog.messages) == 1


# -- loops


class TwoOptimizers(LightningModule):
    """Manual optimization; the loss of the second network explodes at some steps."""

    def __init__(self, sick: tuple[int, ...]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second, self.sick = mlp(seed=1), mlp(seed=2), sick

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for network, optimizer in zip((self.first, self.second), optimizers, strict=True):
            loss = nn.functional.mse_loss(network(batch[0]), batch[1])
            if network is self.second and batch_idx in self.sick:
                loss = loss * math.nan
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [ADAM(self.first.parameters()), SGD(self.second.parameters())]


@pytest.mark.cell("Optimization", "manual, several optimizers of which one explodes", "healthy", "sick")
def test_with_two_optimizers_the_healthy_one_goes_on(tmp_path: Path) -> None:
    def run(sick: tuple[int, ...], callbacks: list[Callback]) -> Any:
        module = TwoOptimizers(sick)
        trainer(tmp_path, callbacks=callbacks).fit(module, loader(regression(40)))
        return module

    guard = GradGuard(journal=False)
    healthy, guarded = run((), []), run((25, 26), [guard])
    assert same(healthy.first.state_dict(), guarded.first.state_dict())
    assert all(p.isfinite().all() for p in guarded.second.parameters())
    assert [i.optimizer for i in guard.incidents] == [1]


class KeepsItsGraph(LightningModule):
    """A GAN that goes through its generator once and backward twice, past the discriminator's bad step."""

    def __init__(self, sick: int, *, between: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = mlp(norm=True, seed=1)
        self.discriminator = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.sick, self.between = sick, between

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc, union-attr]
        made = self.generator(batch[0])
        real, fake = self.discriminator(batch[1]), self.discriminator(made.detach())
        loss = nn.functional.softplus(-real).mean() + nn.functional.softplus(fake).mean()
        if batch_idx == self.sick:
            loss = loss * math.nan
        second.zero_grad()
        self.manual_backward(loss, retain_graph=True)
        if self.between:
            second.step()
        first.zero_grad()
        self.manual_backward(nn.functional.mse_loss(made, batch[1]))
        if not self.between:
            second.step()
        first.step()

    def configure_optimizers(self) -> Any:
        return [ADAM(self.generator.parameters()), ADAM(self.discriminator.parameters())]


@pytest.mark.cell("Optimization", "manual, one forward pass and two backward passes", "healthy", "sick")
@pytest.mark.parametrize("between", [False, True])
def test_what_a_living_graph_needs_is_put_back_without_a_trace(between: bool, tmp_path: Path) -> None:
    def run(sick: int, callbacks: list[Callback]) -> Any:
        fit = trainer(tmp_path, callbacks=callbacks)
        fit.fit(module := KeepsItsGraph(sick, between=between), loader(regression(40)))
        return module.generator, frozen_copy(fit)

    healthy, guard = GradGuard(journal=False), GradGuard(journal=False)
    (generator, plain), (_, guarded), (other, sick) = run(99, []), run(99, [healthy]), run(25, [guard])
    assert same(plain, guarded) and not healthy.incidents
    assert [(i.step, i.optimizer, i.remedies) for i in guard.incidents] == [(50, 1, ("skip",))]
    assert all(value.isfinite().all() for value in sick["weights"].values())
    assert same(dict(generator.named_parameters()), dict(other.named_parameters()))


def test_lbfgs_survives_a_sick_batch(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[GradGuard(journal=False)])
    module = Net(mlp(), partial(torch.optim.LBFGS, lr=0.05, max_iter=3))
    fit.fit(module, loader(spoil(regression(30), 20)))
    assert all(p.isfinite().all() for p in module.parameters())


class Unfreezes(Callback):
    """Add a parameter group in mid-run."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 60:
            for p in pl_module.network[0].parameters():
                p.requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": list(pl_module.network[0].parameters())})


@pytest.mark.cell("Optimization", "parameter groups added in mid-epoch", "sick")
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_groups_added_in_mid_run_are_guarded_and_are_no_explosion(scale: float, tmp_path: Path) -> None:
    network = mlp()
    for p in network[0].parameters():
        p.requires_grad_(False)
    # The larger the input, the more the unfrozen layer adds to the norm.
    batches = [(x * scale, y) for x, y in regression(120)]
    guard = GradGuard(journal=False)
    module = Net(network, lambda _: torch.optim.SGD(network[2].parameters(), lr=1e-3 / scale**2))
    trainer(tmp_path, callbacks=[guard, Unfreezes()]).fit(module, loader(spoil(batches, 110)))
    assert [(i.culprit, i.step) for i in guard.incidents] == [("batch", 110)]


def test_a_batch_that_holds_sparse_and_odd_tensors_is_no_trouble(tmp_path: Path) -> None:
    class Graph(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["pair"], batch_idx)

    adjacency = torch.eye(3).to_sparse()
    odd = {"adjacency": adjacency, "none": None, "text": ["a"], "empty": torch.zeros(0)}
    batches: Any = [{"pair": pair, **odd} for pair in spoil(regression(30), 20)]
    guard = GradGuard(journal=False)
    trainer(tmp_path, callbacks=[guard]).fit(Graph(mlp(), ADAM), loader(batches))
    assert [i.culprit for i in guard.incidents] == ["batch"]


# -- GradScaler


def half(root: Path, callbacks: list[Callback], scale: float = 2.0**10) -> Trainer:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    return trainer(root, callbacks=callbacks, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])


@pytest.mark.cell("Precision", "16-mixed with a GradScaler", "healthy", note="fused optimizers and others")
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_scaler_a_healthy_run_is_bit_identical(fused: bool, tmp_path: Path) -> None:
    optimizer, guard = partial(torch.optim.AdamW, lr=0.01, fused=fused), GradGuard(journal=False)
    ends = []
    for callbacks in ([], [guard]):
        # The first scale is too large: the overflows are routine, and no incident.
        fit = half(tmp_path, callbacks, scale=2.0**20)
        fit.fit(Net(mlp(), optimizer), loader(regression(60)))
        ends.append(frozen_copy(fit))
    assert same(*ends) and guard.incidents == ()


@pytest.mark.cell("Precision", "16-mixed with a GradScaler", "sick", note="fused optimizers and others")
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("fused", [False, True])
def test_under_a_scaler_a_spike_is_skipped_without_a_trace(fused: bool, scale: float, tmp_path: Path) -> None:
    optimizer, batches = partial(torch.optim.AdamW, lr=0.01, fused=fused), regression(60)
    never_saw = half(tmp_path, [], scale)
    never_saw.fit(Net(mlp(), optimizer), loader(batches[:40] + batches[41:]))
    spiked = list(batches)
    spiked[40] = (batches[40][0], batches[40][1] * 1000)
    guard = GradGuard(journal=False)
    saw = half(tmp_path, [guard], scale)
    saw.fit(Net(mlp(), optimizer), loader(spiked))
    assert [i.remedies for i in guard.incidents] == [("skip",)]
    assert same(frozen_copy(never_saw), frozen_copy(saw))


@pytest.mark.cell("Precision", "16-mixed with a GradScaler", "healthy", note="fused optimizers and others")
@pytest.mark.parametrize("fused", [False, True])
def test_norms_under_a_scaler_are_unscaled(fused: bool, tmp_path: Path) -> None:
    norms = []
    for plugin in (None, MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))):
        guard = GradGuard(journal=False)
        fit = trainer(tmp_path, callbacks=[guard], plugins=[plugin] if plugin else [], max_steps=3)
        seen: list[float] = []

        class Reads(Callback):
            def on_train_batch_end(self, *_: Any, seen: list[float] = seen, guard: GradGuard = guard) -> None:
                track = next(iter(guard.guard._tracks))
                assert track.last is not None
                seen.append(track.last.norm)

        fit.callbacks.insert(0, Reads())  # type: ignore[attr-defined]
        fit.fit(Net(mlp(), partial(torch.optim.AdamW, fused=fused)), loader(regression(3)))
        norms.append(seen)
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


@pytest.mark.cell("Precision", "16-mixed with a GradScaler", "sick", note="fused optimizers and others")
def test_a_nan_batch_under_a_scaler_does_not_stay_in_running_statistics(tmp_path: Path) -> None:
    fit = half(tmp_path, [GradGuard(journal=False)])
    module = Net(mlp(norm=True), ADAM)
    fit.fit(module, loader(spoil(regression(40), 25)))
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.cell("Precision", "16-mixed with a GradScaler", "sick", note="fused optimizers and others")
def test_a_scale_that_keeps_falling_is_an_incident(tmp_path: Path) -> None:
    guard = GradGuard(journal=False)
    fit = half(tmp_path, [guard])
    fit.fit(Net(mlp(), ADAM), loader(spoil(regression(60), *range(20, 50))))
    assert [i.form for i in guard.incidents] == ["overflow"]


# -- the end of the budget, and errors


def endless(root: Path, **options: Any) -> tuple[Trainer, GradGuard]:
    guard = GradGuard(journal=False, policy=Policy(max_skipped=5), **options)
    fit = trainer(root, callbacks=[guard])
    return fit, guard


def test_a_spent_budget_stops_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit, guard = endless(tmp_path)
    with caplog.at_level("ERROR", "lightning_gradguard"):
        fit.fit(Grows(mlp(), ADAM, since=20, by=math.nan), loader(regression(100)))
    assert 20 < fit.global_step < 40
    assert guard.incidents[-1].helped is False
    assert "GradGuard stops the run" in caplog.text and "incident 1" in caplog.text


def test_a_spent_budget_can_raise(tmp_path: Path) -> None:
    fit, _ = endless(tmp_path, on_exhausted="raise")
    with pytest.raises(TrainingDiverged, match=r"incident 1 at step 20: .* did not help"):
        fit.fit(Grows(mlp(), ADAM, since=20, by=math.nan), loader(regression(100)))


def test_a_spent_budget_can_be_ignored(tmp_path: Path) -> None:
    fit, guard = endless(tmp_path, on_exhausted="continue")
    module = Grows(mlp(), ADAM, since=80, by=math.nan, until=120)
    fit.fit(module, loader(regression(160)))
    assert fit.global_step == 160
    assert all(p.isfinite().all() for p in module.parameters())
    assert len(guard.incidents) == 1


class Broken(Detector):
    """A user's detector with a mistake."""

    name = "users-own"

    def judge(self, statistics: Any, baseline: Any) -> None:
        if baseline.count == 5:
            raise ZeroDivisionError("a mistake")


def test_an_exception_in_a_users_detector_names_it(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[GradGuard(detectors=[NonFinite(), Broken()], journal=False)])
    with pytest.raises(GuardError, match=r"users-own.*a mistake"):
        fit.fit(Net(mlp(), ADAM), loader(regression(10)))


def test_an_exception_in_a_users_detector_can_be_isolated(tmp_path: Path) -> None:
    guard = GradGuard(detectors=[Broken()], on_error="warn", journal=False)
    fit = trainer(tmp_path, callbacks=[guard])
    module = Net(mlp(), ADAM)
    with pytest.warns(RuntimeWarning, match="users-own") as caught:
        fit.fit(module, loader(regression(10)))
    assert fit.global_step == 10
    assert sum("users-own" in str(w.message) for w in caught) == 1


class Stumbles(Skip):
    """A user's remedy with a mistake."""

    name = "skip"

    def apply(self, context: Any) -> Any:
        raise LookupError("another mistake")


def test_an_exception_in_a_users_remedy_names_it(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[GradGuard(remedies=[Stumbles()], journal=False)])
    with pytest.raises(GuardError, match=r"skip.*another mistake"):
        fit.fit(Net(mlp(), ADAM), loader(spoil(regression(10), 5)))


def test_an_unknown_layer_pattern_is_refused_before_training_with_the_names_there_are(tmp_path: Path) -> None:
    guard = GradGuard(remedies=[Reinitialize(only=["no_such_layer*"])], journal=False)
    with pytest.raises(ValueError, match="no_such_layer") as error:
        trainer(tmp_path, callbacks=[guard]).fit(Net(mlp(), SGD), loader(regression(2)))
    assert "network.0" in str(error.value)
