"""Refuses rows that no router wrote: an engine's empty buffers, placeholders, warm-up and profile passes.

Such rows look like perfect locality. How sure one can be is counted in bits: for a router that chose K of E experts at
random, a repetition in L layers has the chance (1 / C(E, K))^L. Routers have favourites, those of small models strong
ones: hence many more bits than chance asks for. Shape suffixes as in `schema`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from moe_beyond.traces.schema import Trace

_SURE_BITS, _ONE_EXPERT_BITS = 256, 48
# a run of one token's repetitions can be routed alike in the middle of a text, but a text does not begin with one
_LEADING_TOKENS = 16
_LAYER_TOKENS = 64
_FIX = "record again (for vLLM without prefix caching or KV offloading), or leave these tokens out"


def refuse_lost_routing(trace: Trace, where: str) -> None:
    """Raise InputError if the experts of a prompt, a slot or a layer cannot be a router's choice."""
    meta, experts_TLK = trace.metadata, trace.experts_TLK
    bits = math.log2(math.comb(meta.num_experts, meta.top_k))
    if bits == 0:  # all experts of a layer, always
        return
    flat_T: npt.NDArray[np.integer[Any]] = experts_TLK.reshape(trace.num_tokens, -1)
    differs_T, same_T = np.ones(trace.num_tokens, np.bool_), np.empty(trace.num_tokens, np.bool_)
    for tokens, _ in trace.parts():
        before = max(0, tokens.start - 1)
        part_T = np.ascontiguousarray(flat_T[before : tokens.stop])
        rows_T = part_T.view(np.dtype((np.void, part_T.strides[0]))).reshape(-1)
        differs_T[before + 1 : tokens.stop] = rows_T[1:] != rows_T[:-1]
        same_T[before : tokens.stop] = (part_T == part_T[:, :1]).all(axis=1)
    starts, lengths = trace.prompt_offsets[:-1], np.diff(trace.prompt_offsets)
    # the first position of a prompt whose routing is another than that of the position before
    changes = np.flatnonzero(differs_T)
    ends = np.append(changes, trace.num_tokens)[np.searchsorted(changes, starts + 1)]
    alike_P = np.minimum(ends - starts, lengths)
    sure_P = (alike_P - 1) * meta.num_layers * bits >= _SURE_BITS
    long_P = (alike_P == lengths) | ((alike_P >= _LEADING_TOKENS) & (meta.num_layers > 1))
    for prompt in np.flatnonzero(sure_P & long_P).tolist():
        tokens = slice(int(starts[prompt]), int(starts[prompt] + alike_P[prompt]))
        row = flat_T[tokens.start]
        if trace.token_ids_T is not None and len(set(trace.token_ids_T[tokens].tolist())) == 1 and len(set(row)) > 1:
            continue  # one token over and over, which a router sends the same way
        which = f"all {lengths[prompt]}" if alike_P[prompt] == lengths[prompt] else f"the first {alike_P[prompt]}"
        raise InputError(f"{where}: prompt {trace.prompt_ids[prompt]!r}: {which} tokens have {_what(row)}; {_FIX}")
    _refuse_one_expert(trace, flat_T, differs_T, same_T, where)
    _refuse_constants(trace, where)


def _what(row: npt.NDArray[np.integer[Any]]) -> str:
    if (row != row[0]).any():
        return "one and the same routing, as an engine's warm-up or profile pass has"
    if row[0] == 0:
        return "zeros for experts: the engine's buffer was never filled"
    return f"{row[0]} for every expert: a placeholder of routing that the engine lost"


def _refuse_one_expert(
    trace: Trace,
    flat_T: npt.NDArray[np.integer[Any]],
    differs_T: npt.NDArray[np.bool_],
    same_T: npt.NDArray[np.bool_],
    where: str,
) -> None:
    """Tokens in a row with one expert for all layers and slots: in many layers one token is enough.

    That a choice repeats from token to token says nothing, but at the beginning of a prompt: a text may repeat a token.
    """
    run_T = np.cumsum(differs_T)
    length_T, width = np.bincount(run_T)[run_T], flat_T.shape[1]
    leads_T = np.isin(run_T, run_T[trace.prompt_offsets[:-1]]) & (width > 1)
    evidence_T = np.where(leads_T, length_T * width - 1, length_T * (width - 1))
    lost_T = same_T & (evidence_T * math.log2(trace.metadata.num_experts) >= _ONE_EXPERT_BITS)
    if lost_T.any():
        token = int(np.argmax(lost_T))
        prompt = int(np.searchsorted(trace.prompt_offsets, token, side="right")) - 1
        position = token - int(trace.prompt_offsets[prompt])
        raise InputError(
            f"{where}: prompt {trace.prompt_ids[prompt]!r}, position {position}: {_what(flat_T[token])}; {_FIX}"
        )


def _refuse_constants(trace: Trace, where: str) -> None:
    """A slot that never changes in any layer, a layer that never changes."""
    meta, experts_TLK = trace.metadata, trace.experts_TLK
    if trace.token_ids_T is not None and (trace.token_ids_T == trace.token_ids_T[0]).all():
        return  # one token over and over
    constant_LK = np.ones(experts_TLK.shape[1:], np.bool_)
    for _, part_TLK in trace.parts():
        constant_LK &= (part_TLK == experts_TLK[:1]).all(axis=0)
        if not constant_LK.any():
            return
    slots = np.flatnonzero(constant_LK.all(axis=0) & (experts_TLK[0] == experts_TLK[0, 0]).all(axis=0))
    if len(slots) and (trace.num_tokens - 1) * meta.num_layers * math.log2(meta.num_experts / meta.top_k) >= _SURE_BITS:
        raise InputError(
            f"{where}: slot {slots[0]} of {meta.top_k} never changes, in no layer and for no token: the engine wrote "
            f"fewer experts than top-{meta.top_k}; {_FIX}"
        )
    tokens_L = np.full(meta.num_layers, trace.num_tokens)
    # the last layer of a prefill may repeat its last token's experts
    tokens_L[-1] += (trace.num_prefill_P > 0).sum() - trace.num_prefill_P.sum()
    layers = np.flatnonzero(constant_LK.all(axis=1) & (tokens_L >= _LAYER_TOKENS))
    if len(layers):
        layer = int(layers[0])
        raise InputError(
            f"{where}: layer {meta.layer_numbers[layer]}: every token has experts {experts_TLK[0, layer].tolist()}: "
            "a dense layer's empty place, or routing that the engine lost; name the layers with experts by --moe-layers"
        )
