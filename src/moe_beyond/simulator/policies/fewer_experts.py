# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Policies that skip or replace an expert: by weight, by what is resident, by the token. All are lossy.

Each decides for every member of an event, and the replay counts the router weight that is lost.

Shape suffixes: I members of an event, F features, M = L * E experts of the model, S steps, V layer passes, A accesses,
L MoE layers, E routed experts in a layer, T tokens, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from moe_beyond.simulator.engine.online import Online
from moe_beyond.simulator.engine.policy import FULL, LAYER, SCORE, SKIP, WEIGHT_SUM, ChangedDemand, Policy
from moe_beyond.simulator.jit import DEMAND, F32, F64, I32, I64, Bools, compiled
from moe_beyond.simulator.policies.changed_models import place_A, training_shares_TLK
from moe_beyond.simulator.policies.layer_passes import LayerPasses
from moe_beyond.simulator.policies.on_demand import last_use
from moe_beyond.simulator.policies.online_choices import OnlineCachePrior, OnlineMoBile
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import Trace, TraceMetadata

_COLD = 0.5
_ALWAYS_KEPT = 2
_PRIOR = 0.2
_LEAST_SHARE = 1e-4
_UNIMPORTANT = 0.5


@compiled(DEMAND)
def skip_cold_misses(
    features_FM: F64, precision_M: I64, members_I: I32, shares_I: F32, step: int, layer: int, actions_I: I64
) -> None:
    """A missing expert below F / k of the weight is skipped."""
    for i in range(len(members_I)):
        cold = precision_M[members_I[i]] < 0 and shares_I[i] < _COLD / len(members_I)
        actions_I[i] = SKIP if cold else FULL


class DropCold(Policy):
    """Skips a miss whose weight is below F / k, over LRU (drop-cold of BigMoeOnEdge, github.com/Helldez/BigMoeOnEdge).

    F is 0.5, an assumption: a miss is dropped where its weight is less than half of an equal share.
    """

    name = "drop_cold"
    title = "Drop-cold"
    needs_weights = True
    rank = staticmethod(last_use)
    demand = staticmethod(skip_cold_misses)


@compiled()
def _heaviest(features_FM: F64, precision_M: I64, taken_E: Bools, base: int) -> int:
    """The resident expert of a layer, not taken yet, that has had most weight; -1 where there is none."""
    found = -1
    for e in range(len(taken_E)):
        expert = base + e
        if (
            precision_M[expert] >= 0
            and not taken_E[e]
            and (found < 0 or features_FM[WEIGHT_SUM, expert] > features_FM[WEIGHT_SUM, found])
        ):
            found = expert
    return found


@compiled(DEMAND)
def prefer_residents(
    features_FM: F64, precision_M: I64, members_I: I32, shares_I: F32, step: int, layer: int, actions_I: I64
) -> None:
    """A missing expert below the top 2 is replaced by a resident one that the raised logits put above it.

    The logits of experts that were not chosen are taken to be that of the last one chosen, the most they can be.
    """
    num_layers = int(features_FM[LAYER, features_FM.shape[1] - 1]) + 1
    num_experts = features_FM.shape[1] // num_layers
    raised = np.log(max(shares_I.min(), _LEAST_SHARE)) + _PRIOR * features_FM[SCORE, layer * num_experts]
    taken_E = np.zeros(num_experts, np.bool_)
    for expert in members_I:
        taken_E[expert % num_experts] = True
    for i in range(len(members_I)):
        actions_I[i] = FULL
        better = 0
        for j in range(len(members_I)):
            better += shares_I[j] > shares_I[i] or (shares_I[j] == shares_I[i] and j < i)
        missing = precision_M[members_I[i]] < 0
        if missing and better >= _ALWAYS_KEPT and np.log(max(shares_I[i], _LEAST_SHARE)) < raised:
            replacement = _heaviest(features_FM, precision_M, taken_E, layer * num_experts)
            if replacement >= 0:
                taken_E[replacement % num_experts] = True
                actions_I[i] = replacement


