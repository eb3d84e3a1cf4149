"""Whole stories of treatments on trial, from the first alarm to what the report says of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn

from lightning_gradguard import GradGuard, Guard
from lightning_gradguard.detectors import Detector
from lightning_gradguard.diagnostics.console import LONGEST
from lightning_gradguard.records import Incident, Verdict
from lightning_gradguard.report import read_story, render_text
from lightning_gradguard.witnesses.stand import WitnessStand
from tests.builders import SAFELY, Net, frozen_copy, loader, mlp, regression, same, through_a_file, trainer

Batch = tuple[Tensor, Tensor]


def digits(count: int, *, size: int = 64, seed: int = 0, scale: float = 1.0) -> list[Batch]:
    """Return batches of handwritten digits, standardised and then scaled."""
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    images = scale * (images - images.mean()) / images.std()
    generator = torch.Generator().manual_seed(seed)
    chosen = [torch.randint(len(images), (size,), generator=generator) for _ in range(count)]
    return [(images[i], labels[i]) for i in chosen]


def classifier(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


class Digits(Net):
    """A classifier of digits."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])


class Loop:
    """A plain loop around a network, its optimizer and a guard."""

    def __init__(self, network: nn.Module, optimizer: Callable[[Any], Any], loss: Any = nn.functional.cross_entropy):
        self.network, self.optimizer, self.loss = network, optimizer(network.parameters()), loss
        self.guard = Guard(network)
        self.guard.attach(self.optimizer)

    @property
    def track(self) -> Any:
        return self.guard.attach(self.optimizer)

    def step(self, batch: Batch) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss(self.network(batch[0]), batch[1])
        loss.backward()
        report = self.guard.before_step(self.optimizer, loss=loss, batch=batch)
        self.optimizer.step()
        return report

    def run(self, batches: Sequence[Batch]) -> list[Any]:
        return [self.step(batch) for batch in batches]

    def state(self) -> Any:
        return [self.network.state_dict(), self.optimizer.state_dict(), self.guard.state_dict()]

    def load(self, state: Any) -> None:
        for part, saved in zip((self.network, self.optimizer, self.guard), state, strict=True):
            part.load_state_dict(saved)


def told(incident: Incident) -> list[tuple[str, tuple[str, ...], str]]:
    """Return cause, treatment and outcome of each trial."""
    return [(t.cause, t.treatment, t.outcome) for t in incident.trials]


def hundredfold() -> Loop:
    return Loop(classifier(), partial(torch.optim.SGD, lr=10.0))


def test_a_rate_a_hundred_times_too_high_is_brought_down_and_the_run_learns() -> None:
    plain = Loop(classifier(), partial(torch.optim.SGD, lr=10.0))
    plain.guard = Guard(plain.network, mode="watch")
    lost = [r.statistics.loss for r in plain.run(digits(200))]
    loop = hundredfold()
    loop.run(digits(400))
    first = loop.guard.incidents[0]
    assert first.step <= 100 and first.helped
    treated = next(a for a in first.actions if "backoff" in a.decision.remedies)
    assert treated.decision.cause == "learning rate" and treated.decision.remedies == ("skip", "rollback", "backoff")
    assert told(first) == [("learning rate", ("rollback", "backoff"), "kept")]
    assert first.trials[0].after < first.trials[0].before < first.trials[0].trouble
    (x, y), *_ = digits(1, size=1000, seed=9)
    assert float((loop.network(x).argmax(1) == y).float().mean()) > 0.95 and min(lost[-50:]) > 1.0


def test_a_run_that_is_only_out_of_the_trouble_is_not_said_to_be_helped() -> None:
    """Of labels that are drawn by lot nothing can be learned, whatever is treated."""
    loop = Loop(classifier(), partial(torch.optim.SGD, lr=100.0))
    lot = torch.Generator().manual_seed(9)
    reports = loop.run([(x, torch.randint(0, 10, (len(x),), generator=lot)) for x, _ in digits(260)])
    incident = loop.guard.incidents[0]
    first, second = incident.trials
    assert (first.outcome, second.outcome) == ("taken back", "kept") and "initialize" in second.treatment
    assert second.before == first.before == reports[0].statistics.loss, "the user's network, not the one drawn anew"
    assert first.after < second.after < second.trouble and incident.helped is None
    assert "out of the trouble, not shown to be better" in str(incident) and "helped" not in str(incident)


