"""Statistics of routing from a trace alone: skew, locality and working sets, layer by layer.

Every token counts as one step, prefill tokens too, and prompts are independent of each other.
Shape suffixes: T tokens, L MoE layers, K experts per token, E experts in a layer, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.simulator.jit import I32, I64, compiled
from moe_beyond.traces.columns import slices
from moe_beyond.traces.schema import ExpertIds, Trace, expert_counts_LE

TOP_SHARE = 0.1
"""`top_share` is the share of accesses that go to this fraction of a layer's experts, the most popular ones."""


def layer_statistics(trace: Trace, windows: tuple[int, ...]) -> pl.DataFrame:
    """Routing of each MoE layer, a row a layer. Shares lie in [0, 1]; null where the trace is too short.

    Args:
        trace: At least one token.
        windows: Lengths in tokens of the working sets.

    Returns:
        Columns

        - layer: the layer's number in the model
        - entropy_bits: Shannon entropy of the experts' popularity
        - max_entropy_bits: log2 E, the entropy of equally popular experts
        - gini: Gini coefficient of popularity, 0 for equally popular experts
        - top_share: share of accesses that the most popular tenth of the experts receives
        - unused_experts: experts that no token chose
        - previous_token_overlap: mean share of a token's experts that the token before it used
        - overlap_by_chance: the same for unrelated tokens of equally popular experts, K / E
        - overlap_by_skew: the same for any two different tokens of the trace, near or far: what popularity alone
          explains
        - first_use_share: share of accesses to an expert that the prompt has not used in this layer
        - reuse_distance_median: median tokens since the expert's last use in the prompt, of accesses that have one
        - working_set_<window>: mean number of distinct experts in windows of so many consecutive tokens of a prompt
    """
    counts_LE = expert_counts_LE(trace.experts_TLK, trace.metadata.num_experts)
    layers = enumerate(zip(counts_LE, reuse_distances(trace), strict=True))
    rows = [_one_layer(trace, index, counts_E, reuse_TK, windows) for index, (counts_E, reuse_TK) in layers]
    return pl.DataFrame(rows, infer_schema_length=None)


def reuse_distances(trace: Trace) -> Iterator[npt.NDArray[np.int32]]:
    """For each layer, int32 [T, K]: tokens since the prompt last used that expert there; 0 for its first use."""
    for layer in range(trace.metadata.num_layers):
        yield _reuse_TK(trace.layer_TK(layer), np.array(trace.prompt_offsets), trace.metadata.num_experts)


@compiled()
def _reuse_TK(experts_TK: Any, prompt_offsets: I64, num_experts: int) -> I32:
    reuse_TK = np.zeros(experts_TK.shape, np.int32)
    last_E = np.full(num_experts, -1)
    for prompt in range(len(prompt_offsets) - 1):
        start = prompt_offsets[prompt]
        for token in range(start, prompt_offsets[prompt + 1]):
            for slot in range(experts_TK.shape[1]):
                expert = experts_TK[token, slot]
                if last_E[expert] >= start:
                    reuse_TK[token, slot] = token - last_E[expert]
                last_E[expert] = token
    return reuse_TK


def reuse_histogram(trace: Trace) -> npt.NDArray[np.int64]:
    """Accesses of all layers by reuse distance, int64; element 0 counts first uses."""
    longest = int(np.diff(trace.prompt_offsets).max())
    total = np.zeros(longest, np.int64)
    for reuse_TK in reuse_distances(trace):
        total += np.bincount(reuse_TK.reshape(-1), minlength=longest)
    return total


def entropy_bits(counts_E: npt.NDArray[np.int64]) -> float:
    """Shannon entropy of counts, in bits."""
    shares = counts_E[counts_E > 0] / counts_E.sum()
    return float(max(0.0, -(shares * np.log2(shares)).sum()))


