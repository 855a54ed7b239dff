"""The one interface of cache policies: what is evicted, prefetched, skipped or replaced, and from what is known when.

A policy never counts and never changes the cache: the replay does. It ranks experts, and the expert with the lowest
rank is evicted first. Its prefetch requests carry the moment from which they are known. It may use less than the router
chose, for which the replay counts the router weight that was lost.

Shape suffixes: N events, A accesses, M experts of the model, S steps, L MoE layers, I members of an event, F features,
T tokens, E experts in a layer, H layers ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.online import Online
from moe_beyond.simulator.jit import F32, F64, I32, I64, Bools
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import Prefetches
from moe_beyond.traces.schema import Trace, TraceMetadata

__all__ = ["FULL", "SKIP", "ChangedDemand", "Demand", "Policy", "Prefetches", "Rank", "sentence"]

# What the replay keeps of every expert, resident or not: rows of the array `features_FM` that a rank function reads.
LAST_USE = 0
"""Access of the last use: a later one is larger; -1 before the first."""
LAST_STEP = 1
"""Step of the last use; -1 before the first."""
USES = 2
"""Uses so far, kept after an eviction."""
USES_RESIDENT = 3
"""Uses since the expert was last admitted."""
ADMITTED = 4
"""Running number of the admission: a later one is larger."""
NEXT_USE = 5
"""Event of the next use: only bounds may read it."""
SCORE = 6
"""The policy's own `scores_SM` in this step; while its token step takes time, still of the step before. Where it has
`ahead_HTLE`, of the layers ahead what was said last."""
LAYER = 7
"""Index of the expert's layer."""
SECOND_SCORE = 8
"""The second half of a row of `scores_SM`, where rows have two."""
RANKS = 9
"""Where a rank function writes: of the i-th resident that it is given, at place i."""
WEIGHT_SUM = 10
"""Sum of the expert's shares of the router weight over all uses. Kept only for policies that need weights."""
USES_FULL = 11
"""Uses at full precision, kept after an eviction. Kept only for policies that need weights."""
NUM_FEATURES = 12

Rank = Callable[[F64, I32, int, int, int], None]
"""`rank(features_FM, residents, now, step, layer)`, compiled with `jit.RANK`, writes a rank for each resident into
RANKS: the lowest is evicted first, and none is infinite. All at once, because a call for each would cost the most.

`now` is the access that comes next, so that `now - LAST_USE` is an age of at least 1; `step` is that of the event,
`layer` the last in it whose router has chosen, -1 before the first: a prefetch for a layer must not evict that layer's
residents as if the layer had run. Of equal ranks the least recently used is evicted first, then the lower id.
"""

# What a demand function writes for a member of an event.
SKIP = -1
"""The expert is not computed: its share of the output is lost."""
FULL = -2
"""The expert at full precision. One precision lower is FULL - 1, and so on: the expert at that precision or a better
one, whichever is resident, and where neither is, it is loaded at that one."""

Demand = Callable[[F64, I64, I32, F32, int, int, I64], None]
"""`demand(features_FM, precision_M, members_I, shares_I, step, layer, actions_I)`, compiled with `jit.DEMAND`.

Called when a decoded token's router has chosen, before anything of the event is loaded; a batched prefill uses what its
router chose. `precision_M` is the precision at which each expert is resident, 0 the full one, or -1 where it is absent;
`shares_I` are the members' shares of the layer's router weight, which sum to 1. It writes for each member SKIP, FULL,
FULL - precision, or the id of a resident expert of the layer that replaces it; an id that is not resident, or is itself
used by the event or twice, counts as SKIP.
"""


@dataclass(frozen=True)
class ChangedDemand:
    """What a policy changes ahead of the replay: fewer experts a token, experts pruned, fewer bits.

    Attributes:
        keep_A: bool; accesses that remain. The others are skipped.
        bytes_share_M: float64; bytes of each expert as a share of the traced ones. Below 1 its weight counts as lost
            to low precision.
    """

    keep_A: Bools
    bytes_share_M: F64

    @classmethod
    def none(cls, events: Events) -> ChangedDemand:
        """All that the router chose, as it was traced."""
        return cls(np.ones(events.num_accesses, bool), np.ones(events.metadata.num_model_experts))


