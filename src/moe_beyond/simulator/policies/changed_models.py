"""Publications that change the model's demand, not how its experts are cached: pruned, fewer, or smaller experts.

All keep least recently used in each layer, so that what the change saves stands alone; all are lossy, and the quality
that they recover by fine-tuning is not in a trace. What they decide from was counted on the training split.

Shape suffixes: V passes, A accesses, T tokens, L MoE layers, K experts per token, E routed experts in a layer,
M = L * E experts of the model, I members of an event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.online import Choice, Online, Routing
from moe_beyond.simulator.engine.policy import ChangedDemand, Policy
from moe_beyond.simulator.jit import F32, F64, I64, Bools
from moe_beyond.simulator.policies.count_matrices import model_wide_TLK
from moe_beyond.simulator.policies.layer_passes import LayerPasses
from moe_beyond.simulator.policies.on_demand import last_use
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.weight_shares import shares_TLK
from moe_beyond.traces.schema import Trace, TraceMetadata

_PRUNED = 0.25
LEXI_KEPT = 0.75
"""Share of all uses that LExI leaves."""
_TERNARY_BYTES = 0.25
_TERNARY_LEVELS = 3
_BITS_TRACED = 8
_NEGLIGIBLE = 0.2


def training_shares_TLK(training: Trace, policy: str) -> F32:
    """Weights of the training split as shares of each token and layer, float32.

    Raises:
        InputError: It has none.
    """
    if training.weights_TLK is None:
        raise InputError(
            f"policy {policy}: needs router weights, the training trace of {training.metadata.model_id} has none; "
            "record them (extract.weights: true), or choose another policy"
        )
    return shares_TLK(training.weights_TLK)


def _significance_M(training: Trace, policy: str) -> F64:
    """Sum of each expert's shares over the training split, float64."""
    shares = training_shares_TLK(training, policy).ravel()
    sums_M = np.bincount(model_wide_TLK(training).ravel(), shares, training.metadata.num_model_experts)
    return np.asarray(sums_M, np.float64)


def place_A(events: Events, policy: str) -> I64:
    """Place of each access among those of its layer pass by weight, 0 for the heaviest; int64."""
    offsets_V = LayerPasses.of(events).offsets_V
    pass_A = np.repeat(np.arange(len(offsets_V) - 1), np.diff(offsets_V))
    order_A = np.lexsort((-events.require_shares(policy), pass_A))
    place = np.empty(len(order_A), np.int64)
    place[order_A] = np.arange(len(order_A)) - offsets_V[:-1][pass_A]
    return place


class OnlineChange(Online):
    """The same changes while a model runs: what an event keeps, and its experts' sizes."""

    def __init__(
        self,
        keeps: Callable[[Routing], Bools | None] | None = None,
        bytes_share_M: F64 | None = None,
        levels_M: I64 | None = None,
    ) -> None:
        """`keeps` says which members of an event are used; sizes and levels as `Online` has them."""
        super().__init__()
        self._keeps, self.bytes_share_M, self.levels_M = keeps, bytes_share_M, levels_M

    @override
    def keep(self, routing: Routing) -> Bools | None:
        return None if self._keeps is None else self._keeps(routing)


class OnlineSeerMoe(OnlineChange):
    """Where a model runs, a decoded token's router chooses among what is left: the others' logits are minus infinity.

    A batched prefill skips the pruned experts, as a replay does, and so does a decoded token where only a trace is
    stepped.
    """

    def __init__(self, is_pruned_M: Bools) -> None:
        """True for the pruned experts."""
        super().__init__(lambda routing: ~is_pruned_M[routing.members_I] | (places_I(routing) == 0))
        self._is_pruned_M = is_pruned_M

    @override
    def choose(self, routing: Routing, resident_E: Bools) -> Choice | None:
        if routing.run_router is None:
            return None
        first = routing.layer * len(resident_E)
        pruned_E = self._is_pruned_M[first : first + len(resident_E)]
        return routing.run_router(routing.layer, lambda logits_TE: np.where(pruned_E, np.float32(-np.inf), logits_TE))


def places_I(routing: Routing) -> I64:
    """Place of each member by weight, as `place_A`; int64."""
    place_I = np.empty(len(routing.shares_I), np.int64)
    place_I[np.argsort(-routing.shares_I, kind="stable")] = np.arange(len(place_I))
    return place_I


class _OverLayerLru(Policy):
    needs_weights = True
    per_layer = True
    rank = staticmethod(last_use)


@dataclass(frozen=True)
class SeerMoe(_OverLayerLru):
    """A quarter of each layer's experts is pruned, the least heavy hitters (SEER-MoE, arXiv 2404.05089).

    A token skips a pruned expert; the changed model's router would choose another, which is in no trace. The heaviest
    expert of an event stays in any case. How much to prune is a choice: a quarter is assumed.

    Attributes:
        is_pruned_M: True for the pruned experts.
    """

    is_pruned_M: Bools
    name = "seer_moe"
    title = "SEER-MoE"

    @classmethod
    def fit(cls, training: Trace) -> SeerMoe:
        """Count the router's weights, the publication's soft counts, on the training split."""
        meta = training.metadata
        hitters_LE = _significance_M(training, cls.name).reshape(meta.num_layers, meta.num_experts)
        is_pruned_LE = np.zeros(hitters_LE.shape, bool)
        least_LE = np.argsort(hitters_LE, axis=1, kind="stable")[:, : int(_PRUNED * meta.num_experts)]
        np.put_along_axis(is_pruned_LE, least_LE, np.True_, axis=1)
        return cls(is_pruned_LE.ravel())

    @override
    def changed_demand(self, events: Events) -> ChangedDemand:
        keep_A = ~self.is_pruned_M[events.members_A] | (place_A(events, self.name) == 0)
        return ChangedDemand(keep_A, np.ones(len(self.is_pruned_M)))

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return OnlineSeerMoe(self.is_pruned_M)


