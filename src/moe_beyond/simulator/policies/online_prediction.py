"""Prefetch and eviction by a predictor's two steps while a model runs.

Shape suffixes: T tokens of a step, L MoE layers, K experts per token, E routed experts in a layer, H layers ahead,
M = L * E experts of the model, Q requests, X requested experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.errors import InputError
from moe_beyond.predictor.base import sigmoid
from moe_beyond.simulator.engine.online import Online, Request, Routing, Step
from moe_beyond.simulator.jit import F32, I64, Bools
from moe_beyond.simulator.policies.anticipate import Anticipate, local_rates
from moe_beyond.simulator.policies.prefetch import Prefetch, most_probable
from moe_beyond.simulator.schedule.events import members_of

if TYPE_CHECKING:
    from moe_beyond.predictor.runtime import OnnxPredictor
    from moe_beyond.predictor.stream import Stream
    from moe_beyond.simulator.engine.policy import Policy
    from moe_beyond.traces.schema import TraceMetadata

_NONE_LK = np.zeros((0, 0), np.int64)


@dataclass
class OnlinePrediction(Online):
    """A predictor's token step ahead of each decoded token, its layer step after each router, and eviction by both.

    A predictor that reads hidden states (`OnnxPredictor.reading`) gets what each router read.

    Attributes:
        predictor: Whose streams run, one a prompt.
        width: Experts requested at most for a layer; 0: only evictions read the predictor.
        threshold: An expert below this probability is not requested.
        layers: Whether the layer step runs.
        next_token: Whether the likeliest expert of the next token's first layer is requested too.
        popularity_M: float32; how often a token of the training prompts used each expert; None where eviction reads no
            prediction.
        under: What another policy decides, over which this one prefetches.
        token_ms: Milliseconds that the predictor has taken so far.
        layer_ms: The part of them between routers and experts.
    """

    predictor: OnnxPredictor
    width: int
    threshold: float
    layers: bool
    popularity_M: F32 | None
    under: Online = field(default_factory=Online)
    next_token: bool = False
    token_ms: float = 0.0
    layer_ms: float = 0.0
    _stream: Stream | None = None
    _previous_LK: npt.NDArray[np.integer] = field(default_factory=lambda: _NONE_LK)
    _rate_M: F32 = field(default_factory=lambda: np.zeros(0, np.float32))

    @override
    def begin(self, step: Step) -> tuple[F32 | None, list[Request]]:
        scores_M, requests = self.under.begin(step)
        started = perf_counter()
        if step.starts_prompt:
            self._stream, self._previous_LK = self.predictor.stream(), _NONE_LK
            self._rate_M = np.zeros(0, np.float32) if self.popularity_M is None else self.popularity_M.copy()
        probabilities_LE: F32 | None = None
        if step.decodes and self._stream is not None:
            previous_LK = self._previous_LK if self._previous_LK.size else None
            probabilities_LE = self._stream.step(step.tokens[0], previous_LK)
            layers_L = np.arange(self.predictor.num_layers)
            requests += self._requests(step.first_event + layers_L, probabilities_LE, layers_L, self.width)
        if self.popularity_M is not None:
            # a prefill has no prediction: its experts are expected at their rate
            expected_M = self._rate_M if probabilities_LE is None else probabilities_LE.ravel()
            later_LE = None if probabilities_LE is None or self._stream is None else self._stream.later_logits_LE
            scores_M = np.concatenate([expected_M, self._rate_M if later_LE is None else sigmoid(later_LE).ravel()])
        self.token_ms += 1e3 * (perf_counter() - started)
        return scores_M, requests

    @override
    def keep(self, routing: Routing) -> Bools | None:
        return self.under.keep(routing)

    @override
    def routed(self, routing: Routing) -> list[Request]:
        layer, last = routing.layer, self.predictor.num_layers - 1
        if not routing.decodes or self._stream is None:
            return []
        if layer == last:
            return self._for_the_next_token(routing.event) if self.next_token else []
        if not self.layers:
            return []
        started = perf_counter()
        gate_input_Z = None
        if self.predictor.uses_hidden:
            if routing.gate_input is None:
                raise InputError(
                    f"{self.predictor.path}: reads hidden states, which are not there where a trace is stepped"
                )
            gate_input_Z = routing.gate_input()
        probabilities_HE = self._stream.layer_step(layer, routing.experts_TK[0], gate_input_Z)[: last - layer]
        layers_H = layer + 1 + np.arange(len(probabilities_HE))
        requests = self._requests(routing.event + 1 + np.arange(len(layers_H)), probabilities_HE, layers_H, self.width)
        if self.popularity_M is not None:
            requests = [
                request._replace(scores_E=scores_E)
                for request, scores_E in zip(requests, probabilities_HE, strict=True)
            ]
        took_ms = 1e3 * (perf_counter() - started)
        self.token_ms += took_ms
        self.layer_ms += took_ms
        return requests

    @override
    def end(self, step: Step, experts_TLK: npt.NDArray[np.integer]) -> None:
        self.under.end(step, experts_TLK)
        started = perf_counter()
        if not step.decodes and self._stream is not None:
            self._stream.prefill(step.tokens, experts_TLK)
        self._previous_LK = experts_TLK[-1]
        if self.popularity_M is not None:
            self._rate_M = _rates_after(self._rate_M, experts_TLK, self.predictor.num_experts)
        self.token_ms += 1e3 * (perf_counter() - started)

    def _for_the_next_token(self, event: int) -> list[Request]:
        later_LE = None if self._stream is None else self._stream.later_logits_LE
        if later_LE is None or self.predictor.num_layers == 1:
            return []
        started = perf_counter()
        requests = self._requests(np.array([event + 1]), sigmoid(later_LE[:1]), np.zeros(1, np.int64), 1)
        self.token_ms += 1e3 * (perf_counter() - started)
        return requests

    def _requests(self, targets_Q: I64, probabilities_QE: F32, layers_Q: I64, width: int) -> list[Request]:
        if not self.width:
            return []
        all_TLE = np.zeros((1, self.predictor.num_layers, self.predictor.num_experts), np.float32)
        all_TLE[0, layers_Q] = probabilities_QE
        token_Q = np.zeros(len(layers_Q), np.int64)
        experts_X, counts_Q = most_probable(all_TLE, token_Q, layers_Q.astype(np.int32), width, self.threshold)
        ends_Q = np.cumsum(counts_Q)
        return [
            Request(int(target), experts_X[end - count : end])
            for target, end, count in zip(targets_Q, ends_Q, counts_Q, strict=True)
        ]


def predicted(  # noqa: PLR0917 - what a plan holds
    predictor: OnnxPredictor,
    meta: TraceMetadata,
    popularity_LE: F32 | None,
    eviction: Policy | None,
    width: int,
    threshold: float,
    *,
    layers: bool,
    next_token: bool = False,
) -> tuple[Policy, Online]:
    """A policy by a predictor's streams, and its decisions beside a running model.

    Args:
        predictor: Of this model.
        meta: The model's shape.
        popularity_LE: How often a token of the training prompts used each expert; for eviction by the predicted use.
        eviction: Over which it prefetches; None: eviction by the predicted next use.
        width: Experts prefetched at most for a layer; 0: none, the predictor only evicts.
        threshold: Least probability of those.
        layers: Whether the layer step runs too.
        next_token: Whether the next token's first layer is prefetched for too.

    Raises:
        InputError: The predictor is for another model, or says nothing of later tokens where one is prefetched for, or
            `eviction` cannot decide beside a model.
    """
    predictor.require_model(meta)
    if next_token and not predictor.predicts_later:
        raise InputError(f"{predictor.path}: says nothing of later tokens, so nothing is prefetched for them")
    name, none_TLE = predictor.name.replace(" ", "_"), np.zeros((0, meta.num_layers, meta.num_experts), np.float32)
    under, popularity_M = Online(), None
    if eviction is not None:
        under = eviction.online(meta)
    else:
        if popularity_LE is None:
            raise AssertionError("eviction by the predicted next use needs the training prompts' popularity")
        popularity_M = np.ascontiguousarray(popularity_LE.ravel())
        later_TLE = none_TLE if predictor.predicts_later else None
        eviction = Anticipate(name, none_TLE, popularity_LE, later_TLE=later_TLE)
    online = OnlinePrediction(predictor, width, threshold, layers, popularity_M, under, next_token)
    if not width:
        return eviction, online
    layers_HTLE = none_TLE[None] if layers else None
    later_TLE = none_TLE if next_token else None
    return Prefetch(name, none_TLE, width, eviction, threshold, layers_HTLE, later_TLE=later_TLE), online


def _rates_after(rate_M: F32, experts_TLK: npt.NDArray[np.integer], num_experts: int) -> F32:
    """How often a token uses each expert once a step has ended: float32 [M]."""
    num_tokens, num_layers, top_k = experts_TLK.shape
    members = [members_of(experts_TLK[:, layer], layer, num_experts) for layer in range(num_layers)]
    offsets_N = np.cumsum([0, *map(len, members)], dtype=np.int64)
    steps, tokens_S = np.zeros(2, np.int32), np.array([num_tokens, 1], np.int64)
    # the rates ahead of the step that follows
    rates_SM = local_rates(
        np.concatenate(members), offsets_N, np.zeros(num_layers, np.int32), steps, tokens_S, rate_M, top_k
    )
    return np.asarray(rates_SM[1])
