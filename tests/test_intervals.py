import numpy as np
import pytest

from moe_beyond.intervals import Ratio, Resamples


def test_a_paired_difference_is_surer_than_two_intervals():
    draw = np.random.default_rng(0)
    accesses = np.full(200, 100)
    easy = draw.integers(10, 90, 200)
    a, b = Ratio(easy + 5, accesses), Ratio(easy, accesses)
    resamples = Resamples.draw(200, 2000, seed=1)
    difference = resamples.difference(a, b)
    assert (difference.low, difference.value, difference.high) == pytest.approx((0.05, 0.05, 0.05))
    alone = resamples.ratio(b)
    assert alone.high - alone.low > 0.03


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(5)
    accesses = np.full(80, 50)
    covered = 0
    for trial in range(200):
        interval = Resamples.draw(80, 400, seed=trial).ratio(Ratio(draw.binomial(50, 0.4, 80), accesses))
        covered += interval.low <= 0.4 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("accesses", [[10], [10, 0]])
def test_one_prompt_gives_no_interval(accesses):
    interval = Resamples.draw(len(accesses), 100, seed=0).ratio(Ratio(np.array(accesses) * 0.3, np.array(accesses)))
    assert (interval.low, interval.value, interval.high) == (None, pytest.approx(0.3), None)
    assert not interval.below(1)
    assert not interval.above(0)


def test_a_ratio_of_any_two_sums_has_its_interval_and_nothing_over_nothing_is_0():
    resamples = Resamples.draw(4, 500, 0)
    ms_P, tokens_P = np.array([4.0, 30.0, 0.0, 8.0]), np.array([2, 10, 0, 2])
    slow = resamples.ratio(Ratio(ms_P, tokens_P))
    assert slow.value == 3
    assert 2 <= slow.low < 3 < slow.high <= 4
    assert resamples.difference(Ratio(ms_P, tokens_P), Ratio(2 * ms_P, tokens_P)).value == -3
    assert resamples.ratio(Ratio(np.zeros(4), np.zeros(4, np.int64))).value == 0
