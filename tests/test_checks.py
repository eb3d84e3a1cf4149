from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gradguard import checks


@given(st.floats(allow_nan=False), st.floats(-1e6, 1e6))
def test_a_number_is_accepted_exactly_when_within_its_bounds(value: float, bound: float) -> None:
    for keyword, good in (("above", value > bound), ("least", value >= bound), ("most", value <= bound)):
        if good:
            assert checks.number("rate", value, **{keyword: bound}) == value
        else:
            with pytest.raises(ValueError, match="rate must be"):
                checks.number("rate", value, **{keyword: bound})


@pytest.mark.parametrize("value", [math.nan, True, "3", None, [1.0], 1j])
def test_what_is_no_number_is_refused_whatever_the_bounds(value: object) -> None:
    with pytest.raises(ValueError, match="must be") as error:
        checks.number("rate", value)  # type: ignore[arg-type]
    assert str(error.value) == f"rate must be a number, got {value!r}"


def test_message_names_parameter_constraint_and_value() -> None:
    with pytest.raises(ValueError, match=r"^min_factor must be > 0 and <= 1, got 2$"):
        checks.number("min_factor", 2, above=0.0, most=1.0)
    with pytest.raises(ValueError, match=r"^patience must be a whole number >= 1, got 0$"):
        checks.whole("patience", 0, least=1)
    with pytest.raises(ValueError, match=r"^mode must be one of 'a', 'b', got 'c'$"):
        checks.choice("mode", "c", ("a", "b"))


def test_infinity_is_a_number_only_without_an_upper_bound() -> None:
    assert checks.number("factor", math.inf, above=1.0) == math.inf
    with pytest.raises(ValueError, match="got inf"):
        checks.number("factor", math.inf, above=0.0, most=1.0)


@pytest.mark.parametrize("value", [1.0, True, "1", None, -1])
def test_whole_takes_natural_numbers_only(value: object) -> None:
    with pytest.raises(ValueError, match="patience must be a whole number >= 0"):
        checks.whole("patience", value)  # type: ignore[arg-type]


def test_instances_refuses_strangers_and_namesakes() -> None:
    class Named:
        name = "twin"

    with pytest.raises(ValueError, match="must hold instances of Named, got 3"):
        checks.instances("things", [3], Named)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="two of the same name, got 'twin' twice"):
        checks.instances("things", [Named(), Named()], Named)
    given_list = [Named()]
    assert checks.instances("things", given_list, Named) == given_list
    assert checks.instances("things", given_list, Named) is not given_list


def test_of_a_value_that_would_fill_the_screen_the_beginning_is_shown_on_one_line() -> None:
    for value in ("a\n" * 500, list(range(1000))):
        with pytest.raises(ValueError, match=r"\.\.\.$") as error:
            checks.instances("parts", [value], dict)
        assert "\n" not in str(error.value) and len(str(error.value)) < 200
