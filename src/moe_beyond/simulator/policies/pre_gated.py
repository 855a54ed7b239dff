"""Pre-gated MoE (arXiv 2308.12066): the model itself decides one layer early, so the next layer is known exactly.

Shape suffixes: V visits, N events, A accesses, Q asks, X experts asked for.
"""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from moe_beyond.simulator.engine.policy import Policy, Prefetches, Rank
from moe_beyond.simulator.policies.on_demand import last_use
from moe_beyond.simulator.policies.visits import Visits
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import when_routed
from moe_beyond.traces.schema import TraceMetadata


class PreGated(Policy):
    """Changes the model (Pre-gated MoE, arXiv 2308.12066): its gates are fine-tuned to choose for the next layer.

    What the trace's next layer uses is fetched exactly, as the changed model would know it; that it then still uses the
    same experts as the traced one is assumed. Nothing is kept for reuse: two layers' experts are all it holds, so every
    expert of every token is moved. The first layer is loaded on demand.
    """

    name = "pre_gated"
    title = "Pre-gated MoE"
    needs_another_router = True
    lookahead = 1

    @property
    @override
    def rank(self) -> Rank:
        return last_use

    @override
    def most_experts(self, meta: TraceMetadata) -> int:
        return 2 * meta.top_k

    @override
    def prefetches(self, events: Events) -> Prefetches:
        visits = Visits.of(events)
        asking = np.nonzero(visits.decode_V & (visits.layer_V < events.metadata.num_layers - 1))[0]
        counts_Q = np.diff(visits.offsets_V)[asking + 1]
        starts_X = np.repeat(visits.offsets_V[asking + 1] - np.cumsum(counts_Q) + counts_Q, counts_Q)
        experts_X = events.members_A[starts_X + np.arange(counts_Q.sum())]
        known_Q, target_Q = when_routed(visits.last_V[asking]), visits.first_V[asking + 1]
        return Prefetches.ask(events, known_Q, target_Q, counts_Q, experts_X)
