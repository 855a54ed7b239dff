"""What counts alone say of a model: how much of the routing its most popular experts take.

Whatever needs the order of the tokens is not here: LRU, Belady's bound, overlap of tokens, a verdict. Shape suffixes as
in `schema`; M experts of the whole model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_beyond.assess.statistics import entropy_bits, gini
from moe_beyond.formats.counts import ExpertCounts

_SHARES = (0.05, 0.1, 0.2, 0.25, 0.5)
_COVERED = (0.5, 0.8, 0.9, 0.95)


def assess_counts(counts: ExpertCounts) -> dict[str, Any]:
    """A card without a verdict, ready for JSON.

    `coverage` is the share of the choices that the most popular experts of the model take, by the share of experts: the
    hit rate of pinning them on the very choices that chose them, so no more than that on others. `experts_for` is how
    many experts take so much of the choices.
    """
    counts_M = np.sort(counts.counts_LE.reshape(-1))[::-1]
    covered_M = np.cumsum(counts_M) / counts_M.sum()
    sizes = counts.expert_bytes
    layer_sums = counts.counts_LE.sum(axis=1)
    return {
        "input": "counts only",
        "model_id": counts.model_id,
        "source": counts.source,
        "moe_layers": list(counts.layer_numbers),
        "num_experts": counts.num_experts,
        "top_k": counts.top_k,
        "model_experts": len(counts_M),
        "experts_mib": None if sizes is None else sum(sizes) * counts.num_experts / 2**20,
        "choices": int(counts_M.sum()),
        "tokens": None if counts.top_k is None else int(layer_sums.max() // counts.top_k),
        "never_chosen_share": float((counts_M == 0).mean()),
        "gini": float(np.mean([gini(row) for row in counts.counts_LE])),
        "entropy_ratio": float(np.mean([entropy_bits(row) for row in counts.counts_LE]) / np.log2(counts.num_experts)),
        "coverage": {f"{share:g}": float(covered_M[max(1, round(share * len(counts_M))) - 1]) for share in _SHARES},
        "experts_for": {f"{share:g}": int(np.searchsorted(covered_M, share) + 1) for share in _COVERED},
        "notes": [
            "Counts only: how often each expert was chosen, not in which order. Pinning and coverage follow from them; "
            "LRU, prefetching, bounds and times need a trace.",
            "The coverage is counted on the tokens that it is about; on others pinned experts hit less.",
        ],
    }