def test_inputs_a_hundred_times_too_large_do_not_keep_a_run_from_learning() -> None:
    loop = Loop(classifier(), partial(torch.optim.SGD, lr=0.1))
    loop.run(digits(400, scale=100.0))
    x, y = digits(1, scale=100.0)[0]
    assert float((loop.network(x).argmax(1) == y).float().mean()) > 0.95
    assert loop.track.remedies.lr_factor > 1e-5
    assert not any(incident.helped is False for incident in loop.guard.incidents)


class Factors(nn.Module):
    """Ratings as products of embeddings, as torch draws them."""

    def __init__(self, users: int = 60, items: int = 40, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)

    def forward(self, pairs: Tensor) -> Tensor:
        return (self.users(pairs[:, 0]) * self.items(pairs[:, 1])).sum(1)


def test_embeddings_that_nothing_scales_are_drawn_so_that_their_products_are_of_the_order_of_one() -> None:
    """With rows of 64 draws from N(0, 1) each is the other's weight of length 8: a lower rate only learns by heart."""
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(60, 3, generator=generator) @ torch.randn(3, 40, generator=generator)
    pairs = torch.cartesian_prod(torch.arange(60), torch.arange(40))[torch.randperm(2400, generator=generator)]
    batches = [(chosen, truth[chosen[:, 0], chosen[:, 1]]) for _ in range(8) for chosen in pairs[:1600].split(64)]
    loop = Loop(Factors(), partial(torch.optim.SGD, lr=6.0), nn.functional.mse_loss)
    loop.run(batches)
    (incident, *_), unseen = loop.guard.incidents, pairs[1600:]
    assert told(incident) == [("start", ("rollback", "initialize", "backoff"), "kept")]
    assert nn.functional.mse_loss(loop.network(unseen), truth[unseen[:, 0], unseen[:, 1]]) < 0.2 * truth.var()


# -- other optimizers


def test_each_optimizer_is_told_whether_another_may_move_its_loss() -> None:
    """A critic's loss grows on and on as the actor gets sure of itself, in health."""
    networks = nn.ModuleList([classifier(1), classifier(2)])
    guard, optimizers = Guard(networks), [torch.optim.Adam(net.parameters(), lr=1e-3) for net in networks]
    for several in (False, True):
        for x, y in digits(3, size=32):
            for network, optimizer in list(zip(networks, optimizers, strict=True))[: 1 + several]:
                loss = nn.functional.cross_entropy(network(x), y)
                optimizer.zero_grad()
                loss.backward()
                guard.before_step(optimizer, loss=loss)
                optimizer.step()
        assert guard.attach(optimizers[0]).baseline.alone is not several


# -- a treatment that fails, and one that is kept