class Policy:
    """What to keep, what to prefetch, and what to skip or replace."""

    name: str
    """Name in tables and on the command line."""
    title: str
    """Name for people."""
    rank: Rank
    """The compiled rank function; a class wraps it in `staticmethod`."""
    demand: Demand | None = None
    """The compiled demand function of a lossy policy; None: what the router chose is computed."""
    per_layer: bool = False
    """True where each layer has a budget of its own, so that layers do not evict each other's experts."""
    bypass: bool = False
    """True where an expert may be used without being kept: the event's own experts compete with the residents."""

    knows_future: bool = False
    """True for bounds: their rank reads NEXT_USE, which no policy can know."""

    needs_another_router: bool = False
    """True where it works only with a model that was trained to choose experts a layer earlier."""

    predictor: str | None = None
    """Name of the predictor that it needs, in tables; None: none."""

    evicted_by: str | None = None
    """Name of the predictor by which it evicts, where another one prefetches; None: none, or the same."""

    gate_kind: str | None = None
    """Whether it reads the model's own next gates, in words for tables; None: it reads no gate."""

    token_step_ms: float = 0.0
    """Milliseconds on one thread that are charged for its predictor ahead of every decoded token."""

    layer_step_ms: float = 0.0
    """Milliseconds on one thread that are charged for its predictor after the router of every layer but the last."""

    lookahead: int | None = None
    """For how many layers beyond the present one its prefetches may start; None: that of the workload."""

    needs_weights: bool = False
    """True where it reads router weights: by WEIGHT_SUM, USES_FULL, or in a demand function."""

    decides_by_token: bool = False
    """True where its changed demand is decided for each token, so that it has no meaning for several at once."""

    precisions: tuple[float, ...] = (1.0,)
    """Bytes of an expert at each precision as shares of the traced ones, falling; the first is the full one."""

    ahead_HTLE: F32 | None = None
    """What takes the place of SCORE for the experts of the next H layers when a router has chosen, a row as
    `Events.token_S` names it: float32 [H, T, L, E], of which the first entry is of the next layer. None: nothing."""

    def beside(self, trace: Trace) -> Policy:
        """The same for a trace that is to be replayed: with what its hidden states say, where it has some."""
        return self

    def layer_weights_L(self, num_layers: int) -> F64 | None:
        """In which proportion the layers share the cache, where each has a budget of its own; None: alike."""
        return None

    def budget(self, meta: TraceMetadata, capacity_experts: int) -> Budget:
        """A cache of so many slots as the policy divides them.

        Raises:
            InputError: As `Budget.slots`.
        """
        weights_L = self.layer_weights_L(meta.num_layers)
        if weights_L is None:
            return Budget.slots(meta, capacity_experts, per_layer=self.per_layer)
        return Budget.weighted(meta, capacity_experts, weights_L)

    def most_experts(self, meta: TraceMetadata) -> int | None:
        """Experts that it keeps at most, however large the cache is; None: as many as fit."""
        return None

    def changed_demand(self, events: Events) -> ChangedDemand | None:
        """What it skips or shrinks, decided ahead of the replay; None: nothing."""
        return None

    def is_lossy(self, events: Events) -> bool:
        """Whether the model's outputs are not its own: experts are skipped or replaced, or another router is needed."""
        return self.needs_another_router or self.demand is not None or self.changed_demand(events) is not None

    def fixed_scores_M(self, meta: TraceMetadata) -> F32 | None:
        """Scores that never change, float32: a value an expert, or two as in `scores_SM`; None: it has none."""
        return None

    def scores_SM(self, events: Events) -> F32:
        """Scores that `rank` reads as SCORE: float32, one row a step, one row for all steps, or no row.

        A row has a value an expert, or two: first those of SCORE, then those of SECOND_SCORE.
        """
        fixed_M = self.fixed_scores_M(events.metadata)
        return np.zeros((0, events.metadata.num_model_experts), np.float32) if fixed_M is None else fixed_M[None]

    def prefetches(self, events: Events) -> Prefetches:
        """What to prefetch, and from when that is known."""
        return Prefetches.none()

    def online(self, meta: TraceMetadata) -> Online:
        """The same decisions while a model runs.

        Raises:
            InputError: It can decide only with a whole trace before it.
        """
        kind = type(self)
        whole = (kind.scores_SM, kind.prefetches, kind.changed_demand)
        if self.knows_future or whole != (Policy.scores_SM, Policy.prefetches, Policy.changed_demand):
            raise InputError(f"policy {self.name}: decides from a whole trace and cannot run beside a model")
        return Online(self.fixed_scores_M(meta))


def sentence(name: str) -> str:
    """An identifier as it begins a sentence."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]
