"""Bytes and time of every token on the phone; that its time is predicted to ten percent, `make golden` checks."""

import numpy as np
import pytest

from benchmarks.golden.checks import PHONES, missed_bytes_S
from moe_beyond.devices.calibrate import fit_token_time
from moe_beyond.devices.device import load_device
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.policies.on_demand import Lru
from tests.phone_traces import recording


def recorded(name):
    """What was recorded, and the bytes that the replay says each decoded token missed."""
    run = recording(name)
    budget_mib, _ = PHONES[name]
    result = replay(run.events, Lru(), Budget.bytes(run.events.metadata, budget_mib * MIB), overrun=True)
    return run, missed_bytes_S(run, result.misses_N)


@pytest.mark.parametrize("name", PHONES)
def test_the_bytes_of_every_token_are_those_the_phone_read(name):
    run, missed_S = recorded(name)
    # the phone reads whole pages around an expert
    read_S = run.metrics["read_bytes"].to_numpy()
    assert (read_S >= missed_S).all()
    assert np.corrcoef(read_S, missed_S)[0, 1] > 0.999999


def test_the_packages_phone_is_the_fitted_one():
    run, missed_S = recorded("qwen")
    fitted = fit_token_time(missed_S, run.metrics["wall_ms"].to_numpy())
    device = load_device("phone_ufs")
    assert device.link_gb_per_s == pytest.approx(fitted.link_gb_per_s, rel=0.05)
    # what a token reads of resident weights: dense parts of each layer, and six experts
    resident = run.dense_bytes_L.sum() + 6 * sum(run.events.metadata.expert_bytes)
    assert device.read_ms(round(resident)) == pytest.approx(fitted.computing_ms, rel=0.05)