class Noisy(Net):
    """A linear regression with noise, whose rate rises so that the loss stands at a higher level."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx >= 200:
            self.trainer.optimizers[0].param_groups[0]["lr"] = 0.45


class Suspects(Detector):
    """Accuse the optimizer at one step."""

    name = "suspects"

    def judge(self, statistics: Any, baseline: Any) -> Verdict | None:
        return Verdict("state", self.name, 1.0, 1.0, "for a test") if statistics.step == 204 else None


def noisy(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(8, 1, generator=generator)
    inputs = [torch.randn(8, 8, generator=generator) for _ in range(count)]
    return [(x, x @ weights + 0.1 * torch.randn(8, 1, generator=generator)) for x in inputs]


def test_the_story_of_a_treatment_that_is_taken_back_and_of_one_that_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = GradGuard(detectors=[Suspects()])
    torch.manual_seed(0)
    module = Noisy(nn.Linear(8, 1), partial(torch.optim.SGD, lr=0.02))
    with caplog.at_level(logging.INFO, "lightning_gradguard"):
        trainer(tmp_path, callbacks=[guard]).fit(module, loader(noisy(400)))
    (incident,) = guard.incidents
    assert told(incident) == [
        ("optimizer", ("rollback",), "taken back"),
        ("optimizer", ("rollback", "backoff"), "kept"),
    ]
    first, second = incident.trials
    assert incident.step == first.opened == 204 and first.closed <= second.opened and second.closed == incident.closed
    assert second.after < first.after and incident.helped
    lines = [record.getMessage() for record in caplog.records if record.name == "lightning_gradguard"]
    assert any("incident 1 at step 204: state; skipped the step; on trial: rolled back" in line for line in lines)
    assert any("lowered the learning rate" in line for line in lines)
    assert f"incident 1 closed at step {incident.closed}: calm again after {incident.closed - 204} steps" in lines[-1]
    assert any("taken back at step" in line for line in lines[:-1]), "as soon as it is known"
    assert "taken back at step" not in lines[-1] and "kept" in lines[-1]
    assert all(len(line) <= LONGEST for line in lines)
    story = read_story(tmp_path / "gradguard.jsonl", tmp_path)
    assert story.headline.level == "good" and story.contents.incidents[-1].trials == incident.trials
    shown = render_text(story)
    assert "Incident 1 at step 204: state" in shown and "helped" in shown
    assert "taken back" in shown, "why the first was taken back"


def in_vain(rate: float = 0.08) -> tuple[Loop, list[Tensor], Any]:
    """A run whose targets become noise just before its optimizer is accused: neither treatment helps.

    Args:
        rate: The learning rate from then on, so far above that of before that it is a suspect too.

    Returns:
        The loop, the weights before the first treatment, and the report of the step at which all is taken back.
    """
    torch.manual_seed(0)
    loop = Loop(nn.Linear(8, 1), partial(torch.optim.SGD, lr=0.02), nn.functional.mse_loss)
    loop.guard = Guard(loop.network, detectors=[Suspects()])
    generator = torch.Generator().manual_seed(5)
    batches = [
        (x, y + (i >= 200) * 2.0 * torch.randn(y.shape, generator=generator)) for i, (x, y) in enumerate(noisy(400))
    ]
    loop.run(batches[:200])
    loop.optimizer.param_groups[0]["lr"] = rate
    loop.run(batches[200:204])
    before = [p.detach().clone() for p in loop.network.parameters()]
    for batch in batches[204:]:
        report = loop.step(batch)
        if report.decision is not None and (report.decision.resign or report.decision.cause == "new regime"):
            return loop, before, report
    raise AssertionError("it was given up at no step")


def test_treatments_that_made_it_worse_are_given_up_in_turn() -> None:
    loop, _, report = in_vain()
    (incident,) = loop.guard.incidents
    assert told(incident) == [
        ("optimizer", ("rollback",), "taken back"),
        ("optimizer", ("rollback", "backoff"), "taken back"),
    ]
    assert report.skipped and incident.helped is False and incident.closed == report.statistics.step
    assert all(trial.after > trial.trouble for trial in incident.trials)


def test_weights_of_before_are_restored_where_treatments_have_made_it_worse() -> None:
    loop, before, _ = in_vain()
    assert same(before, [p.detach() for p in loop.network.parameters()])


def test_a_rate_that_was_lowered_in_vain_is_given_back() -> None:
    assert in_vain()[0].track.remedies.lr_factor == 1.0


def test_what_weights_of_before_do_not_cure_at_a_rate_of_before_is_learned_anew_within_some_dozens_of_steps() -> None:
    loop, before, report = in_vain(rate=0.02)
    (incident,) = loop.guard.incidents
    assert report.decision.cause == "new regime" and report.statistics.step - incident.step < 24
    assert told(incident) == [("optimizer", ("rollback",), "taken back")]
    assert same(before, [p.detach() for p in loop.network.parameters()])


# -- healthy, and not like any other


class Diabetes(Net):
    """A regression on raw targets that begins at its solution."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(10, 1), partial(torch.optim.SGD, lr=0.05, momentum=0.9))


