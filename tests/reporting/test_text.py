import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.reporting.text import bounds, charged, listed, number, percent, plain, points, signed, spread, token


@given(st.floats(0, 1))
def test_a_percentage_is_the_share(share):
    text = percent(share)
    assert text.endswith("\u00a0%")
    assert float(text[:-2]) == pytest.approx(100 * share, abs=0.0501)


@given(st.floats(1e-9, 1e12))
def test_a_number_keeps_three_digits(value):
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.006)


@given(st.integers(-(10**9), 10**9))
def test_counts_are_written_in_full(value):
    assert int(number(value).replace(",", "").replace("\u2212", "-")) == value


def test_numbers_of_one_column_have_the_same_digits():
    written = {19.04: "19.0", 0.26: "0.260", 1235.4: "1,235", 0.00042: "4.20e-04", None: "\u2013"}
    assert {value: number(value) for value in written} == written


def test_signs_are_real_minus_signs():
    assert signed(-1.234) == "\u22121.23"
    assert signed(1.234) == "+1.23"
    assert points(-0.0123) == "\u22121.2\u00a0points"
    assert percent(-0.5) == "\u221250.0\u00a0%"


def test_an_interval_stands_beside_its_value_where_the_row_has_one():
    row = {"ms": 42.2, "ms_low": 41.7, "ms_high": 42.8, "hits": 0.5}
    assert bounds(row, "ms") == "[41.7,\u00a042.8]"
    assert spread("ms")(row) == "42.2 [41.7,\u00a042.8]"
    assert spread("hits", percent)(row) == "50.0\u00a0%"


def test_a_charged_latency_names_the_steps_that_are_charged():
    assert charged({"token_step_ms": 0.0, "layer_step_ms": 0.0}) == "\u2013"
    assert charged({"token_step_ms": 0.2, "layer_step_ms": 0.0}) == "0.200\u00a0a\u00a0token"
    both = charged({"token_step_ms": 0.2, "layer_step_ms": 0.05, "break_even_token_step_ms": 4.5})
    assert both.replace("\u00a0", " ") == "0.200 a token, 0.0500 a layer, break\u2011even 4.50 a token"


def test_a_fact_is_a_share_where_its_name_says_so():
    assert plain("budget.lru_hit_rate", 0.4) == "40.0\u00a0%"
    assert plain("model_mib", 11.25) == "11.2"
    assert plain("privacy", None) == "\u2013"


def test_lists_end_in_and():
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([str(i) for i in range(9)], 3) == "0, 1, 2 and 6 more"


def test_blanks_of_a_token_can_be_seen():
    assert token("\u0120the\n") == "\u2423the\u23ce"
    assert token(None) == "\u2013"
