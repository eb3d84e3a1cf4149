"""What all witnesses promise: no number of the run changes, a failure is told once, and hooks do not stay."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from lightning_gradguard import GradGuard, Guard, records
from lightning_gradguard.diagnostics import read_journal, scalars
from lightning_gradguard.witnesses import AttentionLogits, RouterLoad, Witness
from lightning_gradguard.witnesses.stand import LEAST_KNOWN, WitnessStand
from tests.builders import Net, frozen_copy, loader, mlp, regression, same, trainer
from tests.diagnostics.examples import window
from tests.witnesses.scenes import Attending, batches, train

ALL = [AttentionLogits(), RouterLoad(modules=["router"])]


def hooks(module):
    return [hook for child in module.modules() for hook in child._forward_hooks]


@pytest.mark.parametrize("mode", ["guard", "halt", "watch"])
def test_weights_are_bit_identical_with_and_without(mode):
    found = []
    for witnesses in ([], ALL):
        torch.manual_seed(0)
        network = Attending()
        network.experts[0].register_forward_hook(lambda m, a, o: nn.functional.dropout(o, 0.1))
        torch.manual_seed(5)
        _, windows = train(network, batches(120), witnesses=witnesses, mode=mode)
        found.append({name: p.clone() for name, p in network.state_dict().items()})
    assert same(*found)
    assert windows.of("attention_logit") and windows.of("router_load")


def test_a_run_of_lightnings_is_bit_identical_and_its_record_tells(tmp_path):
    found = []
    for witnesses in (None, ALL):
        torch.manual_seed(0)
        net = Net(Attending(), lambda p: torch.optim.AdamW(p, lr=1e-3))
        guard = [] if witnesses is None else [GradGuard(witnesses=witnesses, log_every=5)]
        run = trainer(tmp_path, callbacks=guard, accumulate_grad_batches=2, max_epochs=2)
        run.fit(net, loader(batches(80)), loader(batches(3)))
        found.append(frozen_copy(run))
        # What Lightning has saved of the callback can be loaded, and holds no hook.
        assert hooks(net) == []
    assert same(*found)


class Failing(Witness):
    name = "failing"

    def take(self, window):
        raise RuntimeError("it cannot see")


class BadHook(AttentionLogits):
    name = "bad_hook"

    def read(self, module, args, kwargs, output):
        raise RuntimeError("a hook that fails")


@pytest.mark.parametrize(("witness", "why"), [(Failing(), "it cannot see"), (BadHook(), "a hook that fails")])
def test_one_that_fails_is_told_of_once_and_then_silent(witness, why):
    network = Attending()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guard, windows = train(network, batches(60), witnesses=[witness])
    told = [str(one.message) for one in caught if "silent from now on" in str(one.message)]
    assert len(told) == 1 and why in told[0] and type(witness).__name__ in told[0]
    assert windows.of("update_ratio") and windows.of("second_moment") and not windows.of(witness.name)
    assert hooks(network) == [] and guard.incidents == ()


@pytest.mark.parametrize(
    ("network", "witness", "why"),
    [
        (mlp(), RouterLoad(modules=["nowhere*"]), "no module is one of nowhere"),
        (torch.compile(mlp(), backend="eager"), RouterLoad(modules=["0"]), "is compiled"),
    ],
)
def test_it_says_where_there_is_nothing_to_see(network, witness, why):
    with pytest.warns(RuntimeWarning, match=why):
        train(network, regression(10), witnesses=[witness])
    assert hooks(network) == []


def test_hooks_are_in_place_in_one_step_of_a_window_only():
    network, seen = Attending(), []
    inner = network.head.register_forward_pre_hook(lambda *_: seen.append(len(hooks(network))))
    train(network, batches(120), witnesses=ALL, log_every=10)
    inner.remove()
    assert max(seen[60:]) == 2 and sum(map(bool, seen[-60:])) == 6 and hooks(network) == []


def test_validation_between_micro_batches_is_not_heard():
    network, witness = Attending(), RouterLoad(modules=["router"])
    witness.arm(network, network.parameters())
    with torch.no_grad():
        network(torch.randn(2, 3, 16))
    assert not witness._largest
    network(torch.randn(2, 3, 16))
    assert list(witness._largest) == ["router"]
    witness.disarm()


def test_a_guard_in_mid_forward_is_copied_pickled_and_closed():
    network = Attending()
    guard, _ = train(network, batches(3), witnesses=ALL)
    guard.before_forward(None, 3)
    assert len(hooks(network)) == 2
    copied = copy.deepcopy(guard)
    assert not any(track.witnesses.armed for track in copied._tracks)
    assert len(pickle.loads(pickle.dumps(ALL))) == 2
    guard.close()
    assert hooks(network) == []


def test_a_module_that_another_optimizer_trains_is_that_ones_business():
    network = nn.ModuleDict({"one": Attending(), "two": Attending()})
    witness = AttentionLogits()
    witness.arm(network, network["two"].parameters())
    assert len(hooks(network["one"])) == 0 and len(hooks(network["two"])) == 1
    witness.disarm()


class Told(Witness):
    """Say what it was given."""

    name, times, least, beyond = "told", 3.0, 1.0, 100.0

    def __init__(self, values=()):
        self.values = list(values)

    def take(self, window):
        return dict(zip("ab", self.values.pop(0), strict=False)) if self.values else {}


def stand(*values, calm=lambda index: True):
    made = WitnessStand([Told(values)])
    for index in range(len(values)):
        made.hear(window(), calm=calm(index))
    return made.testify()


def test_evidence_is_what_left_its_own_usual_level():
    usual = [(1.0, 20.0)] * LEAST_KNOWN
    assert stand(*usual, (1.0, 20.0), (1.1, 21.0)) == ()
    assert stand(*usual, (1.0, 20.0), (9.0, 21.0)) == (records.Testimony("told", 9.0, "a", 1.0),), "of b more is usual"
    assert stand((1.0,), (9.0,)) == (), "too little is known"
    assert stand((120.0,)) == (records.Testimony("told", 120.0, "a", None),), "beyond what any run has"
    nan = stand(*usual, (1.0, 20.0), (math.nan, 20.0))
    assert nan[0].where == "a" and math.isnan(nan[0].value)


def test_what_an_incident_sees_is_never_usual():
    trouble = [(9.0,)] * (2 * LEAST_KNOWN)
    values = [(1.0,)] * (LEAST_KNOWN + 2) + trouble
    [told] = stand(*values, calm=lambda index: index <= LEAST_KNOWN + 1)
    assert told.usual == 1.0


def test_scalars_and_a_journal_tell_of_them(tmp_path):
    from lightning_gradguard.diagnostics import Journal

    seen = (records.Testimony("update_ratio", 0.01, "fc"), records.Testimony("second_moment", math.inf, "fc.weight"))
    told = window(witnessed=seen)
    assert scalars(told)["gradguard/update_ratio"] == 0.01 and "gradguard/second_moment" not in scalars(told)
    assert scalars(told, 1)["gradguard/optimizer_1/update_ratio"] == 0.01
    journal = Journal(tmp_path)
    journal.window(told)
    journal.close()
    [back] = read_journal(journal.path).windows
    assert back.witnessed == seen and back.number("second_moment") == math.inf
    old = journal.path.read_text().replace('"witnessed"', '"unheard_of"')
    journal.path.write_text(old)
    contents = read_journal(journal.path)
    assert contents.problems == [] and contents.windows[0].witnessed == ()
    assert math.isnan(contents.windows[0].number("update_ratio"))


def test_witnesses_are_checked_when_a_guard_is_made():
    with pytest.raises(ValueError, match="witnesses"):
        Guard(mlp(), witnesses=[3])
    assert "router_load" in repr(Guard(mlp(), witnesses=ALL)) and "witnesses" not in repr(Guard(mlp()))


def test_a_witness_shows_itself_as_it_is_constructed() -> None:
    assert repr(RouterLoad()) == "RouterLoad()"
