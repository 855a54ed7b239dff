"""Baselines that a learned predictor must beat: counts, no training.

Shape suffixes: T tokens, L MoE layers, E experts, K top-k, V distinct tokens of the training split, N stored prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from moe_beyond.data.tokens import token_strings
from moe_beyond.predictor.base import Predictor
from moe_beyond.predictor.latency import median_ms
from moe_beyond.traces.schema import Trace, expert_counts_LE


@dataclass(frozen=True)
class Popularity:
    """The same prediction for every token: how often the training split chose each expert."""

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

    def lookup_ms(self, repeats: int) -> float:
        """Median milliseconds of one token's lookup, its row copied."""
        word, unknown = next(iter(self.index)), len(self.table_VLE) - 1
        return median_ms(lambda: self.table_VLE[self.index.get(word, unknown)].copy(), repeats)  # noqa: PLW0108 - the lookup is timed too


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


@dataclass(frozen=True)
class MoeInfinity:
    """MoE-Infinity's expert activation matrices as a predictor (arXiv 2401.14361, after its public code).

    Ahead of a token, the request's counts so far are compared with those of finished requests: a cosine for each layer;
    the prediction is the share of tokens that used each expert in the stored request of the largest mean. A request's
    first token has no counts yet and gets the mean of all stored ones. At later layers of the token the original
    matches again, by the counts of the layers still to come alone; those hold nothing new, so the prediction holds here
    for the whole token. Its store holds a thousand; here they are the first thousand training prompts, as there is no
    order of arrival by which to replace one.
    """

    share_NLE: npt.NDArray[np.float32]
    name: str = "MoE-Infinity"

    CAPACITY: ClassVar[int] = 1000

    @classmethod
    def fit(cls, train: Trace) -> Self:
        """Keep the counts of each training prompt."""
        shares = []
        for prompt in range(min(cls.CAPACITY, train.num_prompts)):
            start, end = train.prompt_offsets[prompt : prompt + 2]
            shares.append(expert_counts_LE(train.experts_TLK[start:end], train.metadata.num_experts) / (end - start))
        return cls(np.stack(shares).astype(np.float32))

    def probabilities_TLE(self, trace: Trace) -> npt.NDArray[np.float32]:
        """float32 [T, L, E], the best match's row; the earlier stored one of equals."""
        unit_NX = _unit_rows(self.share_NLE).reshape(len(self.share_NLE), -1)
        predicted_TLE = np.empty((trace.num_tokens, *self.share_NLE.shape[1:]), np.float32)
        predicted_TLE[trace.prompt_offsets[:-1]] = self.share_NLE.mean(axis=0)
        for start, end in zip(trace.prompt_offsets[:-1].tolist(), trace.prompt_offsets[1:].tolist(), strict=True):
            used_TLE = np.zeros((end - start - 1, *self.share_NLE.shape[1:]), np.float32)
            np.put_along_axis(used_TLE, trace.experts_TLK[start : end - 1].astype(np.int64), 1.0, axis=2)
            so_far_TX = _unit_rows(used_TLE.cumsum(axis=0)).reshape(len(used_TLE), -1)
            predicted_TLE[start + 1 : end] = self.share_NLE[(so_far_TX @ unit_NX.T).argmax(axis=1)]
        return predicted_TLE


def _unit_rows(counts_XLE: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of each layer at length 1; a layer always has counts, because every token routes in it."""
    return np.asarray(counts_XLE / np.linalg.norm(counts_XLE, axis=-1, keepdims=True), np.float32)


@dataclass(frozen=True)
class OneClusterMoeInfinity(Popularity):
    """What the MoE-Beyond paper (arXiv 2508.17137) compares with under MoE-Infinity's name.

    The counts of nine prompts in one mean (k-means with a single cluster): the popularity of a small sample. The
    paper's nine are the first of its training files; here they are the first nine of the training split.
    """

    name: str = "one-cluster MoE-Infinity"

    PROMPTS: ClassVar[int] = 9

    @classmethod
    def fit(cls, train: Trace) -> Self:
        """Count the first nine prompts."""
        return super().fit(train.select(np.arange(min(cls.PROMPTS, train.num_prompts))))


def fit_baselines(train: Trace) -> list[Predictor]:
    """Every baseline, fitted on the training split."""
    kinds = (Popularity, TokenUnigram, PreviousToken, MoeInfinity, OneClusterMoeInfinity)
    return [kind.fit(train) for kind in kinds]
