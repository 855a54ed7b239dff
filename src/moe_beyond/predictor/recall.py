"""Recall at k: how many of a router's choices are among the k experts of largest predicted score.

A horizon is `token` for the token step, ahead of the token's first layer, or the number of layers that the layer step
looks ahead: at `1` it has the router's choices up to the layer before.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numba
import numpy as np
import numpy.typing as npt

from moe_beyond.intervals import Ratio
from moe_beyond.predictor.base import Floats
from moe_beyond.traces.schema import ExpertIds, Trace

TOKEN = "token"  # noqa: S105 - the token step's horizon, no secret
_CHUNK_VALUES = 50_000_000
"""Probabilities held at once while a predictor is scored, about 200 MB."""


@numba.njit(cache=True)
def _count_hits(scores_TLE: npt.NDArray[np.float32], experts_TLK: ExpertIds, hits_TL: npt.NDArray[np.uint8]) -> None:
    num_experts = scores_TLE.shape[2]
    top_k = experts_TLK.shape[2]
    for t in range(scores_TLE.shape[0]):
        for layer in range(scores_TLE.shape[1]):
            for slot in range(top_k):
                expert = experts_TLK[t, layer, slot]
                score = scores_TLE[t, layer, expert]
                ahead = 0
                for other in range(num_experts):
                    value = scores_TLE[t, layer, other]
                    if value > score or (value == score and other < expert):
                        ahead += 1
                if ahead < top_k:
                    hits_TL[t, layer] += 1


def hits_at_k(scores_TLE: npt.NDArray[np.float32], experts_TLK: ExpertIds) -> npt.NDArray[np.uint8]:
    """How many of each token's and layer's K true experts are among the K of largest score.

    Args:
        scores_TLE: Any score that orders experts, float32.
        experts_TLK: The router's choice.

    Returns:
        uint8 [T, L], values 0 to K.
    """
    hits_TL = np.zeros(experts_TLK.shape[:2], np.uint8)
    _count_hits(np.ascontiguousarray(scores_TLE, np.float32), experts_TLK, hits_TL)
    return hits_TL


def recall_by_prompt(trace: Trace, scores_TLE: npt.NDArray[np.float32]) -> Ratio:
    """Hits at k over the router's choices of all tokens and layers, by prompt."""
    lengths_P = np.diff(trace.prompt_offsets)
    prompt_T = np.repeat(np.arange(trace.num_prompts), lengths_P)
    hits_T = hits_at_k(scores_TLE, trace.experts_TLK).sum(axis=1, dtype=np.int64)
    return Ratio(np.bincount(prompt_T, hits_T, trace.num_prompts), lengths_P * trace.metadata.token_cycle)


def most_probable(probabilities_TLE: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """The `count` most probable experts per token and layer, ties by lower id, int64 [T, L, count]."""
    return np.argsort(-probabilities_TLE, axis=-1, kind="stable")[..., :count]


def groups(trace: Trace, copies: int = 1) -> Iterator[Trace]:
    """The trace in order, cut between prompts into parts whose probabilities, `copies` times, fit in memory."""
    budget = max(1, _CHUNK_VALUES // (copies * trace.metadata.num_layers * trace.metadata.num_experts))
    start = 0
    while start < trace.num_prompts:
        end = int(np.searchsorted(trace.prompt_offsets, trace.prompt_offsets[start] + budget, side="right")) - 1
        end = min(max(end, start + 1), trace.num_prompts)
        yield trace.select(np.arange(start, end))
        start = end


class TwoSteps(Protocol):
    """A predictor with a token step and a layer step; `predictor.runtime.OnnxPredictor` is one."""

    @property
    def name(self) -> str:
        """Name in tables and plots."""

    @property
    def horizon(self) -> int:
        """How many layers ahead the layer step predicts."""

    def both_logits(self, trace: Trace) -> tuple[Floats, Floats]:
        """Logits of the token step [T, L, E] and of the layer step [H, T, L, E]."""


def horizons(predictor: TwoSteps) -> list[str]:
    """Names of a predictor's horizons, the token step's first."""
    return [TOKEN, *(str(ahead + 1) for ahead in range(predictor.horizon))]


def logits_by_horizon(predictor: TwoSteps, trace: Trace) -> Iterator[tuple[Trace, dict[str, Floats]]]:
    """The trace in parts that fit in memory, each with its logits [T, L, E] at every horizon."""
    names = horizons(predictor)
    for part in groups(trace, copies=len(names)):
        token_TLE, layers_HTLE = predictor.both_logits(part)
        yield part, dict(zip(names, (token_TLE, *layers_HTLE), strict=True))
