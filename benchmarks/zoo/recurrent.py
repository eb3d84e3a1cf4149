"""Recurrent nets: one matrix applied many times, where explosions were first described (Bengio et al., 1994)."""

from __future__ import annotations

from benchmarks.zoo.case import Event, Learner, Task, adam, case, classify, foreign, rmsprop, sgd, when
from benchmarks.zoo.data import digits
from benchmarks.zoo.models import Recurrent

CAUSE = "recurrence"


def grow_recurrent(factor: float) -> Event:
    """Multiply the recurrent matrix."""

    def happen(module: Learner) -> None:
        assert isinstance(module.net, Recurrent)
        module.net.recurrent_weight.mul_(factor)

    return happen


@case(cause=CAUSE, form="sudden", architecture="RNN", optimizer="Adam", culprit=["net.rnn"])
def rnn_recurrent_matrix_grows(seed: int, sick: bool) -> Task:
    """The recurrent matrix of a ReLU RNN jumps by 20 in the middle of the run."""
    events = when(sick, {200: grow_recurrent(20.0)})
    return classify(Recurrent("relu", 8, 32, 10), digits(), seed, adam(3e-3), events=events)


@case(cause=CAUSE, form="cold-start", architecture="LSTM", optimizer="RMSprop")
def lstm_rate_100x(seed: int, sick: bool) -> Task:
    """An LSTM under RMSprop at a hundred times the sane rate."""
    return classify(Recurrent("lstm", 8, 32, 10), digits(), seed, rmsprop(0.5 if sick else 5e-3))


@case(cause=CAUSE, form="sudden", architecture="GRU", optimizer="SGD", steps=400)
def gru_batches_scaled(seed: int, sick: bool) -> Task:
    """Sixty foreign batches in a row saturate the gates: a stretch, not a spike."""
    bad = when(sick, {k: foreign(50.0) for k in range(330, 390)})
    return classify(Recurrent("gru", 8, 32, 10), digits(), seed, sgd(0.1), corrupt=bad)


@case(cause=CAUSE, form="sudden", architecture="RNN", optimizer="SGD", steps=500)
def rnn_sgd_rate_30x(seed: int, sick: bool) -> Task:
    """The classic: SGD at too bold a rate falls off a cliff of a recurrent net's loss."""
    return classify(Recurrent("relu", 8, 32, 10), digits(), seed, sgd(0.6 if sick else 0.02))
