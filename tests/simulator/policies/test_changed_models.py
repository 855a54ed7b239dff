import numpy as np
import pytest

from moe_beyond.simulator.policies.changed_models import Lexi, Mc, Mote, SeerMoe
from moe_beyond.simulator.policies.on_demand import LayerLru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.policies.literal import literal, replayed
from tests.simulator.strategies import make_trace


def test_seer_moe():
    # 3 is used least, in weight
    trace = literal([[[0, 1]], [[2, 3]], [[1, 2]], [[0, 3]]], num_experts=4, weights_TLK=[[[0.6, 0.4]]] * 4)
    policy = SeerMoe.fit(trace)
    (pruned,) = policy.is_pruned_M.nonzero()[0].tolist()
    assert pruned in (1, 3)
    keep = policy.changed_demand(events_of(trace)).keep_A.reshape(4, 2)
    # the heaviest of an event stays in any case
    assert keep[:, 0].all()
    assert keep[:, 1].tolist() == (trace.experts_TLK[:, 0, 1] != pruned).tolist()
    total = replayed(policy, trace, 4).total
    assert total.skipped == (~keep).sum()
    assert total.mass_given_up == pytest.approx(0.4 * (~keep).sum() / 4, abs=1e-3)


def test_lexi():
    # the second layer's last places carry least
    weights = [[[0.3, 0.25, 0.25, 0.2], [0.7, 0.2, 0.06, 0.04]]] * 3
    trace = literal([[[3, 2, 1, 0]] * 2] * 3, num_experts=4, weights_TLK=weights)
    policy = Lexi.fit(trace)
    assert policy.top_k_L.tolist() == [4, 2]
    keep = policy.changed_demand(events_of(trace)).keep_A.reshape(3, 2, 4)
    assert keep[:, 0].all()
    assert keep[:, 1].tolist() == [[True, True, False, False]] * 3
    assert Lexi.fit(make_trace(0, top_k=1)).top_k_L.tolist() == [1, 1], "each layer keeps one"


def test_mote():
    trace = make_trace(3, num_layers=3, num_experts=8, lengths=(40,), prefill=(0,))
    quarter, whole = replayed(Mote(), trace, 6).total, replayed(LayerLru(), trace, 24).total
    # four times as many fit, at a quarter of the bytes each
    assert quarter.hits == whole.hits
    assert quarter.bytes_moved * 4 == whole.bytes_moved
    assert quarter.mass_given_up == pytest.approx(1)


def test_mc():
    tokens = [[[0, 1]]] * 4 + [[[2, 3]]] * 2 + [[[4, 5]]] + [[[0, 6]], [[1, 7]]]
    trace = literal(tokens, num_experts=8, weights_TLK=[[[0.6, 0.4]]] * 8 + [[[0.9, 0.1]]])
    policy = Mc.fit(trace)
    # the heaviest quarter gets three bits of eight, the lightest one, all others two
    assert (policy.bytes_share_M * 8).tolist() == [3, 3, 2, 2, 2, 2, 1, 1]
    change = policy.changed_demand(events_of(trace))
    assert change.keep_A.tolist() == [True] * 17 + [False], "0.1 is less than a fifth of 0.9"
    total = replayed(policy, trace, 8).total
    assert total.demand_bytes == 125 * (3 + 3 + 2 * 4 + 1)
    np.testing.assert_allclose(total.mass_given_up, 1, atol=1e-3)
