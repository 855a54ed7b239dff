# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Policies that do without an expert, or with another: by weight, by what is resident, by the token. All are lossy.

Each tells the replay what it does for every member of an event, and the replay counts the router's weight given up.

Shape suffixes: I members of an event, F features, M = L * E experts of the model, S steps, V visits, A accesses,
L MoE layers, E routed experts in a layer, T tokens, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.simulator.engine.policy import FULL, LAYER, SCORE, SKIP, WEIGHT_SUM, ChangedDemand, Demand, Policy, Rank
from moe_beyond.simulator.jit import DEMAND, compiled
from moe_beyond.simulator.policies.changed_models import place_A, training_shares_TLK
from moe_beyond.simulator.policies.on_demand import last_use
from moe_beyond.simulator.policies.visits import Visits, require_shares
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import Trace

_COLD = 0.5
_ALWAYS_KEPT = 2
_PRIOR = 0.2
_LEAST_SHARE = 1e-4
_UNIMPORTANT = 0.5


@compiled(DEMAND)
def skip_cold_misses(
    features_FM: npt.NDArray[np.float64],
    precision_M: npt.NDArray[np.int64],
    members_I: npt.NDArray[np.int32],
    shares_I: npt.NDArray[np.float32],
    step: int,
    layer: int,
    actions_I: npt.NDArray[np.int64],
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

    @property
    @override
    def rank(self) -> Rank:
        return last_use

    @property
    @override
    def demand(self) -> Demand:
        return skip_cold_misses


@compiled()
def _heaviest(
    features_FM: npt.NDArray[np.float64],
    precision_M: npt.NDArray[np.int64],
    taken_E: npt.NDArray[np.bool_],
    base: int,
) -> int:
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
    features_FM: npt.NDArray[np.float64],
    precision_M: npt.NDArray[np.int64],
    members_I: npt.NDArray[np.int32],
    shares_I: npt.NDArray[np.float32],
    step: int,
    layer: int,
    actions_I: npt.NDArray[np.int64],
) -> None:
    """A missing expert below the top 2 gives way to a resident one that the raised logits put above it.

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
            stand_in = _heaviest(features_FM, precision_M, taken_E, layer * num_experts)
            if stand_in >= 0:
                taken_E[stand_in % num_experts] = True
                actions_I[i] = stand_in


class CachePrior(Policy):
    """Routes to what is resident where the logits are near (cache-prior routing, Qualcomm, arXiv 2412.00099), lossy.

    z' = z + 0.2 * D * resident, D the running mean of the range of a layer's logits, the top 2 always kept, over LRU in
    each layer. A trace holds weights of the chosen experts alone: their logarithms stand in for logits, D is the range
    of the chosen, and an expert that was not chosen is taken to have been as near as the last chosen one. The latter
    makes stand-ins more frequent than they would be, the smaller range makes them rarer: it is no bound either way.
    """

    name = "cache_prior"
    title = "Cache-prior routing"
    needs_weights = True
    per_layer = True

    @property
    @override
    def rank(self) -> Rank:
        return last_use

    @property
    @override
    def demand(self) -> Demand:
        return prefer_residents

    @override
    def scores_SM(self, events: Events) -> npt.NDArray[np.float32]:
        visits, shares_A = Visits.of(events), require_shares(events, self.name)
        logits_A = np.log(np.maximum(shares_A, _LEAST_SHARE))
        starts_V = visits.offsets_V[:-1]
        range_V = np.maximum.reduceat(logits_A, starts_V) - np.minimum.reduceat(logits_A, starts_V)
        range_SL = np.where(visits.decode_V, range_V, 0).reshape(-1, events.metadata.num_layers)
        # as known ahead of each step
        seen_S1 = np.maximum(np.cumsum(visits.is_decode_S) - visits.is_decode_S, 1)[:, None]
        mean_SL = (np.cumsum(range_SL, axis=0) - range_SL) / seen_S1
        return np.repeat(mean_SL, events.metadata.num_experts, axis=1).astype(np.float32)


@dataclass(frozen=True)
class MoBile(Policy):
    """Unimportant tokens use half of their experts (MoBiLE, arXiv 2510.12357), over LRU in each layer, lossy.

    How a token's importance is told is not in the public text. Assumed here: a token is unimportant where its first
    layer gives the upper half of its experts more weight than it does for half of the training tokens; from the next
    layer on it uses the upper half alone. The publication fetches an important token's other half while the first half
    computes; both are wanted by the same event here, so that overlap is not modelled.

    Attributes:
        upper_half_share: Median share of the upper half in the first layer, over the tokens of the training split.
    """

    upper_half_share: float
    name = "mobile"
    title = "MoBiLE"
    decides_by_token = True
    needs_weights = True
    per_layer = True

    @classmethod
    def fit(cls, training: Trace) -> MoBile:
        """Find the median on the training split.

        Raises:
            InputError: The training split has no weights.
        """
        shares_TK = np.sort(training_shares_TLK(training, cls.name)[:, 0], axis=1)[:, ::-1]
        upper_T = shares_TK[:, : _half(training.metadata.top_k)].sum(axis=1)
        return cls(float(np.quantile(upper_T, 1 - _UNIMPORTANT)))

    @property
    @override
    def rank(self) -> Rank:
        return last_use

    @override
    def changed_demand(self, events: Events) -> ChangedDemand:
        visits, shares_A = Visits.of(events), require_shares(events, self.name)
        counts_V = np.diff(visits.offsets_V)
        visit_A = np.repeat(np.arange(len(counts_V)), counts_V)
        upper_A = place_A(events, self.name) < (counts_V[visit_A] + 1) // 2
        upper_V = np.bincount(visit_A, shares_A * upper_A, minlength=len(counts_V))
        first_S = upper_V.reshape(-1, events.metadata.num_layers)[:, 0]
        halved_S = visits.is_decode_S & (first_S > self.upper_half_share)
        halved_A = halved_S[visits.step_V[visit_A]] & (visits.layer_V[visit_A] > 0)
        return ChangedDemand(upper_A | ~halved_A, np.ones(events.metadata.num_model_experts))


def _half(top_k: int) -> int:
    return (top_k + 1) // 2
