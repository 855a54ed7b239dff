"""Published figures: the very checks of `make golden`, and that they would notice."""

from dataclasses import replace

import pytest

from benchmarks.golden.checks import FAMILIES, Check
from tests.phone_traces import shared


@pytest.mark.parametrize("family", ["toy", "phone", "paper"])
def test_every_published_figure_is_ours(family):
    """The toy's counts; the phone's hit rates, curves, bytes and times; the paper's replay over ten seeds."""
    checks = list(FAMILIES[family](shared()))
    assert len(checks) >= 13
    assert [str(check) for check in checks if check.fails] == []


def test_a_check_holds_to_its_tolerance():
    check = Check("hit_percent", 74.96, 74.9, 0.05)
    assert not check.agrees
    assert check.fails
    assert str(check) == "hit_percent 74.96 74.9+-0.05"
    assert not replace(check, value=74.95).fails
    assert not replace(check, value=74.85).fails
    limit = Check("error_percent", 10.1, 10, relation="at most")
    assert limit.fails
    assert str(limit) == "error_percent 10.1 <=10"
    assert not replace(limit, value=3).fails


def test_a_known_shortfall_says_why_and_fails_when_it_is_gone():
    known = Check("error_percent", 55, 10, relation="at most", shortfall="page faults decide")
    assert not known.fails
    assert not known.agrees
    assert str(known).endswith("<=10 known shortfall: page faults decide")
    assert replace(known, value=9).fails
