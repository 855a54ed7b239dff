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
    assert float(number(value).replace(",", "").replace("\u2212", "-")) == pytest.approx(value, rel=0.006)


@given(st.integers(-(10**9), 10**9))
def test_counts_are_written_in_full(value):
    assert int(number(value).replace(",", "").replace("\u2212", "-")) == value


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        # numbers of one column have the same digits
        ([number(value) for value in (19.04, 0.26, 1235.4)], ["19.0", "0.260", "1,235"]),
        ([number(value) for value in (0.00042, None)], ["4.20e\u221204", "\u2013"]),
        # signs are real minus signs
        ((signed(-1.234), signed(1.234)), ("\u22121.23", "+1.23")),
        ((points(-0.0123), percent(-0.5)), ("\u22121.2\u00a0points", "\u221250.0\u00a0%")),
        # an interval stands beside its value where the row has one
        (bounds({"ms_low": 41.7, "ms_high": 42.8}, "ms"), "[41.7,\u00a042.8]"),
        (spread("ms")({"ms": 42.2, "ms_low": 41.7, "ms_high": 42.8}), "42.2 [41.7,\u00a042.8]"),
        (spread("hits", percent)({"hits": 0.5}), "50.0\u00a0%"),
        # a fact is a share where its name says so
        (plain("budget.lru_hit_rate", 0.4), "40.0\u00a0%"),
        ((plain("model_mib", 11.25), plain("privacy", None)), ("11.2", "\u2013")),
        ((listed(["a"]), listed(["a", "b", "c"])), ("a", "a, b and c")),
        (listed([str(i) for i in range(9)], 3), "0, 1, 2 and 6 more"),
        # blanks of a token can be seen
        ((token("\u0120the\n"), token(None)), ("\u2423the\u23ce", "\u2013")),
        # a charged latency names the steps that are charged
        (charged({"token_step_ms": 0.0, "layer_step_ms": 0.0}), "\u2013"),
        (charged({"token_step_ms": 0.2, "layer_step_ms": 0.0}), "0.200\u00a0a\u00a0token"),
    ],
)
def test_what_stands_in_cells_is_written_as_here(written, expected):
    assert written == expected


def test_a_charged_latency_stands_beside_the_one_at_which_it_breaks_even():
    both = charged({"token_step_ms": 0.2, "layer_step_ms": 0.05, "break_even_token_step_ms": 4.5})
    assert both.replace("\u00a0", " ") == "0.200 a token, 0.0500 a layer, break\u2011even 4.50 a token"
