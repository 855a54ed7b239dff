# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""The next layer's gate, or a stand-in for it, and the policies that read it one layer ahead.

Several engines put the present layer's hidden state through the next layer's gate. Where the replayed trace has what
routers read and the routers' weights, so does a replay. Where it has not, a linear map, fitted on the training split,
goes from the experts that a layer chose to those of the next; a real gate recalls far more. Tables say which it was.

Shape suffixes: T tokens, V passes, D passes of decode steps but in the last layer, L MoE layers, K experts per token,
E routed experts in a layer, W experts of a request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from moe_beyond.predictor.next_gate import NextGate
from moe_beyond.simulator.engine.online import Online, Request, Routing
from moe_beyond.simulator.engine.policy import Policy, Prefetches
from moe_beyond.simulator.jit import F32, F64, I32, I64, compiled
from moe_beyond.simulator.policies.arc import adaptive_replacement
from moe_beyond.simulator.policies.guesses import Guesses
from moe_beyond.simulator.policies.layer_passes import LayerPasses, best
from moe_beyond.simulator.policies.on_demand import last_use
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import when_routed
from moe_beyond.traces.schema import Trace, TraceMetadata

_RIDGE = 1.0


STAND_IN, REAL = "stand-in gate", "real gate"


@dataclass(frozen=True)
class NextLayerMap:
    """A linear map from a layer's chosen experts to the next layer's, or instead of it the model's own next gates.

    Attributes:
        weights_LEE: float32 [L-1, E, E]; row e of layer l is what expert e of layer l adds to the scores of l + 1.
        real: What the model's own gates choose for the trace that is replayed; None: that is not known.
        known_share: Of the decoded tokens' layers that have one below, the share for which it is known.
    """

    weights_LEE: F32
    real: Guesses | None = None
    known_share: float = 0.0

    @classmethod
    def fit(cls, training: Trace) -> NextLayerMap:
        """Ridge regression by least squares on all tokens of the training split; deterministic."""
        meta = training.metadata
        weights_LEE = np.zeros((meta.num_layers - 1, meta.num_experts, meta.num_experts), np.float32)
        chosen_TE = _one_hot(training, 0)
        for layer in range(meta.num_layers - 1):
            next_TE = _one_hot(training, layer + 1)
            gram_EE = (chosen_TE.T @ chosen_TE).astype(np.float64) + _RIDGE * np.eye(meta.num_experts)
            weights_LEE[layer] = np.linalg.solve(gram_EE, (chosen_TE.T @ next_TE).astype(np.float64))
            chosen_TE = next_TE
        return cls(weights_LEE)

    def beside(self, trace: Trace, width: int, horizon: int = 1) -> NextLayerMap:
        """With the real gates of a trace that has what they read: `width` experts of each of `horizon` layers ahead."""
        hidden = trace.hidden
        if hidden is None or hidden.routers is None or trace.metadata.num_layers == 1:
            return self
        real = Guesses.of(NextGate(hidden.routers), trace, width, horizon)
        known_share = real.known_share(trace)
        return replace(self, real=real, known_share=known_share) if known_share else self

    @property
    def kind(self) -> str:
        """Which of both it is, in words."""
        if self.real is None:
            return STAND_IN
        return REAL if self.known_share == 1 else f"{REAL} for {self.known_share:.0%} of layers, else {STAND_IN}"

    @property
    def horizon(self) -> int:
        """Layers ahead for which it names experts: a map for the next one alone."""
        return 1 if self.real is None else self.real.horizon

    def requests(self, events: Events, width: int) -> Prefetches:
        """Requests for each layer's `width` best experts once a layer below is routed; the first layer has none.

        Where the real gate of the next layer is not known for any of a step's tokens, the map stands in.
        """
        if self.real is None:
            return self._mapped(events, width)
        known_Q, target_Q, counts_Q, experts_X = self.real.request_columns(events, width)
        if self.known_share < 1:
            mapped = self._mapped(events, width)
            nearest_Q = known_Q == when_routed(target_Q - 1)
            missing_Q = ~np.isin(mapped.target_Q, target_Q[nearest_Q])
            counts_X = np.diff(mapped.offsets_Q)
            known_Q = np.concatenate([known_Q, mapped.known_Q[missing_Q]])
            target_Q = np.concatenate([target_Q, mapped.target_Q[missing_Q]])
            counts_Q = np.concatenate([counts_Q, counts_X[missing_Q]])
            experts_X = np.concatenate([experts_X, mapped.experts_X[np.repeat(missing_Q, counts_X)]])
        return Prefetches.from_requests(events, known_Q, target_Q, counts_Q, experts_X)

    def _mapped(self, events: Events, width: int) -> Prefetches:
        meta, passes = events.metadata, LayerPasses.of(events)
        from_D = np.nonzero(passes.decode_V & (passes.layer_V < meta.num_layers - 1))[0]
        if not len(from_D):
            return Prefetches.none()
        scores_DE = _scores(
            events.members_A, passes.offsets_V, passes.layer_V, from_D, self.weights_LEE, meta.num_experts
        )
        experts_DW = best(scores_DE, min(width, meta.num_experts))
        experts_DW += (passes.layer_V[from_D, None] + 1) * meta.num_experts
        return Prefetches.from_table(events, when_routed(passes.last_V[from_D]), passes.first_V[from_D + 1], experts_DW)


