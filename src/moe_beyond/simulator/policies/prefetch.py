"""Prefetching by any predictor: fetch ahead the experts that a layer most probably uses.

A token step answers for all layers before the token's first one. A layer step answers again for the next few layers
each time a router has chosen, and replaces what was asked for them and has not begun.

Shape suffixes: T tokens, L MoE layers, E routed experts in a layer, H layers ahead, N events, Q asks, X experts asked
for, W experts fetched at most (the width).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.simulator.engine.policy import ChangedDemand, Demand, Policy, Prefetches, Rank, sentence
from moe_beyond.simulator.jit import compiled
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import before, when_routed


@dataclass(frozen=True)
class Prefetch(Policy):
    """A predictor's most probable experts are fetched before each decode event; `eviction` says who leaves for them.

    A batched prefill fetches nothing ahead: it wants nearly every expert anyway.

    Attributes:
        predictor: Name of the predictor, for tables.
        probabilities_TLE: Its token step's answer for the trace that is replayed; of several prompts at once, what
            `Events.by_step` makes of it.
        width: Experts fetched at most per layer.
        eviction: The policy underneath.
        threshold: An expert below this probability is not fetched.
        layers_HTLE: Its layer step's answer, as `predictor.base.LayerPredictor` gives it, or `Events.by_step` along
            axis 1; None: the token step alone.
        token_step_ms: Charged for its token step.
        layer_step_ms: Charged for its layer step.
    """

    predictor: str = field()
    probabilities_TLE: npt.NDArray[np.float32]
    width: int
    eviction: Policy
    threshold: float = 0.0
    layers_HTLE: npt.NDArray[np.float32] | None = None
    token_step_ms: float = 0.0
    layer_step_ms: float = 0.0

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        verb = "prefetch" if self.layers_HTLE is None else "layer_prefetch"
        return f"{self.predictor}_{verb}_{self.eviction.name.removeprefix(f'{self.predictor}_')}"

    @property
    @override
    def title(self) -> str:  # type: ignore[override]
        steps = "" if self.layers_HTLE is None else " ahead of each layer"
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
    def rank(self) -> Rank:
        return self.eviction.rank

    @property
    @override
    def demand(self) -> Demand | None:
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
    def scores_SM(self, events: Events) -> npt.NDArray[np.float32]:
        return self.eviction.scores_SM(events)

    @override
    def prefetches(self, events: Events) -> Prefetches:
        asks = [token_step_asks(events, self.probabilities_TLE, self.width, self.threshold)]
        if self.layers_HTLE is not None:
            asks += layer_step_asks(events, self.layers_HTLE, self.width, self.threshold)
        known_Q, target_Q, counts_Q, experts_X = (np.concatenate(parts) for parts in zip(*asks, strict=True))
        return Prefetches.ask(events, known_Q, target_Q, counts_Q, experts_X)


Asks = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]
"""Moment, event and number of experts of each ask, and the experts: arguments of `Prefetches.ask`."""


def token_step_asks(events: Events, probabilities_TLE: npt.NDArray[np.float32], width: int, threshold: float) -> Asks:
    """Before each decoded token's first layer: the `width` most probable of every layer, ties by lower id."""
    target_Q = _decoded_layers(events)
    step_Q = events.step_N[target_Q]
    first_S = np.searchsorted(events.step_N, np.arange(events.num_steps))
    experts_X, counts_Q = most_probable(
        probabilities_TLE, events.token_S[step_Q], events.layer_N[target_Q], width, threshold
    )
    return before(first_S[step_Q]), target_Q, counts_Q, experts_X


def layer_step_asks(events: Events, layers_HTLE: npt.NDArray[np.float32], width: int, threshold: float) -> list[Asks]:
    """When a decoded token's router has chosen in a layer: the most probable of the next H layers, nearest first."""
    place_Q = _decoded_layers(events)
    asks: list[Asks] = []
    for ahead, answer_TLE in enumerate(layers_HTLE, start=1):
        # events of a step follow each other layer by layer
        asking_Q, target_Q = place_Q[:-ahead], place_Q[ahead:]
        same = events.step_N[asking_Q] == events.step_N[target_Q]
        asking_Q, target_Q = asking_Q[same], target_Q[same]
        token_Q = events.token_S[events.step_N[target_Q]]
        experts_X, counts_Q = most_probable(answer_TLE, token_Q, events.layer_N[target_Q], width, threshold)
        asks.append((when_routed(asking_Q), target_Q, counts_Q, experts_X))
    return asks


@compiled()
def most_probable(
    probabilities_TLE: npt.NDArray[np.float32],
    token_Q: npt.NDArray[np.int64],
    layer_Q: npt.NDArray[np.int32],
    width: int,
    threshold: float,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
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


def _decoded_layers(events: Events) -> npt.NDArray[np.int64]:
    """The event that opens each layer of each decoded token: all of them, but in a sequential replay one in k."""
    place_N = events.step_N.astype(np.int64) * events.metadata.num_layers + events.layer_N
    opens_N = np.concatenate([[True], place_N[1:] != place_N[:-1]])
    return np.nonzero(opens_N & events.is_decode_S[events.step_N])[0]
