"""What an alarm means is said in one place."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lightning_gradguard.attribution.cause import FEW_LAYERS, Cause, cause_of, in_order
from lightning_gradguard.attribution.reading import LayerReading, worst
from lightning_gradguard.attribution.signal import ALIKE, WILD, Signal, signal
from lightning_gradguard.records import Form, Suspect, Verdict

BATCH = Suspect("batch", 1.0, "x")
LAYERS = [Suspect(f"net.{i}", 3.0 - i, "x") for i in range(FEW_LAYERS + 1)]
BROKEN = [Suspect(f"net.{i}", math.inf, "x", broken=True) for i in range(FEW_LAYERS + 1)]
SOUND, UNSOUND = Signal(1.0, 1.0, 0.5), Signal(1.0, 1e6, 0.5)
FORMS: list[Form] = ["sudden", "drift", "non-finite", "overflow", "cold-start", "divergence", "state", "vanishing"]


def cause(form: Form, *blame: Suspect, start: bool = False, large: bool = False, seen: Signal | None = None) -> Cause:
    return cause_of(Verdict(form, "test", 2.0, 1.0, "x"), blame, start=start, large=large, signal=seen)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_a_corrupt_batch_explains_everything_else(form: Form, start: bool, large: bool) -> None:
    assert cause(form, BATCH, *LAYERS, start=start, large=large, seen=UNSOUND) is Cause.BATCH


def test_whom_the_cause_speaks_of_is_the_culprit() -> None:
    loss, act = Suspect("loss function", 44.0, "x", part="loss"), Suspect("net.1", 9.0, "x", part="activation")
    mixed = (loss, act, LAYERS[0], BATCH)
    first = {cause: in_order(mixed, cause.value)[0] for cause in Cause}
    assert first[Cause.LAYER] is LAYERS[0] and first[Cause.ACTIVATION] is act and first[Cause.BATCH] is BATCH
    assert first[Cause.LOSS] is first[Cause.UNKNOWN] is in_order(mixed, "")[0] is loss


@pytest.mark.parametrize("form", FORMS)
def test_one_or_two_layers_are_at_fault_by_themselves(form: Form) -> None:
    wanted = Cause.OPTIMIZER if form == "state" else Cause.LAYER
    for count in range(1, FEW_LAYERS + 1):
        assert cause(form, *LAYERS[:count]) is wanted
        assert cause(form, *LAYERS[:count], start=True, large=True) is wanted


def test_updates_that_replace_weights_move_layers_about_unless_these_are_broken_or_the_run_is_fresh() -> None:
    assert cause("sudden", LAYERS[0], large=True) is Cause.RATE
    assert cause("sudden", BROKEN[0], large=True) is Cause.LAYER
    assert cause("sudden", LAYERS[0], large=True, start=True) is Cause.LAYER


def test_many_layers_that_stand_out_in_a_fresh_run_are_its_initialisation() -> None:
    assert cause("divergence", *LAYERS, start=True) is Cause.START
    assert cause("divergence", *LAYERS) is Cause.RATE
    assert cause("sudden", *LAYERS) is Cause.UNKNOWN


def test_many_layers_that_are_broken_were_broken_by_an_update() -> None:
    assert cause("non-finite", *BROKEN, large=True) is Cause.RATE
    assert cause("non-finite", *BROKEN) is Cause.UNKNOWN


@pytest.mark.parametrize(("seen", "wanted"), [(UNSOUND, Cause.START), (SOUND, Cause.RATE), (None, Cause.RATE)])
def test_the_signal_of_a_fresh_network_tells_a_bad_start_from_a_bad_rate(seen: Signal | None, wanted: Cause) -> None:
    assert cause("divergence", start=True, seen=seen) is wanted
    assert cause("divergence", seen=seen) is Cause.RATE, "of a trained one it tells nothing"


@pytest.mark.parametrize(
    ("form", "large", "wanted"),
    [
        ("cold-start", False, Cause.START),
        ("sudden", True, Cause.RATE),
        ("sudden", False, Cause.UNKNOWN),
        ("non-finite", True, Cause.RATE),
        ("non-finite", False, Cause.UNKNOWN),
        ("drift", True, Cause.UNKNOWN),
        ("state", True, Cause.OPTIMIZER),
    ],
)
def test_where_nobody_is_blamed_the_form_and_the_size_of_updates_speak(form: Form, large: bool, wanted: Cause) -> None:
    assert cause(form, large=large) is wanted


# -- the signal


@pytest.mark.parametrize(
    ("source", "growth", "variation", "expected"),
    [
        (1.0, 1.0, 0.5, True),
        (1.0, 1.0, None, True),
        (1.1 * WILD, 1.0, 0.5, False),  # raw inputs
        (0.9 / WILD, 1.0, 0.5, False),
        (1.0, 1.1 * WILD, 0.5, False),
        (1.0, 1.0, 0.5 * ALIKE, False),  # all samples become alike
        (1.0, math.inf, 0.5, False),
        (math.nan, 1.0, 0.5, False),
    ],
)
def test_a_sound_signal_is_of_the_order_of_one_and_differs_from_sample_to_sample(
    source: float, growth: float, variation: float | None, expected: bool
) -> None:
    assert Signal(source, growth, variation).sound is expected


def reading(order: int, into: float | None, out: float | None, *, norm: str | None = None) -> LayerReading:
    gain = None if into is None or out is None else out / into
    return LayerReading(
        *(
            f"net.{order}",
            "linear",
            order,
            into,
            out,
            gain,
            None,
            None,
            True,
            True,
            None,
            None,
            norm,
            3e38,
            0.1 * order,
        ),
        largest_in=into,
    )


def test_a_signal_is_measured_from_the_first_input_to_the_largest_output() -> None:
    seen = signal((reading(1, 2.0, 6.0), reading(2, 6.0, 4.0)))
    assert (seen.source, seen.growth, seen.variation) == (2.0, 3.0, pytest.approx(0.2))


def test_of_several_calls_the_largest_input_is_the_source() -> None:
    seen = signal((worst([reading(1, 1.0, 9.0), reading(1, 100.0, 300.0)]), reading(2, 9.0, 300.0)))
    assert (seen.source, seen.growth) == (100.0, 3.0)


def test_what_a_normalisation_takes_in_may_be_of_any_size() -> None:
    assert signal((reading(1, 1.0, 1e6, norm="net.2"), reading(3, 1.0, 2.0))).growth == 2.0


@pytest.mark.parametrize(("varies", "growth"), [(1e-5, 1.0), (0.2, 1e5), (None, 1e5)])
def test_a_constant_that_is_added_to_all_samples_is_no_signal(varies: float | None, growth: float) -> None:
    """A bias that was set to the mean of the targets; only what is known to be constant is left out."""
    last = dataclasses.replace(reading(2, 1.0, 1e5), variation=varies)
    assert signal((reading(1, 1.0, 1.0), last)).growth == pytest.approx(growth)


def test_small_inputs_may_grow_to_the_order_of_one() -> None:
    assert signal((reading(1, 1e-3, 1.0),)).growth == 1.0


def test_an_embedding_takes_no_signal_in() -> None:
    assert signal((reading(1, None, 3.0),)).source == 1.0


def test_an_output_that_overflows_grows_without_bound() -> None:
    assert signal((reading(1, 1.0, math.inf),)).growth == math.inf
    assert signal((reading(1, 1.0, math.nan),)).growth == math.inf


def test_of_nothing_nothing_bad_is_said() -> None:
    assert signal(()).sound
