"""Predictors that read hidden states of the token under way: what they have in common. No torch.

Shape suffixes: T tokens, L MoE layers, K experts per token, E experts, H horizon, D hidden size of the traced model,
N tokens of some layer, W experts that are named.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.predictor.base import Floats, sigmoid
from moe_beyond.predictor.latency import median_ms, round_up
from moe_beyond.predictor.recall import hits_at_k, most_probable
from moe_beyond.traces.hidden import HiddenStates, Routers
from moe_beyond.traces.schema import ExpertIds, Trace, TraceMetadata

Bools = npt.NDArray[np.bool_]
Named = npt.NDArray[np.int16]
HORIZON = 4
"""Layers that these predictors look ahead at most."""
LEAST = 1e-6
"""Below it nothing is predicted: where a predictor knows something, even its last choice is at least this probable."""
_CHUNK_TOKENS = 8192
"""Tokens of a layer that are read at once."""
_CALL_MS, _MEGA_WEIGHT_MS = 0.012, 0.3
"""What one call, and a million weights, take on one thread of an AMD EPYC core of the Zen 5 generation with numpy 2, at
most: raised like the charge of our own steps (see `latency`)."""


@dataclass(frozen=True)
class Seen:
    """What is known of tokens in the layer from which is predicted.

    Attributes:
        inputs_ND: Hidden states, float32.
        experts_NK: What the layer's router chose.
        weights_NK: Combine weights, float32, or None.
    """

    inputs_ND: Floats
    experts_NK: ExpertIds
    weights_NK: Floats | None = None

    def one_hot_NE(self, num_experts: int, *, weighted: bool = False) -> Floats:
        """1, or the combine weight, for chosen experts, 0 for all others; float32."""
        chosen_NE = np.zeros((len(self.experts_NK), num_experts), np.float32)
        values = self.weights_NK if weighted and self.weights_NK is not None else np.float32(1)
        np.put_along_axis(chosen_NE, self.experts_NK.astype(np.int64), values, axis=1)
        return chosen_NE


class FromHidden(ABC):
    """Predicts a token's experts of a layer from a hidden state of a layer below. A `base.LayerPredictor`.

    It has no token step: `probabilities_TLE` is 0, which means that nothing is predicted. So is a horizon's entry where
    no layer so far below has its hidden states kept; everywhere else it is `LEAST` or more, but for experts that a
    router cannot choose.

    Attributes:
        name: In tables and plots.
        first_ahead: The nearest layer that is predicted: 1, the next one, or 0, the layer itself, ahead of its
            attention.
    """

    name: ClassVar[str]
    horizon: ClassVar[int] = HORIZON
    first_ahead: ClassVar[int] = 1

    @abstractmethod
    def scores_NE(self, layer: int, ahead: int, seen: Seen) -> Floats:
        """Scores that order the experts of layer `layer + ahead`, by what is seen in `layer`; float32."""

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Numbers that it holds beyond the traced model's own."""

    @property
    @abstractmethod
    def weights_per_layer(self) -> int:
        """Numbers that it multiplies with after one layer, those of the model's routers among them."""

    def states(self, hidden: HiddenStates) -> npt.NDArray[np.float16] | None:
        """Which of the hidden states it reads; None: they are not kept."""
        return hidden.gate_inputs_SYD

    def scores_ahead(self, trace: Trace, ahead: int) -> tuple[Floats, Bools]:
        """Scores of each layer from `ahead` layers below, float32 [T, L, E], and where there are any, bool [T, L].

        Where there are none the scores are 0.
        """
        meta = trace.metadata
        scores_TLE = np.zeros((trace.num_tokens, meta.num_layers, meta.num_experts), np.float32)
        known_TL = np.zeros(scores_TLE.shape[:2], bool)
        for layer, target, tokens, scores_NE in self.parts(trace, ahead):
            scores_TLE[tokens, target] = scores_NE
            known_TL[tokens, layer + ahead] = True
        return scores_TLE, known_TL

    def probabilities_TLE(self, trace: Trace) -> Floats:
        """0 for all, float32 [T, L, E]: ahead of a token nothing is predicted."""
        meta = trace.metadata
        return np.broadcast_to(np.float32(0), (trace.num_tokens, meta.num_layers, meta.num_experts))

    def layer_probabilities_HTLE(self, trace: Trace) -> Floats:
        """Above one half for the k that it names; 0 where nothing is predicted. No calibrated chances."""
        meta = trace.metadata
        found_HTLE = np.zeros((self.horizon, trace.num_tokens, meta.num_layers, meta.num_experts), np.float32)
        for ahead in range(1, self.horizon + 1):
            for _, target, tokens, scores_NE in self.parts(trace, ahead):
                found_HTLE[ahead - 1, tokens, target] = likely_NE(scores_NE, meta.top_k)
        return found_HTLE

    def named_TLW(self, trace: Trace, ahead: int, width: int) -> Named:
        """The `width` experts of the highest scores, falling, int16 [T, L, W]; -1 where nothing is predicted."""
        meta = trace.metadata
        named_TLW = np.full((trace.num_tokens, meta.num_layers, min(width, meta.num_experts)), -1, np.int16)
        for _, target, tokens, scores_NE in self.parts(trace, ahead):
            best_NW = most_probable(scores_NE, named_TLW.shape[2])
            out_NW = np.isneginf(np.take_along_axis(scores_NE, best_NW, axis=1))
            named_TLW[tokens, target] = np.where(out_NW, -1, best_NW)
        return named_TLW

    def step_ms(self, meta: TraceMetadata, width: int, repeats: int = 200) -> float:
        """Median milliseconds of predicting after one layer of one token, all layers ahead, on one thread."""
        seen = Seen(
            np.ones((1, width), np.float32),
            np.arange(meta.top_k, dtype=np.uint16)[None],
            np.ones((1, meta.top_k), np.float32),
        )
        farthest = min(self.horizon, meta.num_layers - 1) if self.first_ahead else 0

        def step() -> None:
            for ahead in range(self.first_ahead, farthest + 1):
                most_probable(self.scores_NE(0, ahead, seen), meta.top_k)

        return median_ms(step, repeats)

    def charged_ms(self, measured_ms: float = 0.0) -> float:
        """What is charged for a step: arithmetic, or where that is less what was measured, rounded up to two digits."""
        calls = self.horizon if self.first_ahead else 1
        return max(round_up(calls * _CALL_MS + _MEGA_WEIGHT_MS * self.weights_per_layer / 1e6), round_up(measured_ms))

    def parts(self, trace: Trace, ahead: int) -> Iterator[tuple[int, int, npt.NDArray[np.int64], Floats]]:
        """The layer, the target, the tokens that have something to go by, and their scores."""
        hidden = trace.hidden
        if hidden is None or self.states(hidden) is None or ahead < self.first_ahead:
            return
        if self.first_ahead == 0 and ahead > 0:
            return
        for target in range(ahead, trace.metadata.num_layers):
            for tokens, seen in seen_parts(trace, self, target - ahead):
                yield target - ahead, target, tokens, self.scores_NE(target - ahead, ahead, seen)


