"""Which of the router's choices an LRU of the whole model misses: those for which a prediction is worth something.

Shape suffixes: T tokens, L MoE layers, K experts per token, N events, A accesses, M experts of the model.
"""

from __future__ import annotations

import numpy as np

from moe_beyond.simulator.jit import I32, I64, Bools, compiled
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.traces.schema import Trace


def lru_missed_TLK(trace: Trace, share: float) -> Bools:
    """The choices of decoded tokens that are not resident when their event starts; bool, as `Trace.experts_TLK`.

    Replayed event by event, prompts in their order, a prefill as one batch, whose choices count as none; equals the
    misses of a replay of `policies.on_demand.Lru`.

    Args:
        trace: What is replayed.
        share: Of the model's experts, how many the cache holds.
    """
    events, num_experts = events_of(trace), trace.metadata.num_model_experts
    missed_A = _missed(events.members_A, events.offsets_N, max(1, round(share * num_experts)), num_experts)
    missed_TLK = np.zeros(trace.experts_TLK.shape, bool)
    decoded_N = np.nonzero(events.is_decode_S[events.step_N])[0]
    # members of a single token's event keep the router's order
    slots = events.offsets_N[decoded_N, None] + np.arange(trace.metadata.top_k)
    missed_TLK[events.token_S[events.step_N[decoded_N]], events.layer_N[decoded_N]] = missed_A[slots]
    return missed_TLK


@compiled()
def _missed(members_A: I32, offsets_N: I64, capacity: int, num_experts: int) -> Bools:
    """The residents are a list from the least to the most recently used; its ends are held by the place after all."""
    missed_A = np.zeros(len(members_A), np.bool_)
    newer_M = np.full(num_experts + 1, -1, np.int64)
    older_M = np.full(num_experts + 1, -1, np.int64)
    newer_M[num_experts] = older_M[num_experts] = num_experts
    residents = 0
    for event in range(len(offsets_N) - 1):
        for access in range(offsets_N[event], offsets_N[event + 1]):
            expert = members_A[access]
            if newer_M[expert] < 0:
                missed_A[access] = True
                residents += 1
            else:
                newer_M[older_M[expert]], older_M[newer_M[expert]] = newer_M[expert], older_M[expert]
            newest = older_M[num_experts]
            newer_M[newest], older_M[expert] = expert, newest
            newer_M[expert], older_M[num_experts] = num_experts, expert
        while residents > capacity:
            oldest = newer_M[num_experts]
            newer_M[num_experts], older_M[newer_M[oldest]] = newer_M[oldest], num_experts
            newer_M[oldest] = -1
            residents -= 1
    return missed_A
