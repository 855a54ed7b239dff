"""Prefetching by any predictor: fetch ahead the experts that a layer most probably uses.

A token step predicts all layers before the token's first one. A layer step predicts the next few layers anew each time
a router has chosen, and replaces requests for them that have not begun. While a token's last layer computes, a link has
time for one more expert, which the next token may use: that token's own predictions replace it if it has not begun.

Shape suffixes: T tokens, L MoE layers, E routed experts in a layer, H layers ahead, N events, Q requests, X
requested experts, W experts fetched at most (the width).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from typing_extensions import override

from moe_beyond.simulator.engine.policy import ChangedDemand, Demand, Policy, Prefetches, Rank, sentence
from moe_beyond.simulator.jit import F32, I32, I64, compiled
from moe_beyond.simulator.policies.layer_passes import LayerPasses
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import before, when_routed

ACROSS = "next_token_"
"""Begins the names of policies that prefetch for the next token too."""


@dataclass(frozen=True)
class Prefetch(Policy):
    """A predictor's most probable experts are fetched before each decode event; `eviction` makes space for them.

    Nothing is prefetched for a batched prefill: it uses nearly every expert anyway.

    Attributes:
        predictor: Name of the predictor, for tables.
        probabilities_TLE: Its token step's predictions for the trace that is replayed; of several prompts at once, what
            `Events.by_step` makes of it.
        width: Experts fetched at most per layer.
        eviction: The policy underneath.
        threshold: An expert below this probability is not fetched.
        layers_HTLE: Its layer step's predictions, as `predictor.base.LayerPredictor` gives them, or `Events.by_step`
            along axis 1; None: the token step alone.
        token_step_ms: Charged for its token step.
        layer_step_ms: Charged for its layer step.
        later_TLE: How often the tokens after each one will use each expert, as `Anticipate.later_TLE`: the most likely
            expert of the next token's first layer is requested too. None: nothing across tokens.
    """

    predictor: str = field()
    probabilities_TLE: F32
    width: int
    eviction: Policy
    threshold: float = 0.0
    layers_HTLE: F32 | None = None
    token_step_ms: float = 0.0
    layer_step_ms: float = 0.0
    later_TLE: F32 | None = None

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        verb = "prefetch" if self.layers_HTLE is None else "layer_prefetch"
        verb = verb if self.later_TLE is None else f"{ACROSS}{verb}"
        return f"{self.predictor}_{verb}_{self.eviction.name.removeprefix(f'{self.predictor}_')}"

    @property
    @override
    def title(self) -> str:  # type: ignore[override]
        steps = "" if self.layers_HTLE is None else " ahead of each layer"
        steps += "" if self.later_TLE is None else " and of the next token"
        under = "predicted eviction" if self.eviction.predictor == self.predictor else self.eviction.title
        return f"{sentence(self.predictor)}: prefetch{steps}, {under}"

    @property
    @override
    def bypass(self) -> bool:  # type: ignore[override]
        return self.eviction.bypass

    @property
    @override
    def per_layer(self) -> bool:  # type: ignore[override]
        return self.eviction.per_layer

    @property
    @override
    def rank(self) -> Rank:  # type: ignore[override]
        return self.eviction.rank

    @property
    @override
    def ahead_HTLE(self) -> F32 | None:  # type: ignore[override]
        return self.eviction.ahead_HTLE

    @property
    @override
    def demand(self) -> Demand | None:  # type: ignore[override]
        return self.eviction.demand

    @property
    @override
    def needs_weights(self) -> bool:  # type: ignore[override]
        return self.eviction.needs_weights

    @property
    @override
    def precisions(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.eviction.precisions

    @override
    def changed_demand(self, events: Events) -> ChangedDemand | None:
        return self.eviction.changed_demand(events)

    @override
    def scores_SM(self, events: Events) -> F32:
        return self.eviction.scores_SM(events)

    @override
    def prefetches(self, events: Events) -> Prefetches:
        # of requests for one event that are known at once the later in the list holds: the next token's own
        requests = [] if self.later_TLE is None else [next_token_requests(events, self.later_TLE, self.threshold)]
        requests.append(token_step_requests(events, self.probabilities_TLE, self.width, self.threshold))
        if self.layers_HTLE is not None:
            requests += layer_step_requests(events, self.layers_HTLE, self.width, self.threshold)
        known_Q, target_Q, counts_Q, experts_X = (np.concatenate(parts) for parts in zip(*requests, strict=True))
        return Prefetches.from_requests(events, known_Q, target_Q, counts_Q, experts_X)


Requests = tuple[I64, I64, I64, I32]
"""Moment, event and number of experts of each request, and the experts: arguments of `Prefetches.from_requests`."""


def token_step_requests(events: Events, probabilities_TLE: F32, width: int, threshold: float) -> Requests:
    """Before each decoded token's first layer: the `width` most probable of every layer, ties by lower id."""
    target_Q = _decoded_layers(events)
    step_Q = events.step_N[target_Q]
    first_S = np.searchsorted(events.step_N, np.arange(events.num_steps))
    experts_X, counts_Q = most_probable(
        probabilities_TLE, events.token_S[step_Q], events.layer_N[target_Q], width, threshold
    )
    return before(first_S[step_Q]), target_Q, counts_Q, experts_X


