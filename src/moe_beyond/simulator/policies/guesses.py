# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Experts that were guessed for every token and layer of a trace, and prefetching by them.

What a real gate or another reader of hidden states names is computed once for a trace: [H, T, L, W] small numbers,
where probabilities would be as many as experts.

Shape suffixes: T tokens, L MoE layers, H layers ahead, W experts that are named, V passes, S steps, I tokens of all
steps, Q requests, X requested experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.predictor.from_hidden import FromHidden
from moe_beyond.simulator.engine.policy import Policy, Prefetches, sentence
from moe_beyond.simulator.jit import I32, I64, compiled
from moe_beyond.simulator.policies.layer_passes import LayerPasses
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Guesses:
    """What is named for each token and layer from layers below.

    Attributes:
        experts_HTLW: int16, ids within the layer, falling; row h is from `first_ahead + h` layers below. -1: nothing.
        first_ahead: 1, or 0: for the layer itself, ahead of its attention.
    """

    experts_HTLW: npt.NDArray[np.int16]
    first_ahead: int = 1

    @classmethod
    def of(cls, predictor: FromHidden, trace: Trace, width: int, horizon: int | None = None) -> Guesses:
        """The `width` experts that a predictor names for each token and layer, as far ahead as it or `horizon` says."""
        farthest = min(predictor.horizon if horizon is None else horizon, max(1, trace.metadata.num_layers - 1))
        aheads = range(predictor.first_ahead, farthest + 1) if predictor.first_ahead else (0,)
        named = [predictor.named_TLW(trace, ahead, width) for ahead in aheads]
        return cls(np.stack(named), predictor.first_ahead)

    @property
    def horizon(self) -> int:
        """Layers ahead, at most."""
        return self.first_ahead + len(self.experts_HTLW) - 1

    def known_share(self, trace: Trace) -> float:
        """Of the decoded tokens' layers that have one below, the share for which something is named there."""
        first_TL = self.experts_HTLW[0, ~trace.is_prefill_T, self.first_ahead :, 0]
        return float((first_TL >= 0).mean()) if first_TL.size else 0.0

    def request_columns(self, events: Events, width: int) -> tuple[I64, I64, I64, I32]:
        """Moment, event, number of experts and experts of each request, as `Prefetches.from_requests` takes them.

        A step of several tokens requests the experts that any of them names among its `width` best. Where nothing is
        named there is no request: an earlier one holds.
        """
        passes = LayerPasses.of(events)
        _, tokens_I, offsets_S = events.routed()
        decoded_V = np.nonzero(passes.decode_V)[0]
        parts = []
        for row, named_TLW in enumerate(self.experts_HTLW):
            ahead = self.first_ahead + row
            from_Q, target_Q = decoded_V[: len(decoded_V) - ahead], decoded_V[ahead:]
            same_Q = passes.step_V[from_Q] == passes.step_V[target_Q]
            from_Q, target_Q = from_Q[same_Q], target_Q[same_Q]
            known_Q = when_routed(passes.last_V[from_Q]) if ahead else before(passes.first_V[from_Q])
            experts_X, counts_Q = _named(
                named_TLW,
                tokens_I,
                offsets_S,
                passes.step_V[target_Q],
                passes.layer_V[target_Q],
                min(width, named_TLW.shape[2]),
                events.metadata.num_experts,
            )
            named_Q = counts_Q > 0
            parts.append((known_Q[named_Q], passes.first_V[target_Q][named_Q], counts_Q[named_Q], experts_X))
        known_Q, target_Q, counts_Q, experts_X = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return known_Q, target_Q, counts_Q, experts_X

    def requests(self, events: Events, width: int) -> Prefetches:
        """Requests for the `width` first experts that are named, the nearest layer's first."""
        return Prefetches.from_requests(events, *self.request_columns(events, width))


@compiled()
def _named(
    named_TLW: npt.NDArray[np.int16],
    tokens_I: I64,
    offsets_S: I64,
    step_Q: I32,
    layer_Q: I32,
    width: int,
    num_experts: int,
) -> tuple[I32, I64]:
    """Model-wide ids that a step's tokens name, the better ranked first, each once; and how many for each request."""
    most = 0
    for step in step_Q:
        most += min(num_experts, width * (offsets_S[step + 1] - offsets_S[step]))
    experts_X, counts_Q = np.empty(most, np.int32), np.zeros(len(step_Q), np.int64)
    named_by_E = np.full(num_experts, -1, np.int64)
    end = 0
    for request in range(len(step_Q)):
        step, layer = step_Q[request], layer_Q[request]
        for place in range(width):
            for i in range(offsets_S[step], offsets_S[step + 1]):
                expert = named_TLW[tokens_I[i], layer, place]
                if expert >= 0 and named_by_E[expert] != request:
                    named_by_E[expert] = request
                    experts_X[end] = layer * num_experts + expert
                    counts_Q[request] += 1
                    end += 1
    return experts_X[:end].copy(), counts_Q


@dataclass(frozen=True)
class GuessPrefetch(Prefetch):
    """The experts that a reader of hidden states names are fetched; `eviction` makes space for them.

    Attributes:
        guesses: What it names for the trace that is replayed.
    """

    guesses: Guesses = field(kw_only=True)

    @classmethod
    def over(
        cls, eviction: Policy, predictor: str, guesses: Guesses, width: int, *, token_ms: float, layer_ms: float
    ) -> GuessPrefetch:
        """Over an eviction, whose own predictor's token step is charged too.

        Args:
            eviction: The policy underneath.
            predictor: Name of the predictor, for tables.
            guesses: What it names.
            width: Experts that are fetched for a layer of a token.
            token_ms: Charged ahead of each token.
            layer_ms: Charged after each layer's router but the last one's.
        """
        return cls(
            predictor=predictor,
            probabilities_TLE=np.zeros((0, 0, 0), np.float32),
            width=width,
            eviction=eviction,
            token_step_ms=token_ms + eviction.token_step_ms,
            layer_step_ms=layer_ms,
            guesses=guesses,
        )

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        return f"{self.predictor}_prefetch_{self.eviction.name}"

    @property
    @override
    def title(self) -> str:  # type: ignore[override]
        evicting = self.eviction.predictor
        under = self.eviction.title if evicting is None else f"eviction by the {evicting.replace('_', ' ')}"
        return f"{sentence(self.predictor)}: prefetch ahead of each layer, {under}"

    @property
    @override
    def evicted_by(self) -> str | None:  # type: ignore[override]
        return self.eviction.predictor

    @override
    def prefetches(self, events: Events) -> Prefetches:
        return self.guesses.requests(events, self.width)