def gini(counts_E: npt.NDArray[np.int64]) -> float:
    """Gini coefficient of counts: 0 if all are equal, towards 1 if one has everything."""
    ordered, size = np.sort(counts_E), len(counts_E)
    ranks = np.arange(1, size + 1)
    return float(((2 * ranks - size - 1) * ordered).sum() / (size * ordered.sum()))


def previous_token_overlap(experts_TK: ExpertIds, is_first_T: npt.NDArray[np.bool_]) -> float | None:
    """Mean share of a token's experts that the token before it in the prompt used; None if there is no such pair.

    Args:
        experts_TK: Experts of one layer.
        is_first_T: True for the first token of each prompt.
    """
    later, top_k, repeated = np.nonzero(~is_first_T)[0], experts_TK.shape[1], 0
    if len(later) == 0:
        return None
    for part in slices(len(later), top_k**2):
        tokens = later[part]
        repeated += int((experts_TK[tokens][:, :, None] == experts_TK[tokens - 1][:, None, :]).any(axis=2).sum())
    return float(repeated / (len(later) * top_k))


def overlap_by_skew(counts_E: npt.NDArray[np.int64], num_tokens: int, top_k: int) -> float | None:
    """Mean share of experts that two different tokens have in common, over all pairs of tokens of one layer."""
    if num_tokens < 2:
        return None
    pairs = (counts_E.astype(np.float64) * (counts_E - 1)).sum()
    return float(pairs / (num_tokens * (num_tokens - 1)) / top_k)


def working_set(
    reuse_TK: npt.NDArray[np.int32], positions_T: npt.NDArray[np.int64], lengths_T: npt.NDArray[np.int64], window: int
) -> float | None:
    """Mean number of distinct experts in all windows of `window` consecutive tokens; None if no prompt is that long.

    Args:
        reuse_TK: Reuse distances of one layer, 0 for a prompt's first use.
        positions_T: Position of each token in its prompt.
        lengths_T: Length of each token's prompt.
        window: Tokens.
    """
    # an access adds to the windows in which it is the first use of its expert: those that begin after the last use
    distinct = 0
    for part in slices(len(reuse_TK), reuse_TK.shape[1]):
        position_T1, reuse = positions_T[part, None], reuse_TK[part]
        latest = np.minimum(position_T1, lengths_T[part, None] - window)
        after_last_use = np.where(reuse > 0, position_T1 - reuse + 1, 0)
        earliest = np.maximum(after_last_use, np.maximum(position_T1 - window + 1, 0))
        distinct += int(np.maximum(latest - earliest + 1, 0).sum())
    num_windows = int((positions_T <= lengths_T - window).sum())
    return float(distinct / num_windows) if num_windows else None


def _one_layer(
    trace: Trace,
    index: int,
    counts_E: npt.NDArray[np.int64],
    reuse_TK: npt.NDArray[np.int32],
    windows: tuple[int, ...],
) -> dict[str, Any]:
    num_experts, top_k = trace.metadata.num_experts, trace.metadata.top_k
    lengths = np.diff(trace.prompt_offsets)
    lengths_T = np.repeat(lengths, lengths)
    again = reuse_TK[reuse_TK > 0]
    top = int(np.ceil(TOP_SHARE * num_experts))
    return {
        "layer": trace.metadata.layer_numbers[index],
        "entropy_bits": entropy_bits(counts_E),
        "max_entropy_bits": float(np.log2(num_experts)),
        "gini": gini(counts_E),
        "top_share": float(np.sort(counts_E)[-top:].sum() / counts_E.sum()),
        "unused_experts": int((counts_E == 0).sum()),
        "previous_token_overlap": previous_token_overlap(trace.layer_TK(index), trace.positions_T == 0),
        "overlap_by_chance": top_k / num_experts,
        "overlap_by_skew": overlap_by_skew(counts_E, trace.num_tokens, top_k),
        "first_use_share": float((reuse_TK == 0).mean()),
        "reuse_distance_median": float(np.median(again)) if len(again) else None,
        **{f"working_set_{size}": working_set(reuse_TK, trace.positions_T, lengths_T, size) for size in windows},
    }
