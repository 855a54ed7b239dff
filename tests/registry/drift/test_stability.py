import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.registry.drift.stability import chance_psi, psi_L


def test_the_index_is_that_of_its_definition():
    new, old = np.array([[30, 70]]), np.array([[50, 50]])
    p, q = np.array([30.5, 70.5]) / 101, np.array([50.5, 50.5]) / 101
    assert psi_L(new, old)[0] == pytest.approx(float(((p - q) * np.log(p / q)).sum()))


@given(st.lists(st.integers(0, 1000), min_size=16, max_size=16))
def test_it_is_symmetric_never_negative_and_zero_for_the_same_usage(counts):
    a_LE, b_LE = np.array(counts).reshape(2, 2, 4)
    assert psi_L(a_LE, b_LE) == pytest.approx(psi_L(b_LE, a_LE))
    assert (psi_L(a_LE, b_LE) >= 0).all()
    assert (psi_L(a_LE, a_LE) == 0).all()


def test_chance_gives_less_with_more_prompts_and_a_real_shift_exceeds_it():
    rng = np.random.default_rng(1)
    even, shifted = np.full(16, 1 / 16), np.r_[np.full(8, 1.5 / 16), np.full(8, 0.5 / 16)]

    def prompts(count, shares):
        return rng.multinomial(60, shares, size=(count, 3)).astype(np.int64)

    few, many = (np.quantile(chance_psi(prompts(n, even), prompts(n, even), 100, 0), 0.95) for n in (5, 80))
    assert many < few / 3
    new, old = prompts(20, shifted), prompts(80, even)
    assert psi_L(new.sum(axis=0), old.sum(axis=0)).max() > 2 * np.quantile(chance_psi(new, old, 100, 0), 0.95)
