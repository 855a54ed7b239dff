"""The share of the router's weight that each access carries: what is lost if a policy skips it.

Shape suffixes: T tokens, I tokens of all steps, L MoE layers, K experts per token, S steps, A accesses, N events,
E routed experts in a layer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.jit import F32, I32, I64, compiled
from moe_beyond.simulator.schedule.interleaving import Schedule
from moe_beyond.traces.schema import Trace


def shares_TLK(weights_TLK: npt.NDArray[np.floating]) -> F32:
    """Weights as parts of their sum over each token and layer, of k equal ones where all are 0; float32."""
    weights_TLK = np.asarray(weights_TLK, np.float32)
    sums_TL1 = weights_TLK.sum(axis=2, keepdims=True)
    even = np.float32(1 / weights_TLK.shape[2])
    return np.asarray(np.where(sums_TL1 > 0, weights_TLK / np.where(sums_TL1 > 0, sums_TL1, 1), even), np.float32)


def shares_of(trace: Trace, schedule: Schedule, members_A: I32, offsets_N: I64) -> F32 | None:
    """Each member's share of its event's router weight, float32 [A]; None for a trace without weights.

    The shares of a step of several tokens are the mean over them, so that those of every event sum to 1.
    """
    if trace.weights_TLK is None:
        return None
    return _by_access(
        np.asarray(trace.experts_TLK, np.int32),
        shares_TLK(trace.weights_TLK),
        schedule.tokens_I,
        schedule.offsets_S,
        members_A,
        offsets_N,
        trace.metadata.num_experts,
    )


def member_shares(
    experts_TK: npt.NDArray[np.integer], shares_TK: F32, members_I: I32, layer: int, num_experts: int
) -> F32:
    """The same for the members of one event, float32 [I].

    Args:
        experts_TK: Ids within the layer that the step's tokens use.
        shares_TK: Their weights as parts of each token's.
        members_I: Of the event, as `events.members_of` has them.
        layer: Index of the MoE layer.
        num_experts: Experts in each layer.
    """
    num_tokens = len(experts_TK)
    return _by_access(
        np.ascontiguousarray(experts_TK[:, None], np.int32),
        np.ascontiguousarray(shares_TK[:, None]),
        np.arange(num_tokens),
        np.array([0, num_tokens], np.int64),
        members_I - np.int32(layer * num_experts),
        np.array([0, len(members_I)], np.int64),
        num_experts,
    )


@compiled()
def _by_access(  # noqa: PLR0917 - compiled functions take positional arguments only
    experts_TLK: I32,
    weights_TLK: F32,
    tokens_I: I64,
    offsets_S: I64,
    members_A: I32,
    offsets_N: I64,
    num_experts: int,
) -> F32:
    num_layers, top_k = experts_TLK.shape[1], experts_TLK.shape[2]
    shares_A = np.empty(len(members_A), np.float32)
    share_E = np.zeros(num_experts, np.float32)
    for step in range(len(offsets_S) - 1):
        first, end = offsets_S[step], offsets_S[step + 1]
        for layer in range(num_layers):
            share_E[:] = 0
            for token in tokens_I[first:end]:
                for slot in range(top_k):
                    share_E[experts_TLK[token, layer, slot]] += weights_TLK[token, layer, slot]
            event = step * num_layers + layer
            for access in range(offsets_N[event], offsets_N[event + 1]):
                shares_A[access] = share_E[members_A[access] - layer * num_experts] / np.float32(end - first)
    return shares_A
