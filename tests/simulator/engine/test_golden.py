"""Published figures: the very checks of `make golden`, and that they would notice."""

import pytest

from benchmarks.golden.check import Check
from benchmarks.golden.checks import FAMILIES
from tests.phone_traces import shared


@pytest.mark.parametrize("family", ["toy", "phone", "paper"])
def test_every_published_figure_is_ours(family):
    """The toy's counts; the phone's hit rates, curves, bytes and times; the paper's replay over ten seeds."""
    checks = list(FAMILIES[family](shared()))
    assert len(checks) >= 13
    assert [str(check) for check in checks if check.fails] == []


@pytest.mark.parametrize(
    ("check", "fails", "text"),
    [
        (Check("hit", 74.96, 74.9, 0.05), True, "hit 74.96 74.9+-0.05"),
        (Check("hit", 74.95, 74.9, 0.05), False, "hit 74.95 74.9+-0.05"),
        (Check("hit", 74.85, 74.9, 0.05), False, "hit 74.85 74.9+-0.05"),
        (Check("error", 10.1, 10, relation="at most"), True, "error 10.1 <=10"),
        (Check("error", 3, 10, relation="at most"), False, "error 3 <=10"),
        # a known shortfall says why, and fails when it is gone
        (Check("error", 55, 10, relation="at most", shortfall="slow"), False, "error 55 <=10 known shortfall: slow"),
        (Check("error", 9, 10, relation="at most", shortfall="slow"), True, "error 9 <=10 known shortfall: slow"),
    ],
)
def test_a_check_holds_to_its_tolerance_and_a_known_shortfall_to_its_existence(check, fails, text):
    assert (check.fails, str(check)) == (fails, text)
    assert check.agrees == (fails == bool(check.shortfall))
