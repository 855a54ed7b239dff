"""A predictor over a cache: its predictions for a trace, what they cost, and the policies that they drive.

Shape suffixes: T tokens, L MoE layers, E routed experts in a layer, H layers ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from moe_beyond.errors import InputError
from moe_beyond.predictor.base import Predictor
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.jit import F32
from moe_beyond.simulator.policies.anticipate import Anticipate
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import Trace, TraceMetadata


def prefetch_width(meta: TraceMetadata, batch: int, width: int | None = None) -> int:
    """Experts prefetched at most for a layer of a step: the given width, else as many as a step of the batch uses."""
    return meta.top_k * batch if width is None else width


def scaled_width(meta: TraceMetadata, batch: int, share: float) -> int:
    """A multiple of what a step of the batch uses, at least one expert and at most all of a layer."""
    return min(max(1, round(share * prefetch_width(meta, batch))), meta.num_experts)


@dataclass(frozen=True)
class Predictions:
    """A predictor's predictions for the trace that is replayed, computed when first needed.

    Attributes:
        predictor: The predictor. Raises InputError where it is for another model than the trace.
        trace: What is replayed.
        events: Its events.
        token_step_ms: Charged for a token step.
        layer_step_ms: Charged for a layer step.
        popularity_LE: float32; how often a token of the training prompts used each expert; eviction needs it.
    """

    predictor: Predictor
    trace: Trace
    events: Events
    token_step_ms: float = 0.0
    layer_step_ms: float = 0.0
    popularity_LE: F32 | None = None

    @property
    def name(self) -> str:
        """The predictor's, as it stands in names of policies."""
        return self.predictor.name.replace(" ", "_")

    @property
    def has_layer_step(self) -> bool:
        """Whether it predicts anew after each layer's router."""
        return hasattr(self.predictor, "layer_probabilities_HTLE")

    @cached_property
    def probabilities_TLE(self) -> F32:
        """The token step's probabilities, a row a token of the trace."""
        return self.predictor.probabilities_TLE(self.trace)

    @cached_property
    def layer_probabilities_HTLE(self) -> F32 | None:
        """The layer step's probabilities of every token; None where it has none."""
        layer_step: Callable[[Trace], F32] | None = getattr(self.predictor, "layer_probabilities_HTLE", None)
        return None if layer_step is None else layer_step(self.trace)

    @cached_property
    def later_TLE(self) -> F32 | None:
        """How often later tokens use each expert, a row a decode step; None of a predictor that does not say."""
        says: Callable[[Trace], F32 | None] | None = getattr(self.predictor, "later_TLE", None)
        later_TLE = None if says is None else says(self.trace)
        return None if later_TLE is None else self.events.by_step(later_TLE)

    @cached_property
    def token_TLE(self) -> F32:
        """The token step's probabilities, a row a decode step."""
        return self.events.by_step(self.probabilities_TLE)

    @cached_property
    def layers_HTLE(self) -> F32 | None:
        """The layer step's probabilities, a row a decode step; None where it has none."""
        layers_HTLE = self.layer_probabilities_HTLE
        return None if layers_HTLE is None else self.events.by_step(layers_HTLE, axis=1)

    def eviction(self, popularity_LE: F32 | None = None, *, bypass: bool = True) -> Anticipate:
        """Eviction by the predicted next use; popularity as the attribute, where that is missing."""
        popularity_LE = self.popularity_LE if popularity_LE is None else popularity_LE
        if popularity_LE is None:
            raise AssertionError("eviction by the predicted next use needs the training prompts' popularity")
        return Anticipate(
            predictor=self.name,
            probabilities_TLE=self.token_TLE,
            popularity_LE=popularity_LE,
            bypass=bypass,
            token_step_ms=self.token_step_ms,
            later_TLE=self.later_TLE,
        )

    def prefetch(
        self, eviction: Policy, width: int, threshold: float = 0.0, *, layers: bool = False, next_token: bool = False
    ) -> Prefetch:
        """Prefetching of the most probable experts, by the token step or by both steps, and for the next token too.

        Raises:
            InputError: For the next token, by a predictor that says nothing of later tokens.
        """
        if next_token and self.later_TLE is None:
            raise InputError(f"predictor {self.name}: says nothing of later tokens, so nothing is prefetched for them")
        if layers and isinstance(eviction, Anticipate) and eviction.predictor == self.name:
            eviction = replace(eviction, ahead_HTLE=self.layers_HTLE)
        return Prefetch(
            predictor=self.name,
            probabilities_TLE=self.token_TLE,
            width=width,
            eviction=eviction,
            threshold=threshold,
            layers_HTLE=self.layers_HTLE if layers else None,
            token_step_ms=self.token_step_ms,
            layer_step_ms=self.layer_step_ms if layers else 0.0,
            later_TLE=self.later_TLE if next_token else None,
        )

    def policies(self, width: int, threshold: float) -> list[Policy]:
        """Prefetch over LRU and over the predicted eviction, by the token step and by both; the eviction alone.

        Of a predictor that says how later tokens use experts, also prefetch by all it has, for the next token too.
        """
        steps = (False, True) if self.has_layer_step else (False,)
        evictions = (self.eviction(), Lru())
        fetching = [self.prefetch(out, width, threshold, layers=layers) for layers in steps for out in evictions]
        if self.later_TLE is not None:
            fetching.append(self.prefetch(evictions[0], width, threshold, layers=self.has_layer_step, next_token=True))
        return [*fetching, evictions[0]]