@dataclass(frozen=True)
class Lexi(_OverLayerLru):
    """Fewer experts per token in the layers that bear it, three quarters of all (LExI, arXiv 2509.02753).

    The publication finds each layer's number by what its output loses on random data. Here the places that carry least
    weight on the training split go first, whatever their layer, and each layer keeps one. A batched prefill is one
    event for all its tokens and stays as it is.

    Attributes:
        top_k_L: Experts that a token uses in each layer, int64.
    """

    top_k_L: I64
    name = "lexi"
    title = "LExI"
    decides_by_token = True

    @classmethod
    def fit(cls, training: Trace) -> Lexi:
        """Weigh each place of each layer on the training split."""
        meta = training.metadata
        shares_TLK = np.sort(training_shares_TLK(training, cls.name), axis=2)[..., ::-1]
        mean_LK = shares_TLK.mean(axis=0, dtype=np.float64)
        dropped = meta.token_cycle - max(meta.num_layers, round(LEXI_KEPT * meta.token_cycle))
        # a layer's places fall in weight, so the lightest of all are the last of their layers
        lightest = np.argsort(mean_LK[:, 1:].ravel(), kind="stable")[:dropped]
        layers = lightest // max(1, meta.top_k - 1)
        return cls(meta.top_k - np.bincount(layers, minlength=meta.num_layers))

    @override
    def changed_demand(self, events: Events) -> ChangedDemand:
        layer_A = events.layer_N[events.event_A]
        keep_A = (place_A(events, self.name) < self.top_k_L[layer_A]) | ~events.is_decode_A
        return ChangedDemand(keep_A, np.ones(events.metadata.num_model_experts))

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return OnlineChange(
            lambda routing: places_I(routing) < self.top_k_L[routing.layer] if routing.decodes else None
        )


class Mote(_OverLayerLru):
    """Every routed expert ternary, at a quarter of the traced bytes (MoTE, a mixture of ternary experts).

    After the paper, unverified: two bits for a ternary weight, of eight that are taken to have been traced. The model
    is trained that way, so that all of its weight counts here as computed at low precision says little of its quality.
    """

    name = "mote"
    title = "MoTE"

    @override
    def changed_demand(self, events: Events) -> ChangedDemand:
        return ChangedDemand(
            np.ones(events.num_accesses, bool), np.full(events.metadata.num_model_experts, _TERNARY_BYTES)
        )

    @override
    def online(self, meta: TraceMetadata) -> Online:
        num_experts = meta.num_model_experts
        return OnlineChange(None, np.full(num_experts, _TERNARY_BYTES), np.full(num_experts, _TERNARY_LEVELS))


@dataclass(frozen=True)
class Mc(_OverLayerLru):
    """Bits by significance, and light experts dropped where the first one outweighs them (MC, MC#), lossy.

    After the paper, unverified: three, two and one bits for the most significant quarter of a layer's experts, the
    middle half and the last quarter, of eight that are taken to have been traced; an expert is dropped below a fifth of
    the first one's weight. A batched prefill drops none.

    Attributes:
        bytes_share_M: Bytes of each expert as a share of the traced ones, float64.
    """

    bytes_share_M: F64
    name = "mc"
    title = "MC, fewer bits"
    decides_by_token = True

    @classmethod
    def fit(cls, training: Trace) -> Mc:
        """Rank each layer's experts by the router's weight on the training split."""
        meta = training.metadata
        significance_LE = _significance_M(training, cls.name).reshape(meta.num_layers, meta.num_experts)
        order_LE = np.argsort(-significance_LE, axis=1, kind="stable")
        bits_E = np.full(meta.num_experts, 2)
        quarter = meta.num_experts // 4
        bits_E[:quarter], bits_E[meta.num_experts - quarter :] = 3, 1
        share_LE = np.empty(significance_LE.shape)
        np.put_along_axis(share_LE, order_LE, np.broadcast_to(bits_E / _BITS_TRACED, share_LE.shape), axis=1)
        return cls(share_LE.ravel())

    @override
    def changed_demand(self, events: Events) -> ChangedDemand:
        shares_A, offsets_V = events.require_shares(self.name), LayerPasses.of(events).offsets_V
        first_A = np.repeat(np.maximum.reduceat(shares_A, offsets_V[:-1]), np.diff(offsets_V))
        return ChangedDemand((shares_A >= _NEGLIGIBLE * first_A) | ~events.is_decode_A, self.bytes_share_M)

    @override
    def online(self, meta: TraceMetadata) -> Online:
        bits_M = np.rint(_BITS_TRACED * self.bytes_share_M).astype(np.int64)

        def keeps(routing: Routing) -> Bools | None:
            return routing.shares_I >= _NEGLIGIBLE * routing.shares_I.max() if routing.decodes else None

        return OnlineChange(keeps, self.bytes_share_M, 2**bits_M)
