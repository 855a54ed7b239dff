# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""HOBBIT (arXiv 2411.01433): what is missing and matters little is loaded at low precision, or not at all. Lossy.

Shape suffixes: I members of an event, F features, M experts of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from typing_extensions import override

from moe_beyond.predictor.from_hidden import HORIZON
from moe_beyond.simulator.engine.online import Online
from moe_beyond.simulator.engine.policy import (
    FULL,
    LAST_USE,
    LAYER,
    RANKS,
    SKIP,
    USES,
    USES_FULL,
    Policy,
    Prefetches,
)
from moe_beyond.simulator.jit import DEMAND, F32, F64, I32, I64, RANK, compiled
from moe_beyond.simulator.policies.next_layer import NextLayerMap, OnlineNextLayer
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import Trace, TraceMetadata

_FULL_UP_TO, _LOW_UP_TO = 0.6, 0.9
"""Of a missing expert: the weight of those that the router ranks above it, up to which it is loaded at full and at low
precision. What lies above is skipped."""
_SLACK = 1e-6  # shares are float32


@compiled(DEMAND)
def by_weight_above(
    features_FM: F64, precision_M: I64, members_I: I32, shares_I: F32, step: int, layer: int, actions_I: I64
) -> None:
    """Full precision, low, or none, by the weight of the better ranked; what is resident is used as it is.

    An expert that deserves full precision and is resident at low is loaded again.
    """
    for i in range(len(members_I)):
        above = 0.0
        for j in range(len(members_I)):
            if shares_I[j] > shares_I[i] or (shares_I[j] == shares_I[i] and j < i):
                above += shares_I[j]
        if above <= _FULL_UP_TO + _SLACK:
            actions_I[i] = FULL
        elif above <= _LOW_UP_TO + _SLACK or precision_M[members_I[i]] >= 0:
            actions_I[i] = FULL - 1
        else:
            actions_I[i] = SKIP


@compiled(RANK, borrows=True)
def four_grounds(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank by recency + frequency + frequency at full precision + nearness of the layer's next run, each 0 to 1."""
    num_layers = features_FM[LAYER, features_FM.shape[1] - 1] + 1
    most, most_full = 1.0, 1.0
    for expert in residents:
        most = max(most, features_FM[USES, expert])
        most_full = max(most_full, features_FM[USES_FULL, expert])
    for place, expert in enumerate(residents):
        ahead = features_FM[LAYER, expert] - layer
        if ahead <= 0:
            ahead += num_layers
        recency = max(features_FM[LAST_USE, expert], 0.0) / max(1, now)
        frequency = features_FM[USES, expert] / most + features_FM[USES_FULL, expert] / most_full
        features_FM[RANKS, place] = recency + frequency + 1 - ahead / num_layers


@dataclass(frozen=True)
class Hobbit(Policy):
    """Mixed precision by the weight of the better ranked experts (HOBBIT, arXiv 2411.01433), lossy.

    After the paper, unverified: the two thresholds, a quarter of the bytes at low precision, and a cache priority of
    four grounds, which count equally here. Its prefetch goes on layer by layer until something is predicted to be
    missing. Requests do not depend on what is resident: where the trace has real gates, those of up to four layers
    ahead are requested, the nearest first, so that the link goes on to the next one when all of a layer's are there;
    the map of `next_layer` stands in for the next layer alone.

    Attributes:
        gate: The next layers', or a map that was fitted on the training split.
    """

    gate: NextLayerMap
    name = "hobbit"
    title = "HOBBIT"
    needs_weights = True
    precisions = (1.0, 0.25)
    rank = staticmethod(four_grounds)
    demand = staticmethod(by_weight_above)

    @property
    @override
    def gate_kind(self) -> str:  # type: ignore[override]
        return self.gate.kind

    @property
    @override
    def lookahead(self) -> int:  # type: ignore[override]
        return self.gate.horizon

    @override
    def beside(self, trace: Trace) -> Hobbit:
        return replace(self, gate=self.gate.beside(trace, trace.metadata.top_k, HORIZON))

    @override
    def prefetches(self, events: Events) -> Prefetches:
        return self.gate.requests(events, events.metadata.top_k)

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return OnlineNextLayer(None, self.gate.weights_LEE, meta.top_k)