def _one_hot(trace: Trace, layer: int) -> F32:
    chosen_TE = np.zeros((trace.num_tokens, trace.metadata.num_experts), np.float32)
    np.put_along_axis(chosen_TE, trace.experts_TLK[:, layer].astype(np.int64), 1.0, axis=1)
    return chosen_TE


@compiled()
def _scores(members_A: I32, offsets_V: I64, layer_V: I32, from_D: I64, weights_LEE: F32, num_experts: int) -> F32:
    scores_DE = np.zeros((len(from_D), num_experts), np.float32)
    for row in range(len(from_D)):
        visit = from_D[row]
        for access in range(offsets_V[visit], offsets_V[visit + 1]):
            scores_DE[row] += weights_LEE[layer_V[visit], members_A[access] % num_experts]
    return scores_DE


class OnlineNextLayer(Online):
    """Requests each next layer's best experts when a decoded token's router has chosen.

    They are those of that layer's own router, run on what this layer's has read, where a model runs; where only a trace
    is stepped, those of the fitted map that stands in for it.
    """

    def __init__(self, scores_M: F32 | None, weights_LEE: F32, width: int) -> None:
        """`weights_LEE` as in `NextLayerMap`; `width` experts are requested."""
        super().__init__(scores_M)
        self._weights_LEE, self._width = weights_LEE, width

    @override
    def routed(self, routing: Routing) -> list[Request]:
        layer, num_experts = routing.layer, self._weights_LEE.shape[1]
        if not routing.decodes or layer == len(self._weights_LEE):
            return []
        if routing.next_gate is not None:
            experts_W = routing.next_gate(layer + 1)[: self._width].astype(np.int64)
        else:
            scores_E = np.zeros(num_experts, np.float32)
            for expert in routing.members_I:
                scores_E += self._weights_LEE[layer, expert % num_experts]
            experts_W = best(scores_E[None], min(self._width, num_experts))[0]
        return [Request(routing.event + 1, experts_W + (layer + 1) * num_experts)]


@dataclass(frozen=True)
class MixtralOffloading(Policy):
    """Speculative loads of the next layer's best experts over per-layer LRU (Mixtral-offloading, arXiv 2312.17238).

    After the paper, unverified: the two best of the next layer are requested when this layer's demand is known, and
    start after its loads.

    Attributes:
        gate: The next layer's, or a map that was fitted on the training split.
        speculative_loads: Experts requested per layer.
    """

    gate: NextLayerMap
    speculative_loads: int = 2
    name = "mixtral_offloading"
    title = "Mixtral-offloading"
    per_layer = True
    lookahead = 1
    rank = staticmethod(last_use)

    @property
    @override
    def gate_kind(self) -> str:  # type: ignore[override]
        return self.gate.kind

    @override
    def beside(self, trace: Trace) -> MixtralOffloading:
        return replace(self, gate=self.gate.beside(trace, self.speculative_loads))

    @override
    def prefetches(self, events: Events) -> Prefetches:
        return self.gate.requests(events, self.speculative_loads)

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return OnlineNextLayer(None, self.gate.weights_LEE, self.speculative_loads)


@dataclass(frozen=True)
class Fate(Policy):
    """The next layer's experts by the gate, more cache for shallow layers, ARC in each (Fate, arXiv 2502.12224).

    As many experts are requested as the router chooses. By how much shallow layers are favoured is not in the public
    text: here the shares fall evenly from 3/2 of the mean to 1/2 of it.

    Attributes:
        gate: The next layer's, or a map that was fitted on the training split.
    """

    gate: NextLayerMap
    name = "fate"
    title = "Fate"
    per_layer = True
    lookahead = 1
    rank = staticmethod(adaptive_replacement)

    @property
    @override
    def gate_kind(self) -> str:  # type: ignore[override]
        return self.gate.kind

    @override
    def beside(self, trace: Trace) -> Fate:
        return replace(self, gate=self.gate.beside(trace, trace.metadata.top_k))

    @override
    def layer_weights_L(self, num_layers: int) -> F64:
        return np.linspace(1.5, 0.5, num_layers)

    @override
    def fixed_scores_M(self, meta: TraceMetadata) -> F32:
        # zeros, in which ARC keeps its lists
        return np.zeros(2 * meta.num_model_experts, np.float32)

    @override
    def prefetches(self, events: Events) -> Prefetches:
        return self.gate.requests(events, events.metadata.top_k)

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return OnlineNextLayer(self.fixed_scores_M(meta), self.gate.weights_LEE, meta.top_k)
