# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Count matrices: how often each prompt used each expert of each layer, of finished prompts and of the present one.

Shape suffixes: P prompts, S steps, A accesses, L MoE layers, E routed experts in a layer, M = L * E experts.
"""

from __future__ import annotations

import numpy as np

from moe_beyond.simulator.jit import F32, I32, I64, compiled
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import Trace


def model_wide_TLK(trace: Trace) -> I32:
    """Model-wide ids of the experts of a trace, `layer * E + expert`, int32."""
    base_L1 = np.arange(trace.metadata.num_layers, dtype=np.int32)[:, None] * trace.metadata.num_experts
    return np.asarray(trace.experts_TLK + base_L1, np.int32)


def finished_PM(trace: Trace) -> F32:
    """Uses of each expert by each prompt of a trace, counting tokens: float32 [P, M]."""
    meta = trace.metadata
    prompt_T = np.repeat(np.arange(trace.num_prompts, dtype=np.int64), np.diff(trace.prompt_offsets))
    base_L = np.arange(meta.num_layers, dtype=np.int64)[:, None] * meta.num_experts
    counts_PM = np.zeros((trace.num_prompts, meta.num_model_experts), np.float32)
    for slot in range(meta.top_k):
        flat_TL = prompt_T[:, None] * meta.num_model_experts + base_L.T + trace.experts_TLK[:, :, slot]
        counts_PM += np.bincount(flat_TL.ravel(), minlength=counts_PM.size).reshape(counts_PM.shape)
    return counts_PM


def replayed_PM(events: Events) -> F32:
    """Uses of each expert in each prompt of a replay, counting tokens as `finished_PM` does: float32 [P, M]."""
    prompt_A = np.repeat(events.prompt_S[events.step_N], np.diff(events.offsets_N)).astype(np.int64)
    num_prompts, num_experts = int(events.prompt_S[-1]) + 1, events.metadata.num_model_experts
    flat_A = prompt_A * num_experts + events.members_A
    counts = np.bincount(flat_A, uses_A(events), num_prompts * num_experts)
    return counts.reshape(num_prompts, num_experts).astype(np.float32)


def uses_A(events: Events) -> I64:
    """How many tokens of its step use the expert of each access, int64: more than one in a batched prefill."""
    trace, tokens_I, offsets_S = events.routed()
    return _uses(
        model_wide_TLK(trace),
        tokens_I,
        offsets_S,
        events.members_A,
        events.offsets_N,
        events.step_N,
        events.metadata.num_model_experts,
    )


def by_layer_share(counts_RM: F32, num_layers: int) -> F32:
    """Counts as shares of their layer's sum, 0 where a layer has none; same shape, float32."""
    counts_RLE = counts_RM.reshape(len(counts_RM), num_layers, -1)
    sums_RL1 = counts_RLE.sum(axis=2, keepdims=True)
    return np.asarray(counts_RLE / np.maximum(sums_RL1, 1), np.float32).reshape(counts_RM.shape)


@compiled()
def _uses(
    experts_TLK: I32,
    tokens_I: I64,
    offsets_S: I64,
    members_A: I32,
    offsets_N: I64,
    step_N: I32,
    num_model_experts: int,
) -> I64:
    uses_A, counts_M = np.empty(len(members_A), np.int64), np.zeros(num_model_experts, np.int64)
    event = 0
    for step in range(len(offsets_S) - 1):
        counts_M[:] = 0
        for token in tokens_I[offsets_S[step] : offsets_S[step + 1]]:
            for layer in range(experts_TLK.shape[1]):
                for slot in range(experts_TLK.shape[2]):
                    counts_M[experts_TLK[token, layer, slot]] += 1
        while event < len(step_N) and step_N[event] == step:
            for access in range(offsets_N[event], offsets_N[event + 1]):
                uses_A[access] = counts_M[members_A[access]]
            event += 1
    return uses_A
