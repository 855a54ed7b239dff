import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.reporting.text import interval, listed, number, percent, points, signed, size


@given(st.floats(-1, 1))
def test_a_percentage_is_the_share_rounded_to_a_tenth_of_a_point(share: float):
    text = percent(share)
    assert text.endswith("\u00a0%")
    assert float(text[:-2]) == pytest.approx(100 * share, abs=0.0501)


@given(st.floats(1e-9, 1e12))
def test_a_number_keeps_three_digits(value: float):
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.006)


@given(st.integers(-(10**9), 10**9))
def test_counts_are_written_in_full(value: int):
    assert int(number(value).replace(",", "")) == value


@pytest.mark.parametrize(
    ("value", "text"), [(19.04, "19.0"), (0.26, "0.260"), (1235.4, "1,235"), (0.00042, "4.20e-04"), (None, "\u2013")]
)
def test_numbers_of_one_column_have_the_same_digits(value: float | None, text: str):
    assert number(value) == text


@given(st.floats(0, 1e13))
def test_a_size_in_its_unit_is_the_number_of_bytes(num_bytes: float):
    value, unit = size(num_bytes).split("\u00a0")
    power = ("B", "KiB", "MiB", "GiB").index(unit)
    assert math.isclose(float(value) * 1024**power, num_bytes, rel_tol=0.006, abs_tol=0.51)


def test_signs_are_real_minus_signs():
    assert signed(-0.0123) == "\u22121.23"
    assert points(0.05).startswith("+5.0")
    assert interval(-0.01, 0.02, 2) == "[\u22121.00,\u00a02.00]"
    assert interval(None, 0.2) == ""


def test_lists_end_in_and():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([str(i) for i in range(9)], 3) == "0, 1, 2 and 6 more"
