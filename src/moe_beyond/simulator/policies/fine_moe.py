# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""FineMoE, first named fMoE (arXiv 2502.05370): the map of the token under way is matched against those of past tokens.

A map says with which probability a token's gates chose each expert of each layer. The store keeps maps of tokens, each
beside a key that is known when its token begins. The map of the nearest key is prefetched for the first layers; after
each layer the nearest map, by the layers seen so far, is prefetched for the layers from some distance on. After its
public code (IntelliSys-Lab/FineMoE-EuroSys26).

The publication's key is the token's input embedding, which traces do not have. The token itself stands in: equal tokens
have equal embeddings, and of others nothing is known, so that a token that no stored map is of finds nothing. Where a
trace has weights, a map holds those of the chosen experts, and otherwise equal ones; of the others nothing is known.
The rule of width, which takes experts until their probabilities reach 1 - similarity but never fewer than the router,
therefore always comes to the router's number.

Shape suffixes: G maps that are ever stored, N maps stored at one time, T tokens of the trace, I tokens of decode steps,
S steps, L MoE layers, K experts per token, E routed experts in a layer, M = L * E experts, Q prefetch requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from moe_beyond.data.tokens import token_strings
from moe_beyond.simulator.engine.policy import RANKS, SCORE, USES_RESIDENT, Policy, Prefetches
from moe_beyond.simulator.jit import F32, F64, I32, I64, RANK, Bools, compiled
from moe_beyond.simulator.policies.count_matrices import model_wide_TLK
from moe_beyond.simulator.policies.layer_passes import LayerPasses
from moe_beyond.simulator.policies.moe_infinity import ALL_LAYERS
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from moe_beyond.simulator.schedule.weight_shares import shares_TLK
from moe_beyond.traces.schema import Trace

DISTANCE = 6
"""For how many first layers the key is used; after layer l the maps are used from layer l + DISTANCE + 1 on."""
NONE = -1


