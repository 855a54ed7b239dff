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
    """Accesses of each expert in each prompt of a replay, float32 [P, M]; a batched prefill counts its union once."""
    lengths_N = np.diff(events.offsets_N)
    prompt_A = np.repeat(events.prompt_S[events.step_N], lengths_N).astype(np.int64)
    num_prompts, num_experts = int(events.prompt_S[-1]) + 1, events.metadata.num_model_experts
    flat_A = prompt_A * num_experts + events.members_A
    counts = np.bincount(flat_A, minlength=num_prompts * num_experts)
    return counts.reshape(num_prompts, num_experts).astype(np.float32)


def by_layer_share(counts_RM: F32, num_layers: int) -> F32:
    """Counts as shares of their layer's sum, 0 where a layer has none; same shape, float32."""
    counts_RLE = counts_RM.reshape(len(counts_RM), num_layers, -1)
    sums_RL1 = counts_RLE.sum(axis=2, keepdims=True)
    return np.asarray(counts_RLE / np.maximum(sums_RL1, 1), np.float32).reshape(counts_RM.shape)


@compiled()
def shares_so_far(
    members_A: I32, offsets_N: I64, step_N: I32, prompt_S: I32, num_layers: int, num_model_experts: int
) -> F32:
    """The prompt's counts as shares of their layer's sum, as known ahead of each step: float32 [S, M]."""
    shares_SM = np.zeros((len(prompt_S), num_model_experts), np.float32)
    num_experts = num_model_experts // num_layers
    counts_M, sums_L = np.zeros(num_model_experts, np.float32), np.zeros(num_layers, np.float32)
    event = 0
    for step in range(len(prompt_S)):
        if step > 0 and prompt_S[step] != prompt_S[step - 1]:
            counts_M[:] = 0
            sums_L[:] = 0
        for layer in range(num_layers):
            if sums_L[layer] > 0:
                for expert in range(layer * num_experts, (layer + 1) * num_experts):
                    shares_SM[step, expert] = counts_M[expert] / sums_L[layer]
        while event < len(step_N) and step_N[event] == step:
            for access in range(offsets_N[event], offsets_N[event + 1]):
                counts_M[members_A[access]] += 1
                sums_L[members_A[access] // num_experts] += 1
            event += 1
    return shares_SM
