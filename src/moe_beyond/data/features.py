"""What the predictor sees of a trace, causal by construction.

Shape suffixes: T tokens, L MoE layers, K top-k, G n-grams per token.
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
        previous_TLK: int64, experts of the token before; `num_experts` means none.
    """

    tokens_T: npt.NDArray[np.int64]
    letters_TG: npt.NDArray[np.int64]
    previous_TLK: npt.NDArray[np.int64]


def token_features(trace: Trace, encoder: TokenEncoder) -> Features:
    """Features of every token of a trace."""
    words, codes_T = token_strings(trace)
    tokens_V, letters_VG = encoder.encode(words)
    return Features(tokens_V[codes_T], letters_VG[codes_T], previous_routing(trace))


def previous_routing(trace: Trace) -> npt.NDArray[np.int64]:
    """Experts of the token before in the same prompt, int64 [T, L, K]; `num_experts` at a prompt's first token."""
    previous_TLK = np.empty(trace.experts_TLK.shape, np.int64)
    previous_TLK[1:] = trace.experts_TLK[:-1]
    previous_TLK[trace.prompt_offsets[:-1]] = trace.metadata.num_experts
    return previous_TLK
