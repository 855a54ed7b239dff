"""A predictor under the paper's own replay, so that it can be set beside the paper's figures.

Shape suffixes: T tokens, L MoE layers, K top-k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_beyond.metrics import groups
from moe_beyond.predictor.base import Predictor
from moe_beyond.simulator.experiment import capacity_experts
from moe_beyond.simulator.published_protocol import most_probable, published_replay
from moe_beyond.traces.schema import Trace


def published_hit_rates(predictor: Predictor, trace: Trace, shares: Sequence[float], seed: int) -> dict[str, float]:
    """Hit rate by capacity under the protocol of arXiv 2508.17137, prefetching top-k experts a layer.

    Args:
        predictor: Names top-k experts for each token and layer.
        trace: Prompts to replay, each from a randomly filled cache.
        shares: Capacities as shares of all routed experts.
        seed: Of the random filling.

    Returns:
        `<capacity in experts> experts` -> hit rate.
    """
    top_k = trace.metadata.top_k
    named_TLK = np.concatenate([most_probable(predictor.probabilities_TLE(part), top_k) for part in groups(trace)])
    capacities = [capacity_experts(trace.metadata, share) for share in shares]
    return {f"{size} experts": published_replay(trace, named_TLK, size, seed).hit_rate for size in capacities}
