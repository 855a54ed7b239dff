"""What others wrote is no formula in a CSV file, and is read back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.cells import GUARD, guarded, plain

FORMULAS = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", GUARD + "=1", "'=1", "a", "", GUARD, GUARD + "a"]


@given(st.one_of(st.text(), st.sampled_from(FORMULAS).flatmap(lambda start: st.text().map(lambda rest: start + rest))))
def test_any_text_comes_back_and_begins_no_formula(text):
    assert plain(guarded(text)) == text
    assert not guarded(text).startswith(tuple("=+-@\t\r\n"))


@pytest.mark.parametrize("text", ["'=1", "'-", "a=1", "word", ""])
def test_other_texts_stay_as_they_are(text):
    assert (guarded(text), plain(text)) == (text, text)
