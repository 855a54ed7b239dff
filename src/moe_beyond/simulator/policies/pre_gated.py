"""Pre-gated MoE (arXiv 2308.12066): the model itself decides one layer early, so the next layer is known exactly.

Shape suffixes: V passes, N events, A accesses, Q requests, X requested experts.
"""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from moe_beyond.simulator.engine.online import Online
from moe_beyond.simulator.engine.policy import Policy, Prefetches
from moe_beyond.simulator.policies.layer_passes import LayerPasses
from moe_beyond.simulator.policies.on_demand import last_use
from moe_beyond.simulator.policies.online_choices import OnlinePreGated
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import when_routed
from moe_beyond.traces.schema import TraceMetadata


class PreGated(Policy):
    """Changes the model (Pre-gated MoE, arXiv 2308.12066): its gates are fine-tuned to choose for the next layer.

    The experts of the trace's next layer are prefetched exactly, as the changed model could; it is assumed to use the
    same experts as the traced one. Nothing is kept for reuse: two layers' experts are all it holds, so every
    expert of every token is moved. The first layer is loaded on demand. Beside a model nothing is
    fine-tuned or assumed.
    """

    name = "pre_gated"
    title = "Pre-gated MoE"
    needs_another_router = True
    lookahead = 1
    rank = staticmethod(last_use)

    @override
    def most_experts(self, meta: TraceMetadata) -> int | None:
        return 2 * meta.top_k

    @override
    def prefetches(self, events: Events) -> Prefetches:
        passes = LayerPasses.of(events)
        from_Q = np.nonzero(passes.decode_V & (passes.layer_V < events.metadata.num_layers - 1))[0]
        counts_Q = np.diff(passes.offsets_V)[from_Q + 1]
        starts_X = np.repeat(passes.offsets_V[from_Q + 1] - np.cumsum(counts_Q) + counts_Q, counts_Q)
        experts_X = events.members_A[starts_X + np.arange(counts_Q.sum())]
        known_Q, target_Q = when_routed(passes.last_V[from_Q]), passes.first_V[from_Q + 1]
        return Prefetches.from_requests(events, known_Q, target_Q, counts_Q, experts_X)

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return OnlinePreGated(meta.num_layers, meta.num_experts)


class PreGatedLru(PreGated):
    """Speculates on the guess: runs the experts that the next gate named early, over LRU in the whole cache. Lossy.

    The next layer computes with what its router chose for this layer's gate input, instead of what it would choose for
    its own, so that no prefetch is ever wrong; the model stays as it was trained. What that does to its outputs only a
    running model says (`live.quality`). A replay assumes that the routing is the traced one, as `PreGated` does.
    """

    name = "pre_gated_lru"
    title = "Next gate's guess, run as it is"

    @override
    def most_experts(self, meta: TraceMetadata) -> None:
        return None
