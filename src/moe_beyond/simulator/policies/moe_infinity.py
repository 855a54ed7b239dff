# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""MoE-Infinity (arXiv 2401.14361): a request's count matrix is matched against those of finished requests.

At layer l the rows up to l of the stored matrices are made uniform, so that the match is decided by the layers still to
come, of which the present request has the counts of its earlier tokens. The stored matrix of the highest mean
cosine ranks the prefetches for the layers above l: `(share + 1e-8) * (1 - (j - l) / (L + 1))`, highest first.

Shape suffixes: G matrices that are ever stored, N matrices stored at one time, P prompts, S steps, V passes,
A accesses, L MoE layers, E routed experts in a layer, M = L * E experts, Q requests, W experts of a request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from moe_beyond.predictor.baselines import OneClusterMoeInfinity
from moe_beyond.simulator.engine.policy import Policy, Prefetches
from moe_beyond.simulator.jit import F32, I32, I64, compiled
from moe_beyond.simulator.policies.count_matrices import by_layer_share, finished_PM, replayed_PM, uses_A
from moe_beyond.simulator.policies.layer_passes import LayerPasses, best
from moe_beyond.simulator.policies.on_demand import Lfu, last_use
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from moe_beyond.traces.schema import Trace

_EPSILON = np.float32(1e-8)
ALL_LAYERS = 2**31
"""A lookahead that no model reaches: prefetches may start for any layer above."""


@dataclass(frozen=True)
class MoeInfinity(Policy):
    """The full method (MoE-Infinity, arXiv 2401.14361): match, prefetch for all layers above, evict the least used.

    Eviction is that of its shipped engine, the fewest visits ever; the product of share, frequency and decay that its
    Python describes is never constructed there.

    A finished request replaces the stored matrix that won the fewest matches. For each layer as many experts are
    requested as the router chooses; a request that still holds is not repeated, so it keeps its first priority.

    Attributes:
        stored_GM: Count matrices of finished prompts that the store starts with, float32.
    """

    stored_GM: F32
    name = "moe_infinity"
    title = "MoE-Infinity"
    lookahead = ALL_LAYERS
    rank = staticmethod(Lfu.rank)

    @classmethod
    def fit(cls, training: Trace, num_matrices: int = 1000) -> MoeInfinity:
        """Fill the store with prompts evenly spread over the training split."""
        counts_PM = finished_PM(training)
        chosen = np.unique(np.linspace(0, len(counts_PM) - 1, num_matrices).round().astype(np.int64))
        return cls(counts_PM[chosen])

    @override
    def prefetches(self, events: Events) -> Prefetches:
        meta, passes = events.metadata, LayerPasses.of(events)
        ever_GM = np.concatenate([self.stored_GM, replayed_PM(events)])
        winner_SL = matches(
            events.members_A,
            uses_A(events),
            passes.offsets_V,
            passes.step_V,
            passes.layer_V,
            passes.prompt_S,
            ever_GM,
            len(self.stored_GM),
            meta.num_layers,
        )
        shares_GM = by_layer_share(ever_GM, meta.num_layers)
        best_XW = best(shares_GM.reshape(-1, meta.num_experts), meta.top_k)
        best_GLW = best_XW.reshape(len(ever_GM), meta.num_layers, -1)
        return _request_above(events, passes, winner_SL, shares_GM, best_GLW)


def _request_above(events: Events, passes: LayerPasses, winner_SL: I32, shares_GM: F32, best_GLW: I64) -> Prefetches:
    """At each layer requests for all layers above by the matrix that matched, unless the layer below matched it too."""
    num_layers, num_experts = events.metadata.num_layers, events.metadata.num_experts
    steps_S = np.nonzero(passes.is_decode_S)[0]
    known, target, matrix, ahead = [], [], [], []
    for layer in range(num_layers - 1):
        steps = steps_S
        if layer:
            steps = steps_S[winner_SL[steps_S, layer] != winner_SL[steps_S, layer - 1]]
        above = np.arange(layer + 1, num_layers)
        shape = (len(steps), len(above))
        known.append(np.broadcast_to(passes.last_V[steps * num_layers + layer][:, None], shape).ravel())
        target.append(passes.first_V[steps[:, None] * num_layers + above].ravel())
        matrix.append(np.broadcast_to(winner_SL[steps, layer][:, None], shape).ravel())
        ahead.append(np.broadcast_to(above - layer, shape).ravel())
    if not known:
        return Prefetches.none()
    target_Q, matrix_Q = np.concatenate(target), np.concatenate(matrix)
    layer_Q = events.layer_N[target_Q]
    experts_QW = best_GLW[matrix_Q, layer_Q] + layer_Q[:, None] * num_experts
    decay_Q = 1 - np.concatenate(ahead).astype(np.float32) / np.float32(num_layers + 1)
    priorities_QW = (shares_GM[matrix_Q[:, None], experts_QW] + _EPSILON) * decay_Q[:, None]
    return Prefetches.from_table(events, when_routed(np.concatenate(known)), target_Q, experts_QW, priorities_QW)


