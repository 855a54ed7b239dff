"""Which prompts are the same, or nearly: fingerprints, and groups that a split must keep together.

Everything here depends on the prompts' content alone, never on their order or names.
Shape suffixes: T tokens of all prompts, P prompts.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Hashable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moe_beyond.traces.schema import Trace

if TYPE_CHECKING:
    from moe_beyond.data.settings import SplitSettings

Codes = npt.NDArray[np.uint64]
_PERMUTATIONS = 128
# 32 bands of 4 rows: a pair at Jaccard 0.7 is missed once in 6,000, one at 0.5 once in 8; candidates are then compared
_BANDS = (32, 4)


def token_codes_T(trace: Trace) -> Codes:
    """A number for each token's content: its string, else its id, else the experts of its first MoE layer.

    Strings come first: published traces of one model agree in them, ids are seldom there.
    """
    if trace.token_texts is not None:
        texts = trace.token_texts
        hashes = [_hash(text.encode("utf-8", "surrogatepass")) for text in texts.vocabulary]
        codes: Codes = np.array(hashes, np.uint64)[texts.codes_T]
        return codes
    if trace.token_ids_T is not None:
        return trace.token_ids_T.astype(np.uint64)
    # the first router sees little more than the token itself, so equal tokens mostly share this set
    first_layer = np.sort(trace.experts_TLK[:, 0], axis=-1)
    sets, index = np.unique(first_layer, axis=0, return_inverse=True)
    hashes = [_hash(row.astype("<u2").tobytes()) for row in sets]
    by_set: Codes = np.array(hashes, np.uint64)[index.reshape(-1)]
    return by_set


def fingerprints(trace: Trace) -> list[str]:
    """A hex digest of each whole prompt's tokens: equal digests are exact duplicates.

    Where a trace has neither strings nor ids, all its routing is digested.
    """
    if trace.token_texts is None and trace.token_ids_T is None:
        content: npt.NDArray[np.generic] = np.sort(trace.experts_TLK, axis=-1).astype("<u2")
    else:
        content = token_codes_T(trace).astype("<u8")
    return [_digest(content[a:b]) for a, b in _bounds(trace)]


def training_marks(traces: Iterable[Trace]) -> list[str]:
    """Marks by which a prompt of a fit is recognised: digests of whole prompts and of their prefills, sorted."""
    return sorted({mark for trace in traces for marks in _marks_P(trace) for mark in marks})


def seen_prompts(trace: Trace, marks: Collection[str]) -> list[str]:
    """Ids of the prompts of a trace that took part in a fit, by the `training_marks` of that fit.

    The same prompt decoded to another text counts as seen.
    """
    known = set(marks)
    return [name for name, own in zip(trace.prompt_ids, _marks_P(trace), strict=True) if known & own]


def _marks_P(trace: Trace) -> list[set[str]]:
    whole_P = fingerprints(trace)
    if trace.token_texts is None and trace.token_ids_T is None:
        return [{mark} for mark in whole_P]
    codes_T = token_codes_T(trace).astype("<u8")
    marks = []
    for whole, (start, end), prefill in zip(whole_P, _bounds(trace), trace.num_prefill_P.tolist(), strict=True):
        # of a prompt with a response the prompt alone is marked too; a single token would match too much
        own = {_digest(codes_T[start : start + prefill])} if 1 < prefill < end - start else set()
        marks.append({whole} | own)
    return marks


def group_prompts(trace: Trace, settings: SplitSettings) -> npt.NDArray[np.int64]:
    """The group of each prompt, int64 [P]: the index of the group's first member.

    Two prompts are joined if they are identical, if their prefills are, if they share their first
    `shared_prefix_tokens` tokens, or if the Jaccard index of their shingles reaches `near_duplicate_jaccard`.
    """
    # here, as `MinHash` below: the deployed predictor, which only looks for prompts that it saw, needs neither library
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    codes, bounds, prefix = token_codes_T(trace), _bounds(trace), settings.shared_prefix_tokens
    prefixes: list[Hashable] = []
    prefills: list[Hashable] = []
    for p, ((a, b), prefill) in enumerate(zip(bounds, trace.num_prefill_P.tolist(), strict=True)):
        prefixes.append(codes[a : a + prefix].tobytes() if b - a >= prefix else p)
        prefills.append(codes[a : a + prefill].tobytes() if prefill else p)
    shingles = [_shingles(codes[a:b], settings.shingle_tokens) for a, b in bounds]
    pairs = list(_similar_pairs(shingles, settings.near_duplicate_jaccard))
    for keys in (fingerprints(trace), prefixes, prefills):
        first_of: dict[Hashable, int] = {}
        pairs += [(first_of.setdefault(key, p), p) for p, key in enumerate(keys)]
    firsts, seconds = zip(*pairs, strict=True)
    graph = coo_array((np.ones(len(pairs)), (firsts, seconds)), shape=(trace.num_prompts,) * 2)
    label_P = connected_components(graph, directed=False)[1]
    first_member: npt.NDArray[np.int64] = np.unique(label_P, return_index=True)[1][label_P]
    return first_member


def _similar_pairs(shingles: list[Codes], threshold: float) -> Iterable[tuple[int, int]]:
    """Pairs whose Jaccard index is at least `threshold`: MinHash finds candidates, the sets themselves decide."""
    from datasketch import MinHash, MinHashLSH  # noqa: PLC0415

    index = MinHashLSH(num_perm=_PERMUTATIONS, params=_BANDS)
    first_of: dict[bytes, int] = {}
    for p, mine in enumerate(shingles):
        # one representative of equal sets: thousands of duplicates would make a quadratic number of pairs
        representative = first_of.setdefault(mine.tobytes(), p)
        if representative != p:
            yield representative, p
            continue
        signature = MinHash(num_perm=_PERMUTATIONS, hashfunc=lambda value: value)
        signature.update_batch((mine & np.uint64(0xFFFFFFFF)).tolist())
        for q in sorted(index.query(signature)):
            common = len(np.intersect1d(mine, shingles[q], assume_unique=True))
            if common >= threshold * (len(mine) + len(shingles[q]) - common):
                yield q, p
        index.insert(p, signature)


def _shingles(codes: Codes, size: int) -> Codes:
    """Distinct hashes of all runs of `size` tokens; a shorter prompt is one run."""
    windows = np.lib.stride_tricks.sliding_window_view(codes, min(size, len(codes)))
    mixed = np.zeros(len(windows), np.uint64)
    with np.errstate(over="ignore"):
        for column in windows.T:
            # FNV-1a over words, then the finaliser of splitmix64, so that all bits depend on all tokens
            mixed = (mixed ^ column) * np.uint64(0x100000001B3)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = mixed ^ (mixed >> np.uint64(27))
    return np.unique(mixed)


def _bounds(trace: Trace) -> list[tuple[int, int]]:
    return list(itertools.pairwise(trace.prompt_offsets.tolist()))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _digest(content: npt.NDArray[np.generic]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(content).tobytes(), digest_size=16).hexdigest()