class CachePrior(Policy):
    """Routes to what is resident where the logits are near (cache-prior routing, Qualcomm, arXiv 2412.00099), lossy.

    z' = z + 0.2 * D * resident, D the running mean of the range of a layer's logits, the top 2 always kept, over LRU in
    each layer. A trace holds weights of the chosen experts alone: their logarithms stand in for logits, D is the range
    of the chosen, and an expert that was not chosen is taken to have been as near as the last chosen one. The latter
    makes replacements more frequent than they would be, the smaller range makes them rarer: it is no bound either way.
    """

    name = "cache_prior"
    title = "Cache-prior routing"
    needs_weights = True
    per_layer = True
    rank = staticmethod(last_use)
    demand = staticmethod(prefer_residents)

    @override
    def scores_SM(self, events: Events) -> F32:
        passes, shares_A = LayerPasses.of(events), events.require_shares(self.name)
        logits_A = np.log(np.maximum(shares_A, _LEAST_SHARE))
        starts_V = passes.offsets_V[:-1]
        range_V = np.maximum.reduceat(logits_A, starts_V) - np.minimum.reduceat(logits_A, starts_V)
        range_SL = np.where(passes.decode_V, range_V, 0).reshape(-1, events.metadata.num_layers)
        # as known ahead of each step
        seen_S1 = np.maximum(np.cumsum(passes.is_decode_S) - passes.is_decode_S, 1)[:, None]
        mean_SL = (np.cumsum(range_SL, axis=0) - range_SL) / seen_S1
        return np.repeat(mean_SL, events.metadata.num_experts, axis=1).astype(np.float32)

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return OnlineCachePrior(meta.num_layers, _PRIOR, _ALWAYS_KEPT)


@dataclass(frozen=True)
class MoBile(Policy):
    """Unimportant tokens use half of their experts (MoBiLE, arXiv 2510.12357), over LRU in each layer, lossy.

    How a token's importance is measured is not in the public text. Assumed here: a token is unimportant where its first
    layer gives the upper half of its experts more weight than it does for half of the training tokens; from the next
    layer on it uses the upper half alone. The publication fetches an important token's other half while the first half
    computes; both are used by the same event here, so that overlap is not modelled.

    Attributes:
        upper_half_share: Median share of the upper half in the first layer, over the tokens of the training split.
    """

    upper_half_share: float
    name = "mobile"
    title = "MoBiLE"
    decides_by_token = True
    needs_weights = True
    per_layer = True
    rank = staticmethod(last_use)

    @classmethod
    def fit(cls, training: Trace) -> MoBile:
        """Find the median on the training split.

        Raises:
            InputError: The training split has no weights.
        """
        shares_TK = np.sort(training_shares_TLK(training, cls.name)[:, 0], axis=1)[:, ::-1]
        upper_T = shares_TK[:, : (training.metadata.top_k + 1) // 2].sum(axis=1)
        return cls(float(np.quantile(upper_T, 1 - _UNIMPORTANT)))

    @override
    def changed_demand(self, events: Events) -> ChangedDemand:
        passes, shares_A = LayerPasses.of(events), events.require_shares(self.name)
        counts_V = np.diff(passes.offsets_V)
        pass_A = np.repeat(np.arange(len(counts_V)), counts_V)
        upper_A = place_A(events, self.name) < (counts_V[pass_A] + 1) // 2
        upper_V = np.bincount(pass_A, shares_A * upper_A, minlength=len(counts_V))
        first_S = upper_V.reshape(-1, events.metadata.num_layers)[:, 0]
        halved_S = passes.is_decode_S & (first_S > self.upper_half_share)
        halved_A = halved_S[passes.step_V[pass_A]] & (passes.layer_V[pass_A] > 0)
        return ChangedDemand(upper_A | ~halved_A, np.ones(events.metadata.num_model_experts))

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return OnlineMoBile(self.upper_half_share)