def at_its_solution() -> tuple[Diabetes, list[Batch]]:
    x, y = (torch.tensor(v, dtype=torch.float64) for v in load_diabetes(return_X_y=True))
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1).double()], 1), y[:, None]).solution
    module = Diabetes()
    with torch.no_grad():
        module.network.weight.copy_(solved[:-1].T)  # type: ignore[operator, union-attr]
        module.network.bias.copy_(solved[-1])  # type: ignore[operator, union-attr]
    chosen = [torch.randperm(len(x), generator=torch.Generator().manual_seed(i))[:64] for i in range(120)]
    return module, [(x[i].float(), y[i, None].float()) for i in chosen]


def train_on(root: Path, callbacks: list[Callback], *, epochs: int = 4, ckpt: Path | None = None) -> Any:
    module, batches = at_its_solution()
    fit = trainer(root, callbacks=callbacks, max_epochs=epochs)
    fit.fit(module, loader(batches), ckpt_path=ckpt, **(SAFELY if ckpt else {}))
    return fit


def test_a_regression_that_trains_on_at_its_solution_stays_bit_identical(tmp_path: Path) -> None:
    guard = GradGuard(journal=False)
    assert same(frozen_copy(train_on(tmp_path, [])), frozen_copy(train_on(tmp_path, [guard])))
    assert guard.incidents == ()


