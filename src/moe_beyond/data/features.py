"""Inputs of the predictor from a trace, causal by construction.

Shape suffixes: T tokens, L MoE layers, K top-k, M = 2 * K, G n-grams per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.data.tokens import TokenEncoder, token_strings
from moe_beyond.traces.schema import Trace


@dataclass(frozen=True)
class Features:
    """Inputs of the token step.

    Attributes:
        tokens_T: int64, index of the token string; 0 is unknown.
        letters_TG: int64, n-gram buckets; 0 is padding.
        previous_TLM: int64, K experts of the token before, then K of the last time that the same string stood in the
            prompt; `num_experts` means none.
    """

    tokens_T: npt.NDArray[np.int64]
    letters_TG: npt.NDArray[np.int64]
    previous_TLM: npt.NDArray[np.int64]

    @property
    def columns(self) -> tuple[npt.NDArray[np.int64], ...]:
        """All of them, in the order of the token step's arguments."""
        return self.tokens_T, self.letters_TG, self.previous_TLM


def token_features(trace: Trace, encoder: TokenEncoder) -> Features:
    """Features of every token of a trace."""
    words, codes_T = token_strings(trace)
    tokens_V, letters_VG = encoder.encode(words)
    previous_TLM = np.concatenate([previous_routing(trace), repeated_routing(trace, codes_T)], axis=2)
    return Features(tokens_V[codes_T], letters_VG[codes_T], previous_TLM)


def previous_routing(trace: Trace) -> npt.NDArray[np.int64]:
    """Experts of the token before in the same prompt, int64 [T, L, K]; `num_experts` at a prompt's first token."""
    previous_TLK = np.empty(trace.experts_TLK.shape, np.int64)
    previous_TLK[1:] = trace.experts_TLK[:-1]
    previous_TLK[trace.prompt_offsets[:-1]] = trace.metadata.num_experts
    return previous_TLK


def repeated_routing(trace: Trace, codes_T: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Experts of the last earlier token of the same string in the prompt, int64 [T, L, K]; `num_experts` if none.

    Args:
        trace: Routing and prompts.
        codes_T: Equal for tokens of the same string.
    """
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    order = np.lexsort((np.arange(trace.num_tokens), codes_T, prompt_T))
    same = (np.diff(codes_T[order]) == 0) & (np.diff(prompt_T[order]) == 0)
    repeated_TLK = np.full(trace.experts_TLK.shape, trace.metadata.num_experts, np.int64)
    repeated_TLK[order[1:][same]] = trace.experts_TLK[order[:-1][same]]
    return repeated_TLK