def layer_step_requests(events: Events, layers_HTLE: F32, width: int, threshold: float) -> list[Requests]:
    """When a decoded token's router has chosen in a layer: the most probable of the next H layers, nearest first."""
    place_Q = _decoded_layers(events)
    requests: list[Requests] = []
    for ahead, ahead_TLE in enumerate(layers_HTLE, start=1):
        # events of a step follow each other layer by layer
        from_Q, target_Q = place_Q[:-ahead], place_Q[ahead:]
        same = events.step_N[from_Q] == events.step_N[target_Q]
        from_Q, target_Q = from_Q[same], target_Q[same]
        token_Q = events.token_S[events.step_N[target_Q]]
        experts_X, counts_Q = most_probable(ahead_TLE, token_Q, events.layer_N[target_Q], width, threshold)
        requests.append((when_routed(from_Q), target_Q, counts_Q, experts_X))
    return requests


def next_token_requests(events: Events, later_TLE: F32, threshold: float) -> Requests:
    """When a decoded token's last router has chosen: the likeliest expert of the first layer that comes next.

    Whether the prompt ends with this token is not known, so what comes next may be another prompt. A model of one layer
    has no time between its routers, and nothing is requested.
    """
    passes, last = LayerPasses.of(events), events.metadata.num_layers - 1
    ends_V = passes.decode_V[:-1] & (passes.layer_V[:-1] == last) & (last > 0)
    from_Q, target_Q = passes.last_V[:-1][ends_V], passes.first_V[1:][ends_V]
    token_Q = events.token_S[events.step_N[from_Q]]
    experts_X, counts_Q = most_probable(later_TLE, token_Q, events.layer_N[target_Q], 1, threshold)
    return when_routed(from_Q), target_Q, counts_Q, experts_X


@compiled()
def most_probable(probabilities_TLE: F32, token_Q: I64, layer_Q: I32, width: int, threshold: float) -> tuple[I32, I64]:
    """The most probable experts of each token and layer, falling, ties by lower id.

    Returns:
        Model-wide ids int32, places one after another, and how many belong to each place, int64 [Q].
    """
    num_experts = probabilities_TLE.shape[2]
    width, least = min(width, num_experts), np.float32(threshold)
    experts_X = np.empty(len(token_Q) * width, np.int32)
    counts_Q = np.zeros(len(token_Q), np.int64)
    best_W = np.empty(width + 1, np.int32)
    end = 0
    for place in range(len(token_Q)):
        row_E = probabilities_TLE[token_Q[place], layer_Q[place]]
        count = 0
        for expert in range(num_experts):
            value = row_E[expert]
            if value < least or (count == width and (width == 0 or value <= row_E[best_W[count - 1]])):
                continue
            at = min(count, width - 1)
            while at > 0 and row_E[best_W[at - 1]] < value:
                best_W[at] = best_W[at - 1]
                at -= 1
            best_W[at] = expert
            count = min(count + 1, width)
        for expert in best_W[:count]:
            experts_X[end] = layer_Q[place] * num_experts + expert
            end += 1
        counts_Q[place] = count
    return experts_X[:end].copy(), counts_Q


def _decoded_layers(events: Events) -> I64:
    """The event that opens each layer of each decoded token: all of them, but in a sequential replay one in k."""
    passes = LayerPasses.of(events)
    return passes.first_V[passes.decode_V]