def seen_parts(trace: Trace, reader: FromHidden, layer: int) -> Iterator[tuple[npt.NDArray[np.int64], Seen]]:
    """What is kept of a layer, in parts: tokens of the trace, and what is seen of them."""
    hidden = trace.hidden
    states_SYD = None if hidden is None else reader.states(hidden)
    if hidden is None or states_SYD is None or layer not in hidden.layers:
        return
    tokens_N = np.nonzero(np.asarray(hidden.rows_T) >= 0)[0]
    for start in range(0, len(tokens_N), _CHUNK_TOKENS):
        tokens = tokens_N[start : start + _CHUNK_TOKENS]
        weights_TLK = trace.weights_TLK
        yield (
            tokens,
            Seen(
                hidden.of_layer(states_SYD, layer, tokens)[0],
                np.asarray(trace.experts_TLK[tokens, layer]),
                None if weights_TLK is None else np.asarray(weights_TLK[tokens, layer], np.float32),
            ),
        )


def likely_NE(scores_NE: Floats, top_k: int) -> Floats:
    """Scores as numbers of the interval [LEAST, 1], above one half for the best k: the logistic of the distance to it.

    What has minus infinity cannot be chosen: 0.
    """
    num_experts = scores_NE.shape[1]
    if top_k == num_experts:
        return np.ones_like(scores_NE)
    finite_NE = np.where(np.isneginf(scores_NE), np.finfo(np.float32).min / 4, scores_NE)
    sorted_NE = np.partition(finite_NE, [num_experts - top_k - 1, num_experts - top_k], axis=1)
    edge_N1 = sorted_NE[:, num_experts - top_k - 1 : num_experts - top_k + 1].mean(axis=1, keepdims=True)
    likely = np.maximum(sigmoid(np.asarray(finite_NE - edge_N1, np.float32)), np.float32(LEAST))
    return np.where(np.isneginf(scores_NE), np.float32(0), likely)


def require_routers(trace: Trace) -> Routers:
    """The routers of the traced model.

    Raises:
        InputError: The trace has none.
    """
    if trace.hidden is None or trace.hidden.routers is None:
        raise InputError(f"the trace of {trace.metadata.model_id} has no routers' weights, which a next gate needs")
    return trace.hidden.routers


def recall_ahead(predictor: FromHidden, trace: Trace, ahead: int) -> float:
    """Hits at k over the router's choices of all that is predicted at a horizon; 0 where nothing is."""
    hits = accesses = 0
    for _, target, tokens, scores_NE in predictor.parts(trace, ahead):
        chosen_N1K = trace.experts_TLK[tokens, target][:, None]
        hits += int(hits_at_k(scores_NE[:, None], chosen_N1K).sum(dtype=np.int64))
        accesses += chosen_N1K.size
    return hits / accesses if accesses else 0.0
