"""The replay of the MoE-Beyond paper (arXiv 2508.17137), exactly, so that any predictor can be compared on its terms.

An LRU over (layer, expert), filled at random at the start of each prompt. Rows come in (token, layer) order. The rows
of the first ten tokens, and the one after them, only use their experts. From that row on, a row first uses its
predicted experts and then its own, in the router's order; only the latter are counted. One by one, not as an event.

Loading costs nothing and takes no time here, and a prediction always becomes resident: predicting all experts of a
layer would score 100 %. The rates of `replay` are the ones to decide by; these compare with the paper.

Shape suffixes: T tokens, L MoE layers, E routed experts in a layer, K experts per token, P prompts, M experts of the
model, A accesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.simulator.jit import compiled
from moe_beyond.traces.schema import Trace

WARM_UP_TOKENS = 10
_ABSENT = -1


class RecencyList(NamedTuple):
    """An LRU cache as a ring through the residents, oldest to newest; place M is where both ends meet.

    A use takes constant time, however large the cache is; the general replay looks at all residents when it evicts, so
    that it can use any rank.
    """

    newer: npt.NDArray[np.int32]
    """int32 [M+1]; the next more recent resident, or _ABSENT where not resident."""
    older: npt.NDArray[np.int32]
    size_1: npt.NDArray[np.int64]


@compiled()
def empty_list(num_model_experts: int) -> RecencyList:
    """No resident."""
    newer = np.full(num_model_experts + 1, _ABSENT, np.int32)
    newer[num_model_experts] = num_model_experts
    return RecencyList(newer, newer.copy(), np.zeros(1, np.int64))


@compiled()
def use(residents: RecencyList, expert: int, capacity: int) -> bool:
    """Make `expert` the most recent; evict the oldest if there are more than `capacity`. Returns whether it hit."""
    newer, older = residents.newer, residents.older
    ends = len(newer) - 1
    hit = bool(newer[expert] != _ABSENT)
    if hit:
        newer[older[expert]] = newer[expert]
        older[newer[expert]] = older[expert]
    elif residents.size_1[0] == capacity:
        oldest = newer[ends]
        newer[ends] = newer[oldest]
        older[newer[oldest]] = ends
        newer[oldest] = _ABSENT
    else:
        residents.size_1[0] += 1
    newest = older[ends]
    newer[newest] = expert
    older[expert] = newest
    newer[expert] = ends
    older[ends] = expert
    return hit


@compiled()
def lru_hits(members_A: npt.NDArray[np.int32], num_model_experts: int, capacity: int) -> int:
    """Hits of LRU over single accesses, starting empty."""
    residents = empty_list(num_model_experts)
    hits = 0
    for expert in members_A:
        hits += use(residents, expert, capacity)
    return hits


@dataclass(frozen=True)
class PublishedReplay:
    """What the protocol counts.

    Attributes:
        capacity_experts: Slots of the cache.
        hits_P: Hits of each prompt, int64; 0 where a prompt is no longer than the warm-up.
        accesses_P: Counted accesses of each prompt, int64.
        loaded_bytes_P: Bytes of the experts, predicted ones too, that were absent when a counted row used them,
            int64; the paper does not count them.
    """

    capacity_experts: int
    hits_P: npt.NDArray[np.int64]
    accesses_P: npt.NDArray[np.int64]
    loaded_bytes_P: npt.NDArray[np.int64]

    @property
    def hit_rate(self) -> float:
        """Hits over all counted accesses."""
        accesses = int(self.accesses_P.sum())
        return int(self.hits_P.sum()) / accesses if accesses else 0.0


def published_replay(
    trace: Trace,
    predicted_TLK: npt.NDArray[np.integer],
    capacity_experts: int,
    seed: int,
) -> PublishedReplay:
    """Replay a trace under the paper's protocol.

    Args:
        trace: Prompts; all of their tokens are replayed one by one.
        predicted_TLK: The predictor's experts for each token and layer, [T, L, any number].
        capacity_experts: Slots of the cache.
        seed: Of the random filling.

    Raises:
        InputError: The capacity is not between 1 and the experts of the model, or the predictions are of
            another trace.
    """
    meta = trace.metadata
    if not 1 <= capacity_experts <= meta.num_model_experts:
        raise InputError(
            f"capacity: {capacity_experts} experts, {meta.model_id} has {meta.num_model_experts}; "
            f"give between 1 and {meta.num_model_experts}"
        )
    if predicted_TLK.shape[:2] != (trace.num_tokens, meta.num_layers):
        raise InputError(
            f"predictions have shape {predicted_TLK.shape}, the trace has {trace.num_tokens} tokens and "
            f"{meta.num_layers} layers; predict for this trace"
        )
    draw = np.random.default_rng(seed)
    fill_PC = np.stack(
        [
            draw.choice(meta.num_model_experts, capacity_experts, replace=False).astype(np.int32)
            for _ in range(trace.num_prompts)
        ]
    )
    expert_bytes_L = np.array(meta.expert_bytes, np.int64)
    counts = _replay(
        np.asarray(trace.experts_TLK),
        np.asarray(predicted_TLK),
        trace.prompt_offsets,
        fill_PC,
        expert_bytes_L,
        meta.num_experts,
    )
    return PublishedReplay(capacity_experts, *counts)


@compiled()
def _replay(  # noqa: PLR0917 - compiled code is called by position
    experts_TLK: Any,
    predicted_TLK: Any,
    prompt_offsets: npt.NDArray[np.int64],
    fill_PC: npt.NDArray[np.int32],
    expert_bytes_L: npt.NDArray[np.int64],
    num_experts: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    num_prompts, capacity = fill_PC.shape
    num_layers = len(expert_bytes_L)
    hits_P, accesses_P = np.zeros(num_prompts, np.int64), np.zeros(num_prompts, np.int64)
    loaded_bytes_P = np.zeros(num_prompts, np.int64)
    first_counted = WARM_UP_TOKENS * num_layers
    for prompt in range(num_prompts):
        residents = empty_list(num_layers * num_experts)
        for expert in fill_PC[prompt]:
            use(residents, expert, capacity)
        first = prompt_offsets[prompt]
        for row in range((prompt_offsets[prompt + 1] - first) * num_layers):
            token, layer = first + row // num_layers, row % num_layers
            base = layer * num_experts
            if row <= first_counted:
                for expert in experts_TLK[token, layer]:
                    use(residents, base + expert, capacity)
            if row >= first_counted:
                for expert in predicted_TLK[token, layer]:
                    if not use(residents, base + expert, capacity):
                        loaded_bytes_P[prompt] += expert_bytes_L[layer]
                for expert in experts_TLK[token, layer]:
                    hit = use(residents, base + expert, capacity)
                    accesses_P[prompt] += 1
                    hits_P[prompt] += hit
                    if not hit:
                        loaded_bytes_P[prompt] += expert_bytes_L[layer]
    return hits_P, accesses_P, loaded_bytes_P
