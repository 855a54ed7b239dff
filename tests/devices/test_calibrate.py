import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.devices.calibrate import fit_token_time
from moe_beyond.errors import InputError


@given(computing=st.floats(1, 100), per_gb=st.floats(1, 1000), seed=st.integers(0, 99))
def test_a_line_with_a_few_wild_steps_is_found(computing, per_gb, seed):
    draw = np.random.default_rng(seed)
    missed = draw.integers(0, 10**9, 60)
    wall = computing + per_gb * missed / 1e9
    wall[draw.choice(60, 6, replace=False)] += 5000
    fitted = fit_token_time(missed, wall)
    assert fitted.computing_ms == pytest.approx(computing, rel=0.02, abs=0.5)
    assert fitted.ms_per_gb == pytest.approx(per_gb, rel=0.02, abs=1)
    assert fitted.link_gb_per_s == pytest.approx(1e3 / fitted.ms_per_gb)


def test_steps_that_all_miss_the_same_are_refused():
    with pytest.raises(InputError, match="record more tokens"):
        fit_token_time(np.full(5, 100), np.arange(5.0))
