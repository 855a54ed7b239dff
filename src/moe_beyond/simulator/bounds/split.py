"""How a cache is best split over the layers: fitted on training prompts, for any budget.

An LRU of its own in each layer hits as often as the layer's curve gives at the slots it has, whatever the others
get, so the best split is a knapsack: one capacity of each layer, the sum within the budget, most hits. It is solved
exactly in slots; in bytes exactly up to a quantum of the budget, which each expert is rounded up to.

Shape suffixes: L MoE layers, E experts in a layer, D capacities 0 to E of one layer, Q quanta of the budget.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.simulator.bounds.hit_curves import lru_curve
from moe_beyond.simulator.jit import F64, I64
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import TraceMetadata

MAX_QUANTA = 4096


def layer_curves_LD(events: Events, *, keep_warm: bool = True) -> I64:
    """Hits of an LRU of each layer's own at every number of slots, int64 [L, E+1]; a pass a layer."""
    meta = events.metadata
    return np.stack([lru_curve(_only(events, layer), keep_warm=keep_warm).hits_D for layer in range(meta.num_layers)])


def fit_split(meta: TraceMetadata, hits_LD: I64, total: int, *, in_bytes: bool = False) -> I64:
    """The split that saves most: slots of each layer, int64 [L].

    Args:
        meta: The model's shape.
        hits_LD: Hits of each layer at every number of slots, `layer_curves_LD` of training prompts.
        total: Slots to give out, or bytes with `in_bytes`. In bytes the split saves the most bytes, not the most loads.
        in_bytes: Whether `total` is bytes.

    Raises:
        InputError: The total is below one slot, or below the largest expert.
    """
    size_L = np.asarray(meta.expert_bytes, np.int64) if in_bytes else np.ones(meta.num_layers, np.int64)
    if total < size_L.max():
        raise InputError(
            f"budget: {total} {'bytes' if in_bytes else 'slots'}, one expert takes {size_L.max()}; give more"
        )
    total = min(total, int(size_L.sum()) * meta.num_experts)
    quantum = int(np.gcd.reduce(size_L))
    if total // quantum > MAX_QUANTA:
        quantum = -(-total // MAX_QUANTA)
    quanta_L = -(-size_L // quantum)
    return _knapsack((hits_LD * size_L[:, None]).astype(np.float64), quanta_L, total // quantum)


def _only(events: Events, layer: int) -> Events:
    """The events of one layer, as of a model that has no other."""
    of_layer_N = events.layer_N == layer
    lengths_N = np.diff(events.offsets_N)
    meta = events.metadata
    return replace(
        events,
        metadata=meta.model_copy(
            update={
                "layer_numbers": meta.layer_numbers[layer : layer + 1],
                "expert_bytes": meta.expert_bytes[layer : layer + 1],
            }
        ),
        members_A=events.members_A[np.repeat(of_layer_N, lengths_N)] - np.int32(layer * meta.num_experts),
        offsets_N=np.concatenate([[0], np.cumsum(lengths_N[of_layer_N])]),
        layer_N=np.zeros(of_layer_N.sum(), np.int32),
        step_N=events.step_N[of_layer_N],
        shares_A=None,
        owner_A=None,
        trace=None,
    )


def _knapsack(value_LD: F64, quanta_L: I64, total: int) -> I64:
    """One column of each row, so that the sum of `column * quanta_L` keeps within `total` and the values' is largest.

    Of equal values the fewest quanta win, then the fewest slots of the later layers.
    """
    num_layers, num_columns = value_LD.shape
    best_Q = np.zeros(total + 1)
    chosen_LQ = np.zeros((num_layers, total + 1), np.int64)
    for layer in range(num_layers):
        so_far_Q = best_Q.copy()
        best_Q = so_far_Q + value_LD[layer, 0]
        for slots in range(1, num_columns):
            taken = slots * int(quanta_L[layer])
            if taken > total:
                break
            value_Q = so_far_Q[: total + 1 - taken] + value_LD[layer, slots]
            better = np.nonzero(value_Q > best_Q[taken:])[0] + taken
            best_Q[better] = value_Q[better - taken]
            chosen_LQ[layer, better] = slots
    slots_L = np.zeros(num_layers, np.int64)
    left = int(np.argmax(best_Q))
    for layer in range(num_layers - 1, -1, -1):
        slots_L[layer] = chosen_LQ[layer, left]
        left -= int(slots_L[layer] * quanta_L[layer])
    return slots_L