@compiled(RANK, borrows=True)
def probability_by_visits(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank by the probability that the last match gave, times uses since admission, as a whole number."""
    for place, expert in enumerate(residents):
        features_FM[RANKS, place] = np.floor(features_FM[SCORE, expert] * features_FM[USES_RESIDENT, expert])


class Maps(NamedTuple):
    """Gate maps of tokens: model-wide expert ids in the router's order, and their probabilities."""

    experts_GLK: I32
    shares_GLK: F32


class Found(NamedTuple):
    """All maps that are ever stored, and the one that the key and the layers so far of each decoded token found."""

    ever: Maps
    step_I: I64
    by_key_I: I64
    by_map_IL: I64


@dataclass(frozen=True)
class FineMoe(Policy):
    """Two matches a token, one ahead of it and one along its layers (FineMoE, arXiv 2502.05370).

    A finished token's map, also a prompt's, replaces the stored one that resembles it most, by d/L of the key's
    similarity and 1 - d/L of the map's. A match that finds the map of the layer before again is not repeated, so its
    requests keep their first priority. Eviction reads what was matched before the token, and for its first layers its
    key's match.

    Attributes:
        stored: Maps of training tokens that the store starts with.
        keys: Strings of those tokens, empty ones where the trace knows no tokens.
    """

    stored: Maps
    keys: tuple[str, ...]
    name = "fine_moe"
    title = "FineMoE"
    lookahead = ALL_LAYERS
    rank = staticmethod(probability_by_visits)

    @classmethod
    def fit(cls, training: Trace, num_maps: int = 1000) -> FineMoe:
        """Fill the store with tokens evenly spread over the training split."""
        tokens = np.unique(np.linspace(0, training.num_tokens - 1, num_maps).round().astype(np.int64))
        vocabulary, codes_T = token_strings(training)
        return cls(_maps(training, tokens), tuple(vocabulary[code] for code in codes_T[tokens].tolist()))

    @override
    def scores_SM(self, events: Events) -> F32:
        meta, found = events.metadata, self._found(events)
        scores_SLE = np.zeros((events.num_steps, meta.num_layers, meta.num_experts), np.float32)
        for layer in range(meta.num_layers):
            last_S = np.full(events.num_steps, NONE)
            if layer < DISTANCE:
                steps_Q, shares_QE = _named(found, found.by_key_I, layer, meta.num_experts)
                last_S[steps_Q] = np.arange(len(steps_Q))
            elif layer > DISTANCE:
                steps_Q, shares_QE = _named(found, found.by_map_IL[:, layer - DISTANCE - 1], layer, meta.num_experts)
                # found during the step, so known ahead of the next one
                later = steps_Q < events.num_steps - 1
                last_S[steps_Q[later] + 1] = np.nonzero(later)[0]
            last_S = np.maximum.accumulate(last_S)
            if (last_S >= 0).any():
                scores_SLE[last_S >= 0, layer] = shares_QE[last_S[last_S >= 0]]
        return scores_SLE.reshape(events.num_steps, -1)

    @override
    def prefetches(self, events: Events) -> Prefetches:
        requests = list(self._requests(events))
        if not requests:
            return Prefetches.none()
        known_Q, target_Q, counts_Q, experts_X, priorities_X = map(np.concatenate, zip(*requests, strict=True))
        return Prefetches.from_requests(events, known_Q, target_Q, counts_Q, experts_X, priorities_X=priorities_X)

    def _requests(self, events: Events) -> Iterator[tuple[I64, I64, I64, I64, F32]]:
        """Of a layer at a time: moment and target of each request, how many experts, which, and their priorities."""
        passes, found = LayerPasses.of(events), self._found(events)
        num_layers, num_experts = events.metadata.num_layers, events.metadata.num_experts
        near = min(DISTANCE, num_layers)
        for layer in range(near):
            steps_Q, shares_QE = _named(found, found.by_key_I, layer, num_experts)
            known_Q, target_Q = (
                before(passes.first_V[steps_Q * num_layers]),
                passes.first_V[steps_Q * num_layers + layer],
            )
            yield known_Q, target_Q, *_in_order(shares_QE, layer, 1 - layer / (near + 1))
        for seen in range(num_layers - DISTANCE - 1):
            by_map_I = found.by_map_IL[:, seen]
            if seen:
                anew = found.step_I[by_map_I != found.by_map_IL[:, seen - 1]]
                by_map_I = np.where(np.isin(found.step_I, anew), by_map_I, NONE)
            first = seen + DISTANCE + 1
            for layer in range(first, num_layers):
                steps_Q, shares_QE = _named(found, by_map_I, layer, num_experts)
                known_Q = when_routed(passes.last_V[steps_Q * num_layers + seen])
                target_Q = passes.first_V[steps_Q * num_layers + layer]
                yield known_Q, target_Q, *_in_order(shares_QE, layer, 1 - (layer - first) / (num_layers + 1))

    def _found(self, events: Events) -> Found:
        trace, tokens_I, offsets_S = events.routed()
        vocabulary, codes_T = token_strings(trace)
        known = trace.token_ids_T is not None or trace.token_texts is not None
        code_of = {text: code for code, text in enumerate(vocabulary)} if known else {}
        key_N = np.array([code_of.get(text, NONE) for text in self.keys], np.int64)
        replayed = _maps(trace, np.arange(trace.num_tokens))
        by_key_T, by_map_TL = nearest_maps(
            *replayed,
            np.where(known, codes_T, NONE).astype(np.int64),
            tokens_I,
            offsets_S,
            events.is_decode_S,
            *self.stored,
            key_N,
            trace.metadata.num_model_experts,
        )
        step_I = np.repeat(np.arange(events.num_steps), np.diff(offsets_S))
        decoded_I = events.is_decode_S[step_I]
        ever = Maps(*(np.concatenate(pair) for pair in zip(self.stored, replayed, strict=True)))
        tokens_I = tokens_I[decoded_I]
        return Found(ever, step_I[decoded_I], by_key_T[tokens_I], by_map_TL[tokens_I])


def _maps(trace: Trace, tokens: I64) -> Maps:
    experts_GLK = model_wide_TLK(trace)[tokens]
    if trace.weights_TLK is None:
        return Maps(experts_GLK, np.full(experts_GLK.shape, 1 / trace.metadata.top_k, np.float32))
    return Maps(experts_GLK, shares_TLK(trace.weights_TLK[tokens]))


def _named(found: Found, map_I: I64, layer: int, num_experts: int) -> tuple[I64, F32]:
    """Steps in which tokens found maps, and what these say of a layer, of several tokens the largest: [Q], [Q, E]."""
    (tokens,) = np.nonzero(map_I != NONE)
    steps_Q, row = np.unique(found.step_I[tokens], return_inverse=True)
    shares_QE = np.zeros((len(steps_Q), num_experts), np.float32)
    experts = found.ever.experts_GLK[map_I[tokens], layer] - layer * num_experts
    np.maximum.at(shares_QE, (row[:, None], experts), found.ever.shares_GLK[map_I[tokens], layer])
    return steps_Q, shares_QE


def _in_order(shares_QE: F32, layer: int, decay: float) -> tuple[I64, I64, F32]:
    """How many experts each row names, which, the most probable first, and their priorities."""
    order_QE = np.argsort(-shares_QE, axis=1, kind="stable")
    shares_QE = np.take_along_axis(shares_QE, order_QE, axis=1)
    named_QE = shares_QE > 0
    experts_X = (order_QE + layer * shares_QE.shape[1])[named_QE]
    return named_QE.sum(axis=1), experts_X, shares_QE[named_QE] * np.float32(decay)


@compiled()
def nearest_maps(
    experts_TLK: I32,
    shares_TLK: F32,
    key_T: I64,
    tokens_I: I64,
    offsets_S: I64,
    is_decode_S: Bools,
    experts_NLK: I32,
    shares_NLK: F32,
    key_N: I64,
    num_model_experts: int,
) -> tuple[I64, I64]:
    """The stored map that each decoded token's key finds, and that its layers so far find; ties are won by the first.

    Maps 0 to N - 1 are those that the store starts with, map N + t is that of token t, stored when its step has ended.

    Returns:
        int64 [T], NONE where no stored key is the token's, or it is not decoded; int64 [T, L], NONE where no layer lies
        far enough above.
    """
    num_tokens, num_layers = experts_TLK.shape[0], experts_TLK.shape[1]
    num_stored = len(experts_NLK)
    map_MN = np.zeros((num_model_experts, num_stored), np.float32)
    # one over the length of each map's first layers
    scale_LN = np.zeros((num_layers, num_stored), np.float32)
    map_N, key_N = np.arange(num_stored), key_N.copy()
    for place in range(num_stored):
        _store(map_MN, scale_LN, place, experts_NLK[place], shares_NLK[place])
    by_key_T, by_map_TL = np.full(num_tokens, NONE), np.full((num_tokens, num_layers), NONE)
    sum_N, alike_N = np.zeros(num_stored, np.float32), np.zeros(num_stored, np.float32)
    near = np.float32(min(1.0, DISTANCE / num_layers))
    for step in range(len(is_decode_S)):
        tokens = tokens_I[offsets_S[step] : offsets_S[step + 1]]
        for token in tokens:
            if not is_decode_S[step]:
                break
            if key_T[token] != NONE:
                for place in range(num_stored):
                    if key_N[place] == key_T[token]:
                        by_key_T[token] = map_N[place]
                        break
            sum_N[:] = 0
            for layer in range(num_layers - DISTANCE - 1):
                _accumulate(sum_N, map_MN, experts_TLK[token, layer], shares_TLK[token, layer])
                by_map_TL[token, layer] = map_N[_nearest(sum_N, scale_LN[layer])]
        for token in tokens:
            sum_N[:] = 0
            for layer in range(num_layers):
                _accumulate(sum_N, map_MN, experts_TLK[token, layer], shares_TLK[token, layer])
            own = shares_TLK[token]
            alike_N[:] = (1 - near) / np.sqrt(np.sum(own * own)) * sum_N * scale_LN[num_layers - 1]
            if key_T[token] != NONE:
                alike_N += near * (key_N == key_T[token])
            place = int(np.argmax(alike_N))
            map_N[place], key_N[place] = num_stored + token, key_T[token]
            _store(map_MN, scale_LN, place, experts_TLK[token], shares_TLK[token])
    return by_key_T, by_map_TL


@compiled()
def _store(map_MN: F32, scale_LN: F32, place: int, experts_LK: I32, shares_LK: F32) -> None:
    """Put a map into the store, with one over the length of its first layers, for each number of them."""
    map_MN[:, place] = 0
    square = np.float32(0)
    for layer in range(experts_LK.shape[0]):
        for slot in range(experts_LK.shape[1]):
            map_MN[experts_LK[layer, slot], place] = shares_LK[layer, slot]
            square += shares_LK[layer, slot] * shares_LK[layer, slot]
        scale_LN[layer, place] = 1 / np.sqrt(max(square, np.float32(1e-12)))


@compiled()
def _accumulate(sum_N: F32, map_MN: F32, experts_K: I32, shares_K: F32) -> None:
    """Add the products of a layer of a map with all stored ones."""
    for slot in range(len(experts_K)):
        share, row_N = shares_K[slot], map_MN[experts_K[slot]]
        for n in range(len(sum_N)):
            sum_N[n] += share * row_N[n]


@compiled()
def _nearest(sum_N: F32, scale_N: F32) -> int:
    nearest, highest = 0, np.float32(-1)
    for n in range(len(sum_N)):
        cosine = sum_N[n] * scale_N[n]
        if cosine > highest:
            nearest, highest = n, cosine
    return nearest
