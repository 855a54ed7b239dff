"""Baselines that a learned predictor must beat: counts, no training.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, V distinct tokens of the training split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from moe_beyond.data.tokens import token_strings
from moe_beyond.traces.schema import Trace
from moe_beyond.traces.statistics import expert_counts_LE


@dataclass(frozen=True)
class Popularity:
    """The same answer for every token: how often the training split chose each expert."""

    popularity_LE: npt.NDArray[np.float32]
    name: str = "popularity"

    @classmethod
    def fit(cls, train: Trace) -> Self:
        """Count the training split."""
        counts_LE = expert_counts_LE(train.experts_TLK, train.metadata.num_experts)
        return cls((counts_LE / train.num_tokens).astype(np.float32))

    def probabilities_TLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        """float32 [T, L, E], one [L, E] table repeated."""
        return np.broadcast_to(self.popularity_LE, (trace.num_tokens, *self.popularity_LE.shape))


@dataclass(frozen=True)
class TokenUnigram:
    """What the training split chose for the same token, shrunk towards popularity where it was seen seldom."""

    index: dict[str, int]
    table_VLE: npt.NDArray[np.float32]
    """One row a known token; the last row, for unknown tokens, is popularity."""
    name: str = "token unigram"

    @classmethod
    def fit(cls, train: Trace, prior_tokens: float = 1.0) -> Self:
        """Count the training split by token.

        Args:
            train: The training split.
            prior_tokens: Weight of popularity, in tokens: (count + prior * popularity) / (seen + prior).
        """
        popularity_LE = Popularity.fit(train).popularity_LE
        words, codes_T = token_strings(train)
        num_layers, num_experts = popularity_LE.shape
        seen_V = np.bincount(codes_T, minlength=len(words)).astype(np.float32)
        counts = np.zeros((len(words) * num_layers * num_experts,), np.float32)
        row_T = codes_T.astype(np.int64) * num_layers * num_experts
        for layer in range(num_layers):
            for slot in range(train.metadata.top_k):
                np.add.at(counts, row_T + layer * num_experts + train.experts_TLK[:, layer, slot], 1.0)
        counts_VLE = counts.reshape(len(words), num_layers, num_experts)
        counts_VLE += prior_tokens * popularity_LE
        counts_VLE /= (seen_V + prior_tokens)[:, None, None]
        table_VLE = np.concatenate([counts_VLE, popularity_LE[None]])
        return cls({word: i for i, word in enumerate(words)}, table_VLE)

    def probabilities_TLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        """float32 [T, L, E], the token's row."""
        words, codes_T = token_strings(trace)
        unknown = len(self.table_VLE) - 1
        rows = np.array([self.index.get(word, unknown) for word in words], np.int64)
        return self.table_VLE[rows[codes_T]]


@dataclass(frozen=True)
class PreviousToken:
    """The experts of the previous token again; below them, and for a prompt's first token, popularity."""

    popularity_LE: npt.NDArray[np.float32]
    name: str = "previous token"

    @classmethod
    def fit(cls, train: Trace) -> Self:
        """Count the training split for the order of experts that the previous token did not use."""
        return cls(Popularity.fit(train).popularity_LE)

    def probabilities_TLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        """float32 [T, L, E]: (reused + popularity) / 2, so that reused experts come first."""
        reused_TLE = np.zeros((trace.num_tokens, *self.popularity_LE.shape), np.float32)
        before_TLK = trace.experts_TLK[:-1].astype(np.int64)
        np.put_along_axis(reused_TLE[1:], before_TLK, 1.0, axis=2)
        reused_TLE[trace.prompt_offsets[:-1]] = 0.0
        return np.asarray((reused_TLE + self.popularity_LE) / 2, np.float32)


def fit_baselines(train: Trace) -> list[Popularity | TokenUnigram | PreviousToken]:
    """Every baseline, fitted on the training split."""
    return [Popularity.fit(train), TokenUnigram.fit(train), PreviousToken.fit(train)]
