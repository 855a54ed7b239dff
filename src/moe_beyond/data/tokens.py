"""Token features that need no embedding table of the traced model: known strings, and letters for the others.

Published traces have token strings alone. A known string (seen often enough in training) has an embedding of its own;
every string is also a bag of hashed character n-grams, which distinguishes unseen tokens.

Shape suffixes: T tokens, V distinct strings, G n-grams kept per string.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_beyond.traces.schema import Trace

NGRAM_SIZES = (2, 3, 4)
MAX_NGRAMS = 16
ID_MARK = "\ue000"  # private use area: no tokenizer's text starts with it
_WORD_STARTS = ("\u0120", "\u2581", " ")  # how tokenizers mark a leading space: byte-level, SentencePiece, plain


def token_strings(trace: Trace) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Distinct token strings and each token's index into them.

    Falls back on the marked token id where the texts were dropped, and on one empty string where the trace has neither.
    """
    if trace.token_texts is not None:
        return trace.token_texts.vocabulary, trace.token_texts.codes_T
    if trace.token_ids_T is not None:
        ids, codes_T = np.unique(trace.token_ids_T, return_inverse=True)
        return tuple(f"{ID_MARK}{token_id}" for token_id in ids.tolist()), codes_T.astype(np.int32)
    return ("",), np.zeros(trace.num_tokens, np.int32)


def letter_ngrams(text: str, buckets: int) -> list[int]:
    """Hash buckets 1..buckets-1 of a string's n-grams; at most MAX_NGRAMS, the whole word first.

    CRC-32 of the UTF-8 bytes, which every language has, so that a runtime without Python can do the same.
    """
    if not text or text.startswith(ID_MARK):
        return []
    word = text.lstrip("".join(_WORD_STARTS)).lower()
    framed = f"<{word}>"
    grams = [framed] + [framed[i : i + n] for n in NGRAM_SIZES for i in range(len(framed) - n + 1)]
    distinct = dict.fromkeys(zlib.crc32(gram.encode()) % (buckets - 1) + 1 for gram in grams)
    return list(distinct)[:MAX_NGRAMS]


@dataclass(frozen=True)
class TokenEncoder:
    """Turns token strings into the network's integer inputs.

    Attributes:
        known: Strings with an embedding of their own; string i has index i + 1, index 0 is unknown.
        letter_buckets: Hash buckets; 0 is padding.
    """

    known: tuple[str, ...]
    letter_buckets: int

    @classmethod
    def fit(cls, train: Trace, min_count: int, letter_buckets: int) -> TokenEncoder:
        """Known strings are those of the training split that stand there at least `min_count` times."""
        words, codes_T = token_strings(train)
        counts = np.bincount(codes_T, minlength=len(words))
        return cls(tuple(word for word, count in zip(words, counts, strict=True) if count >= min_count), letter_buckets)

    @property
    def num_tokens(self) -> int:
        """Rows of the embedding table, the unknown one included."""
        return len(self.known) + 1

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: i + 1 for i, word in enumerate(self.known)}

    def encode(self, words: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Token indices int64 [V] and n-gram buckets int64 [V, G], padded with 0."""
        tokens_V = np.array([self._index.get(word, 0) for word in words], np.int64)
        letters_VG = np.zeros((len(words), MAX_NGRAMS), np.int64)
        for row, word in enumerate(words):
            grams = letter_ngrams(word, self.letter_buckets)
            letters_VG[row, : len(grams)] = grams
        return tokens_V, letters_VG
