# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""FineMoE, first named fMoE (arXiv 2502.05370): the map of the token under way is matched against those of past tokens.

A map says with which probability a token's gates chose each expert of each layer. The store keeps maps of tokens, each
beside a key that is known before its token begins. The map of the nearest key is prefetched for the first layers; after
each layer the nearest map, by the layers seen so far, is prefetched some layers further on.

The publication's key is an embedding of the prompt, which traces do not have: here it is the map of the token before.
Where a trace has weights, a map holds those of the chosen experts, and otherwise equal ones; of the others nothing is
known. Its rule of width, which takes experts until their probabilities reach 1 - similarity but never fewer than the
router, therefore always comes to the router's number.

Shape suffixes: G maps that are ever stored, N maps stored at one time, S steps, V passes, A accesses, L MoE layers,
K experts per token, E routed experts in a layer, M = L * E experts, Q prefetch requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from typing_extensions import override

from moe_beyond.simulator.engine.policy import RANKS, SCORE, USES, Policy, Prefetches
from moe_beyond.simulator.jit import F32, F64, I32, I64, RANK, Bools, compiled
from moe_beyond.simulator.policies.count_matrices import model_wide_TLK
from moe_beyond.simulator.policies.layer_passes import LayerPasses
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import before, when_routed
from moe_beyond.simulator.schedule.weight_shares import shares_TLK
from moe_beyond.traces.schema import Trace

DISTANCE = 6
"""For how many layers ahead the maps are used, and for how many first layers the key."""
NONE = -1