def test_a_regression_that_is_resumed_at_its_solution_stays_bit_identical(tmp_path: Path) -> None:
    train_on(tmp_path, [], epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    guard = GradGuard(journal=False)
    resumed = train_on(tmp_path, [guard], ckpt=tmp_path / "half.ckpt")
    assert same(frozen_copy(train_on(tmp_path, [])), frozen_copy(resumed))
    assert guard.incidents == ()


@pytest.mark.parametrize("kind", ["mse", "times fifty", "a margin"])
def test_a_loss_that_is_switched_is_never_stopped_and_no_slow_treatment_lasts(kind: str) -> None:
    cross, ways = nn.functional.cross_entropy, {}
    ways["mse"] = lambda x, y: 100.0 * nn.functional.mse_loss(x, nn.functional.one_hot(y, 10).float())
    ways["times fifty"] = lambda x, y: 50.0 * cross(x, y)
    ways["a margin"] = lambda x, y: nn.functional.multi_margin_loss(x, y, margin=20.0)
    loop = Loop(classifier(), partial(torch.optim.Adam, lr=1e-3))
    reports = loop.run(digits(300))
    loop.loss = ways[kind]
    reports += loop.run(digits(100, seed=1))
    assert not any(report.stop for report in reports)
    assert loop.track.treatment.trial is None and loop.track.remedies.lr_factor == 1.0
    reports = loop.run(digits(100, seed=2))
    assert not any(report.skipped for report in reports)
    assert sum(r.statistics.loss for r in reports[-20:]) < sum(r.statistics.loss for r in reports[:20])


# -- again and again


def test_a_sick_run_ends_with_the_same_bits_each_time() -> None:
    first, second = hundredfold(), hundredfold()
    for loop in (first, second):
        loop.run(digits(150))
    assert first.guard.incidents and same(first.state(), second.state())


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9, 15])
def test_a_run_that_is_cut_in_mid_trial_goes_on_as_if_it_had_not_been(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is usual of a witness is learned anew in a resumed run, and no decision hangs on it.
    monkeypatch.setattr(WitnessStand, "testify", lambda stand: ())
    batches, cut = digits(200), 0
    whole, resumed = hundredfold(), hundredfold()
    while not whole.guard.incidents:
        whole.step(batches[cut])
        cut += 1
    whole.run(batches[cut : cut + after])
    cut += after
    assert whole.guard.incidents[-1].closed is None and (after or whole.track.treatment.signal.looking is not None)
    saved = through_a_file(whole.state())
    whole.run(batches[cut:])
    resumed.load(saved)
    resumed.run(batches[cut:])
    assert same(whole.state(), resumed.state())
    assert whole.guard.incidents[0].trials and whole.guard.report() == resumed.guard.report()


def test_a_run_that_is_cut_while_its_layers_are_to_be_scaled_goes_on_as_if_it_had_not_been() -> None:
    def loud() -> Loop:
        network = classifier()
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(30.0)
        return Loop(network, partial(torch.optim.SGD, lr=0.1))

    batches, cuts = digits(60), []
    for cut in range(2, 8):
        whole, resumed = loud(), loud()
        whole.run(batches[:cut])
        cuts.append(whole.track.remedies["initialize"].at_work)
        resumed.load(through_a_file(whole.state()))
        for loop in (whole, resumed):
            loop.run(batches[cut:])
        assert same(whole.state(), resumed.state())
    assert any(cuts), "one of them comes between the drawing and the scaling"


def test_nothing_is_left_on_the_module_of_a_run_that_ends_before_its_layers_are_scaled() -> None:
    network = classifier()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(30.0)
    loop = Loop(network, partial(torch.optim.SGD, lr=0.1))
    while not loop.track.remedies["initialize"].at_work:
        loop.step(digits(1)[0])
    loop.guard.close()
    assert not any(layer._forward_hooks for layer in network.modules())


@pytest.mark.parametrize("norm", [True, False])
def test_weights_that_somebody_has_multiplied_are_no_new_regime(norm: bool) -> None:
    """All layers at once, so that none stands out: no update can have carried them so far."""
    loop = Loop(mlp(norm=norm), partial(torch.optim.AdamW, lr=0.01), nn.functional.mse_loss)
    loop.guard = Guard(loop.network)
    batches = regression(160)
    loop.run(batches[:100])
    with torch.no_grad():
        for p in loop.network.parameters():
            p.mul_(100.0)
    loop.run(batches[100:])
    (incident,) = loop.guard.incidents
    assert told(incident) == [("unknown", ("rollback",), "kept")] and incident.helped


def test_a_layer_that_was_redrawn_at_the_start_is_judged_by_what_it_is_now() -> None:
    """How the signal grew in the weights that were there before says nothing of it."""
    network = classifier()
    with torch.no_grad():
        network[2].weight.fill_(30.0)  # type: ignore[operator, union-attr]
    loop = Loop(network, partial(torch.optim.SGD, lr=0.05))
    loop.run(digits(120))
    (incident,) = loop.guard.incidents
    assert told(incident) == [("layer", ("reinitialize",), "kept")] and incident.culprit == "2"


def test_a_start_is_repaired_as_a_whole_where_mending_one_layer_leaves_the_signal_to_die() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64) for _ in range(5)]
    network = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Linear(64, 10))
    with torch.no_grad():
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
        layers[1].weight.mul_(1e-4)
        layers[4].weight.mul_(1e6)
    loop = Loop(network, partial(torch.optim.SGD, lr=0.02))
    loop.run(digits(300))
    (incident,) = loop.guard.incidents
    assert [(t.treatment, t.outcome) for t in incident.trials] == [
        (("reinitialize",), "taken back"),
        (("rollback", "initialize", "backoff"), "kept"),
    ]
    reasons = [action.verdict.reason for action in incident.actions]
    assert any("after reinitialize the signal dies on its way" in reason for reason in reasons)
    (x, y), *_ = digits(1, size=1000, seed=9)
    assert float((loop.network(x).argmax(1) == y).float().mean()) > 0.9


@pytest.mark.parametrize(("ratio", "start"), [(2.0, True), (0.5, False)])
def test_weights_that_the_first_updates_have_replaced_are_no_beginning_to_keep(ratio: float, start: bool) -> None:
    loop = Loop(classifier(), partial(torch.optim.SGD, lr=0.1))
    loop.run(digits(60))
    known = loop.track.baseline
    assert known.losses.learned and not loop.track.treatment.replaced(known)
    known.updates.first_ratio = ratio
    assert loop.track.treatment.replaced(known) is start
    loop.run(digits(40))
    assert not loop.track.treatment.replaced(known), "by now they are the run's own, whatever they began with"
