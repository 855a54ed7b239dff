"""Layers share the cache as training prompts say that each would gain.

What each would gain is its curve of stack distances (Mattson et al., IBM Systems Journal 9(2), 1970).

Shape suffixes: L MoE layers, D capacities 0 to E of one layer.
"""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from moe_beyond.simulator.bounds.split import fit_split, layer_curves_LD
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.jit import I64
from moe_beyond.simulator.policies.on_demand import LayerLru
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.traces.schema import Trace, TraceMetadata


@dataclass(frozen=True)
class LayerLruFitted(LayerLru):
    """Least recently used within each layer, slots dealt out by the layers' own LRU curves on training prompts.

    At small capacities an even split gives every layer too little to hit at all: some layers are then better left out.

    Attributes:
        hits_LD: Hits of each layer at every number of slots, where every training token is decoded.
    """

    hits_LD: I64
    name = "layer_lru_fitted"
    title = "LRU per layer, fitted split"

    @classmethod
    def fit(cls, training: Trace) -> LayerLruFitted:
        """One pass a layer over the training split."""
        return cls(layer_curves_LD(events_of(training, "token_by_token")))

    @override
    def budget(self, meta: TraceMetadata, capacity_experts: int) -> Budget:
        Budget.slots(meta, capacity_experts)
        return Budget.weighted(meta, capacity_experts, fit_split(meta, self.hits_LD, capacity_experts))
