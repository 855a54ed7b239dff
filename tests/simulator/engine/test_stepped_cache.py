"""A cache that is stepped, one router's choice after another, counts what the replay of the same trace counts."""

import numpy as np
import pytest

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.online import Routing, Step
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.stepped_cache import NOTHING, SteppedCache
from moe_beyond.simulator.engine.timed_loop import Times, just_in_time, run
from moe_beyond.simulator.policies.catalogue import build
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import events_of, members_of
from moe_beyond.simulator.schedule.weight_shares import shares_TLK
from tests.traces_of_chance import chance_trace

ON_DEMAND = ["lru", "layer_lru", "lfu", "lfu_resident", "layer_lfu", "fifo", "lfru", "least_stale", "random"]
OTHERS = [
    "static_popularity",
    "layer_lru_fitted",
    "mixtral_offloading",
    "fate",
    "drop_cold",
    "hobbit",
    "substitution",
    "mobile",
]

CHANGED = ["seer_moe", "lexi", "mc", "mote"]


def step_through(trace, policy, budget):
    """Counts of a stepped cache whose link takes no time, ahead of every event."""
    meta, online = trace.metadata, policy.online(trace.metadata)
    cache = SteppedCache(policy, meta, budget, trace.num_prompts, lookahead=0, bytes_share_M=online.bytes_share_M)
    # a request counts from the moment before its event on, as where loading takes no time
    cache._lookahead = 0
    shares = shares_TLK(trace.weights_TLK)
    for prompt in range(trace.num_prompts):
        first, end = trace.prompt_offsets[prompt : prompt + 2]
        prefill = int(trace.num_prefill_P[prompt])
        for start, stop in [(first, first + prefill), *((token, token + 1) for token in range(first + prefill, end))]:
            if start == stop:
                continue
            decodes = start >= first + prefill
            cache.begin_step(prompt, stop - start, decodes=decodes)
            step = Step(cache.event, prompt, decodes, start == first, ("",) * (stop - start))
            scores_M, requests = online.begin(step)
            if scores_M is not None:
                cache.set_scores(scores_M)
            for layer in range(meta.num_layers):
                for request in requests:
                    cache.request(*request)
                cache.release()
                while cache.start_prefetch() != NOTHING:
                    cache.finish_prefetch()
                experts_TK = trace.experts_TLK[start:stop, layer].astype(np.int64)
                members_I = members_of(experts_TK, layer, meta.num_experts)
                # the mean share over a step's tokens
                shares_E = np.zeros(meta.num_experts, np.float32)
                for token in range(start, stop):
                    for slot in range(meta.top_k):
                        shares_E[trace.experts_TLK[token, layer, slot]] += shares[token, layer, slot]
                shares_I = shares_E[members_I % meta.num_experts] / np.float32(stop - start)
                routing = Routing(cache.event, layer, decodes, members_I, shares_I, experts_TK)
                cache.route(members_I, shares_I, online.keep(routing))
                requests = online.routed(routing)
                cache.end_event()
            online.end(step, trace.experts_TLK[start:stop])
    return cache.result()


@pytest.mark.parametrize("name", [*ON_DEMAND, *OTHERS, *CHANGED])
@pytest.mark.parametrize("capacity", [3, 9, 20])
def test_a_stepped_cache_counts_what_a_replay_counts(name, capacity):
    trace = chance_trace(5, seed=capacity)
    policy = build(name, chance_trace(6, seed=1), PolicySettings())
    budget = policy.budget(trace.metadata, capacity)
    stepped, prepared = step_through(trace, policy, budget), prepare(events_of(trace), policy, keep_warm=True)
    replayed = run(prepared, just_in_time(prepared), budget, Times.none(prepared)).replay
    assert np.array_equal(stepped.counts_PFC, replayed.counts_PFC)
    assert np.array_equal(stepped.tokens_PF, replayed.tokens_PF)
    assert np.allclose(stepped.weight_lost_PFW, replayed.weight_lost_PFW, atol=1e-5)


def test_a_policy_that_needs_a_whole_trace_says_so():
    trace = chance_trace(4, seed=1)
    with pytest.raises(InputError, match="moe_infinity: decides from a whole trace"):
        build("moe_infinity", trace, PolicySettings()).online(trace.metadata)