@compiled(RANK)
def probability_by_uses(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank by the probability in the map that the key found, times uses: unlikely and seldom used experts first."""
    for place, expert in enumerate(residents):
        features_FM[RANKS, place] = (features_FM[SCORE, expert] + 1e-3) * features_FM[USES, expert]


class Maps(NamedTuple):
    """Gate maps of tokens: model-wide expert ids in the router's order, and their probabilities."""

    experts_GLK: I32
    shares_GLK: F32


@dataclass(frozen=True)
class FineMoe(Policy):
    """Two matches a token, one ahead of it and one along its layers (FineMoE, arXiv 2502.05370).

    A finished token's map replaces the stored one that resembles it most, by d/L of the key's similarity and 1 - d/L of
    the map's. Eviction by probability times frequency is after the paper, unverified.

    Attributes:
        stored: Maps of training tokens that the store starts with.
        keys: The maps of the tokens before them.
    """

    stored: Maps
    keys: Maps
    name = "fine_moe"
    title = "FineMoE"
    lookahead = DISTANCE
    rank = staticmethod(probability_by_uses)

    @classmethod
    def fit(cls, training: Trace, num_maps: int = 1000) -> FineMoe:
        """Fill the store with tokens evenly spread over the training split, none of them a prompt's first."""
        tokens = np.nonzero(training.positions_T > 0)[0]
        if not len(tokens):
            tokens = np.arange(training.num_tokens)
        tokens = tokens[np.unique(np.linspace(0, len(tokens) - 1, num_maps).round().astype(np.int64))]
        return cls(_maps(training, tokens), _maps(training, np.maximum(tokens - 1, 0)))

    @override
    def scores_SM(self, events: Events) -> F32:
        ever, by_key_S, _ = self._found(events)
        scores_SM = np.zeros((events.num_steps, events.metadata.num_model_experts), np.float32)
        steps = np.nonzero(by_key_S != NONE)[0]
        found = by_key_S[steps]
        experts = ever.experts_GLK[found].reshape(len(steps), -1)
        scores_SM[steps[:, None], experts] = ever.shares_GLK[found].reshape(len(steps), -1)
        return scores_SM

    @override
    def prefetches(self, events: Events) -> Prefetches:
        ever, by_key_S, by_map_SL = self._found(events)
        passes, num_layers = LayerPasses.of(events), events.metadata.num_layers
        near = min(DISTANCE, num_layers)
        known, target, found = [], [], []
        steps = np.nonzero(by_key_S != NONE)[0]
        for layer in range(near):
            known.append(before(passes.first_V[steps * num_layers]))
            target.append(passes.first_V[steps * num_layers + layer])
            found.append(by_key_S[steps])
        steps = np.nonzero(passes.is_decode_S)[0]
        for layer in range(near, num_layers):
            known.append(when_routed(passes.last_V[steps * num_layers + layer - near]))
            target.append(passes.first_V[steps * num_layers + layer])
            found.append(by_map_SL[steps, layer - near])
        known_Q, target_Q, found_Q = np.concatenate(known), np.concatenate(target), np.concatenate(found)
        layer_Q = events.layer_N[target_Q]
        since_Q = layer_Q - events.layer_N[known_Q // 2]
        shares_QK = ever.shares_GLK[found_Q, layer_Q]
        order_QK = np.argsort(-shares_QK, axis=1, kind="stable")
        decay_Q = 1 - since_Q.astype(np.float32) / np.float32(num_layers)
        return Prefetches.from_table(
            events,
            known_Q,
            target_Q,
            np.take_along_axis(ever.experts_GLK[found_Q, layer_Q], order_QK, axis=1),
            np.take_along_axis(shares_QK, order_QK, axis=1) * decay_Q[:, None],
        )

    def _found(self, events: Events) -> tuple[Maps, I64, I64]:
        """All maps that are ever stored, and which of them the key and each layer found: int64 [S], [S, L]."""
        meta, passes = events.metadata, LayerPasses.of(events)
        counts_V = np.diff(passes.offsets_V)
        # of a step of several tokens there is no map that could be stored
        whole_S = passes.is_decode_S & (counts_V.reshape(-1, meta.num_layers) == meta.top_k).all(axis=1)
        shares_A = events.shares_A
        if shares_A is None:
            shares_A = np.repeat(1 / counts_V, counts_V).astype(np.float32)
        members_V = np.repeat(whole_S, meta.num_layers)
        shape = (-1, meta.num_layers, meta.top_k)
        replayed = Maps(
            np.zeros((events.num_steps, meta.num_layers, meta.top_k), np.int32),
            np.zeros((events.num_steps, meta.num_layers, meta.top_k), np.float32),
        )
        replayed.experts_GLK[whole_S] = events.members_A[np.repeat(members_V, counts_V)].reshape(shape)
        replayed.shares_GLK[whole_S] = shares_A[np.repeat(members_V, counts_V)].reshape(shape)
        by_key_S, by_map_SL = nearest_maps(
            events.members_A,
            shares_A,
            passes.offsets_V,
            passes.prompt_S,
            passes.is_decode_S,
            whole_S,
            *self.stored,
            *self.keys,
            meta.num_layers,
            meta.num_model_experts,
        )
        ever = Maps(*(np.concatenate(pair) for pair in zip(self.stored, replayed, strict=True)))
        return ever, by_key_S, by_map_SL


def _maps(trace: Trace, tokens: I64) -> Maps:
    experts_GLK = model_wide_TLK(trace)[tokens]
    if trace.weights_TLK is None:
        return Maps(experts_GLK, np.full(experts_GLK.shape, 1 / trace.metadata.top_k, np.float32))
    return Maps(experts_GLK, shares_TLK(trace.weights_TLK[tokens]))


@compiled()
def nearest_maps(
    members_A: I32,
    shares_A: F32,
    offsets_V: I64,
    prompt_S: I32,
    is_decode_S: Bools,
    whole_S: Bools,
    experts_NLK: I32,
    shares_NLK: F32,
    key_experts_NLK: I32,
    key_shares_NLK: F32,
    num_layers: int,
    num_model_experts: int,
) -> tuple[I64, I64]:
    """The stored map that each token's key finds, and that its layers so far find; ties are won by the first.

    Maps 0 to N - 1 are those that the store starts with, map N + s is that of step s.

    Returns:
        int64 [S], NONE where the step has no key: of a prompt's first; int64 [S, L].
    """
    num_steps, num_stored = len(prompt_S), len(experts_NLK)
    map_MN = np.zeros((num_model_experts, num_stored), np.float32)
    key_MN = np.zeros((num_model_experts, num_stored), np.float32)
    # one over the length of each map's first layers, and of each key
    scale_LN, key_scale_LN = (
        np.zeros((num_layers, num_stored), np.float32),
        np.zeros((num_layers, num_stored), np.float32),
    )
    map_N = np.arange(num_stored)
    for place in range(num_stored):
        _store(map_MN, scale_LN, place, experts_NLK[place].ravel(), shares_NLK[place].ravel())
        _store(key_MN, key_scale_LN, place, key_experts_NLK[place].ravel(), key_shares_NLK[place].ravel())
    by_key_S, by_map_SL = np.full(num_steps, NONE), np.full((num_steps, num_layers), NONE)
    sum_N, key_sum_N = np.zeros(num_stored, np.float32), np.zeros(num_stored, np.float32)
    near = np.float32(min(1.0, DISTANCE / num_layers))
    for step in range(num_steps):
        first, has_key = step * num_layers, step > 0 and prompt_S[step] == prompt_S[step - 1]
        last = first + num_layers
        if has_key:
            before, begin = offsets_V[first - num_layers], offsets_V[first]
            key_sum_N[:] = 0
            _accumulate(key_sum_N, key_MN, members_A[before:begin], shares_A[before:begin])
            if is_decode_S[step]:
                by_key_S[step] = map_N[_nearest(key_sum_N, key_scale_LN[num_layers - 1])]
        sum_N[:] = 0
        for layer in range(num_layers):
            start, end = offsets_V[first + layer], offsets_V[first + layer + 1]
            _accumulate(sum_N, map_MN, members_A[start:end], shares_A[start:end])
            if is_decode_S[step] and layer + DISTANCE < num_layers:
                by_map_SL[step, layer] = map_N[_nearest(sum_N, scale_LN[layer])]
        if whole_S[step] and has_key:
            own = shares_A[offsets_V[first] : offsets_V[last]]
            length = np.sqrt(np.sum(own * own))
            key_length = np.sqrt(np.sum(shares_A[before:begin] * shares_A[before:begin]))
            alike_N = near / key_length * key_sum_N * key_scale_LN[num_layers - 1]
            alike_N += (1 - near) / length * sum_N * scale_LN[num_layers - 1]
            place = int(np.argmax(alike_N))
            map_N[place] = num_stored + step
            _store(map_MN, scale_LN, place, members_A[offsets_V[first] : offsets_V[last]], own)
            _store(key_MN, key_scale_LN, place, members_A[before:begin], shares_A[before:begin])
    return by_key_S, by_map_SL


@compiled()
def _store(table_MN: F32, scale_LN: F32, place: int, experts: I32, shares: F32) -> None:
    """Put a map into the store, with one over the length of its first layers, for each number of them."""
    table_MN[:, place] = 0
    num_layers = len(scale_LN)
    num_experts = len(table_MN) // num_layers
    scale_LN[:, place] = 0
    for i in range(len(experts)):
        table_MN[experts[i], place] = shares[i]
        scale_LN[experts[i] // num_experts, place] += shares[i] * shares[i]
    square = np.float32(0)
    for layer in range(num_layers):
        square += scale_LN[layer, place]
        scale_LN[layer, place] = 1 / np.sqrt(max(square, np.float32(1e-12)))


@compiled()
def _accumulate(sum_N: F32, table_MN: F32, experts: I32, shares: F32) -> None:
    """Add the products of a map, or of one of its layers, with all stored ones."""
    for i in range(len(experts)):
        share, row_N = shares[i], table_MN[experts[i]]
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
