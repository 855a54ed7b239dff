"""Eviction by the predicted next use."""

import numpy as np
import pytest

from moe_beyond.simulator.policies.anticipate import MEMORY, Anticipate
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace


def test_the_rate_starts_from_popularity_at_each_prompt_and_depends_on_the_past_alone():
    trace = make_trace(4, num_layers=2, num_experts=5, top_k=2, lengths=(4, 3), prefill=(2, 0))
    events = events_of(trace)
    popularity_LE = np.full((2, 5), 0.4, np.float32)
    policy = Anticipate("drawn", np.zeros((7, 2, 5), np.float32), popularity_LE)
    rates_SM = policy.scores_SM(events)[:, 10:]
    assert rates_SM[[0, 3]] == pytest.approx(np.full((2, 10), 0.4, np.float32))
    # two tokens of prefill, then one of decode
    kept = (1 - MEMORY) ** 2
    for layer in range(2):
        wanted = set(trace.experts_TLK[:2, layer].ravel().tolist())
        for expert in range(5):
            share = 2 / len(wanted) if expert in wanted else 0
            assert rates_SM[1, layer * 5 + expert] == pytest.approx(0.4 * kept + (1 - kept) * share)
    used = np.isin(np.arange(10), [e + 5 * layer for layer in (0, 1) for e in trace.experts_TLK[2, layer].tolist()])
    assert rates_SM[2] == pytest.approx(rates_SM[1] * (1 - MEMORY) + MEMORY * used)