@compiled()
def matches(
    members_A: I32,
    uses_A: I64,
    offsets_V: I64,
    step_V: I32,
    layer_V: I32,
    prompt_S: I32,
    ever_GM: F32,
    num_stored: int,
    num_layers: int,
) -> I32:
    """The matrix that matches best at each layer of each step, by the layers above it: int32 [S, L], indices of G.

    The first `num_stored` matrices are there from the start. Those after them are of the replay's own prompts: each is
    stored when its prompt has ended, in place of the one that won least (of equal ones the first). Ties of a match are
    won by the first; at a model's last layer nothing is left to match.
    """
    num_steps, num_model_experts = len(prompt_S), ever_GM.shape[1]
    num_experts = num_model_experts // num_layers
    unit_MN = np.empty((num_model_experts, num_stored), np.float32)
    matrix_N, wins_N = np.arange(num_stored), np.zeros(num_stored, np.int64)
    for place in range(num_stored):
        _store(unit_MN, place, ever_GM[place], num_experts)
    winner_SL = np.zeros((num_steps, num_layers), np.int32)
    counts_M, squares_L = np.zeros(num_model_experts, np.float32), np.zeros(num_layers, np.float32)
    dots_LN, sum_N = np.zeros((num_layers, num_stored), np.float32), np.zeros(num_stored, np.float32)
    visit = 0
    for step in range(num_steps):
        if step > 0 and prompt_S[step] != prompt_S[step - 1]:
            place = int(np.argmin(wins_N))
            matrix_N[place], wins_N[place] = num_stored + prompt_S[step - 1], 0
            _store(unit_MN, place, ever_GM[matrix_N[place]], num_experts)
            counts_M[:] = 0
            squares_L[:] = 0
            dots_LN[:] = 0
        sum_N[:] = 0
        for layer in range(num_layers - 1, 0, -1):
            if squares_L[layer] > 0:
                sum_N += dots_LN[layer] / np.sqrt(squares_L[layer])
            place = int(np.argmax(sum_N))
            winner_SL[step, layer - 1] = matrix_N[place]
            wins_N[place] += 1
        while visit < len(step_V) and step_V[visit] == step:
            layer = layer_V[visit]
            for access in range(offsets_V[visit], offsets_V[visit + 1]):
                expert, uses = members_A[access], np.float32(uses_A[access])
                dots_LN[layer] += uses * unit_MN[expert]
                squares_L[layer] += uses * (2 * counts_M[expert] + uses)
                counts_M[expert] += uses
            visit += 1
    return winner_SL


@compiled()
def _store(unit_MN: F32, place: int, counts_M: F32, num_experts: int) -> None:
    """Put a matrix into the store, each layer's row scaled to length 1."""
    for start in range(0, len(counts_M), num_experts):
        row_E = counts_M[start : start + num_experts]
        length = max(np.sqrt(np.sum(row_E * row_E)), np.float32(1e-9))
        unit_MN[start : start + num_experts, place] = row_E / length


@dataclass(frozen=True)
class MoeInfinityOneCluster(Policy):
    """The MoE-Beyond paper's stand-in for MoE-Infinity (arXiv 2508.17137), not the method itself.

    Nine prompts' counts, averaged into one cluster; each layer's most used experts are fetched before every token, over
    LRU. The prediction never changes, whatever the prompt.

    Attributes:
        experts_LK: Each layer's experts of the largest count, most used first, int64.
    """

    experts_LK: I64
    name = "moe_infinity_one_cluster"
    title = "MoE-Infinity, one cluster"
    rank = staticmethod(last_use)

    @classmethod
    def fit(cls, training: Trace) -> MoeInfinityOneCluster:
        """Average the first nine prompts of the training split."""
        meta = training.metadata
        counts_M = finished_PM(
            training.select(np.arange(min(OneClusterMoeInfinity.PROMPTS, training.num_prompts)))
        ).sum(axis=0)
        return cls(best(counts_M.reshape(meta.num_layers, meta.num_experts), meta.top_k))

    @override
    def prefetches(self, events: Events) -> Prefetches:
        passes = LayerPasses.of(events)
        decode = passes.decode_V
        layer_Q, target_Q = passes.layer_V[decode], passes.first_V[decode]
        # known all along, but requested when the token begins
        first_S = np.searchsorted(events.step_N, np.arange(events.num_steps))
        experts_QW = self.experts_LK[layer_Q] + layer_Q[:, None] * events.metadata.num_experts
        return Prefetches.from_table(events, before(first_S[passes.step_V[decode]]), target_Q, experts_QW)
