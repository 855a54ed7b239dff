"""Policies that change what the model computes, while it runs: which experts a token uses, and with which weights.

Shape suffixes: I members of an event, T tokens of a step, L MoE layers, K experts per token, E routed experts in a
layer, M = L * E experts of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.simulator.engine.online import Choice, Online, Request, Routing, Step
from moe_beyond.simulator.jit import F32, F64, Bools

if TYPE_CHECKING:
    from moe_beyond.simulator.policies.prompt_sets import PreMoe


@dataclass
class OnlineMoBile(Online):
    """From its second layer on, an unimportant token uses the heavier half of its experts.

    Attributes:
        upper_half_share: As in `fewer_experts.MoBile`.
    """

    upper_half_share: float
    _scores_M: F32 | None = None
    _halves: bool = False

    @override
    def keep(self, routing: Routing) -> Bools | None:
        if not routing.decodes:
            return None
        upper_I = np.zeros(len(routing.members_I), bool)
        upper_I[np.argsort(-routing.shares_I, kind="stable")[: (len(upper_I) + 1) // 2]] = True
        if routing.layer == 0:
            self._halves = bool(routing.shares_I[upper_I].sum(dtype=np.float64) > self.upper_half_share)
            return None
        return upper_I if self._halves else None


class OnlineCachePrior(Online):
    """Raises the logits of what is resident, and of the best ones, and lets the router choose by these.

    As it never sets scores, the policy's demand function, which stands in for this on traces, replaces nothing.
    """

    def __init__(self, num_layers: int, prior: float, always_kept: int) -> None:
        """Logits z' = z + prior * D for residents and the `always_kept` best; D is the layer's mean range so far."""
        super().__init__()
        self._prior, self._always_kept = prior, always_kept
        self._range_L, self._tokens_L = np.zeros(num_layers), np.zeros(num_layers)

    @override
    def choose(self, routing: Routing, resident_E: Bools) -> Choice:
        layer = routing.layer

        def raised(logits_TE: F32) -> F32:
            self._range_L[layer] += np.ptp(logits_TE, axis=1).sum()
            self._tokens_L[layer] += len(logits_TE)
            raised_TE = np.broadcast_to(resident_E, logits_TE.shape).copy()
            # raised alike, nothing overtakes them
            best_TB = np.argsort(-logits_TE, axis=1, kind="stable")[:, : self._always_kept]
            np.put_along_axis(raised_TE, best_TB, np.True_, axis=1)
            mean_range = self._range_L[layer] / self._tokens_L[layer]
            return np.asarray(logits_TE + self._prior * mean_range * raised_TE, np.float32)

        return routing.require_router("cache_prior")(layer, raised)


@dataclass
class OnlinePreMoe(Online):
    """Runs a prompt on the subset of its pattern alone, once it is matched; until then the model is whole.

    The router chooses among the subset: the logits of all others are minus infinity while it does. Where no model runs,
    and where a router chooses one of them nevertheless (its score may be a bias alone), it is skipped.

    Attributes:
        policy: Holds the patterns.
        num_layers: MoE layers.
        kept: Experts of each layer in a subset.
        opening_steps: Decode steps after which a prompt without a batched prefill is matched.
    """

    policy: PreMoe
    num_layers: int
    kept: int
    opening_steps: int
    _scores_M: F32 | None = None
    _counts_M: F64 = field(default_factory=lambda: np.zeros(0))
    _missing_steps: int = 0
    _subset_LE: Bools | None = None

    @override
    def begin(self, step: Step) -> tuple[F32 | None, list[Request]]:
        if step.starts_prompt:
            self._counts_M, self._subset_LE = np.zeros(len(self.policy.popularity_M)), None
            self._missing_steps = self.opening_steps if step.decodes else 1
            return self.policy.popularity_M, []
        if self._missing_steps or self._subset_LE is not None:
            return None, []
        pattern_M = self.policy.nearest_M(self._counts_M)
        pattern_LE = pattern_M.reshape(self.num_layers, -1)
        self._subset_LE = np.zeros(pattern_LE.shape, bool)
        best_LE = np.argsort(-pattern_LE, axis=1, kind="stable")[:, : self.kept]
        np.put_along_axis(self._subset_LE, best_LE, np.True_, axis=1)
        return pattern_M, []

    @override
    def choose(self, routing: Routing, resident_E: Bools) -> Choice | None:
        if self._subset_LE is None or routing.run_router is None:
            return None
        subset_E = self._subset_LE[routing.layer]
        return routing.run_router(routing.layer, lambda logits_TE: np.where(subset_E, logits_TE, np.float32(-np.inf)))

    @override
    def keep(self, routing: Routing) -> Bools | None:
        return None if self._subset_LE is None else self._subset_LE.ravel()[routing.members_I]

    @override
    def end(self, step: Step, experts_TLK: npt.NDArray[np.integer]) -> None:
        if self._missing_steps:
            self._missing_steps -= 1
            num_experts = len(self._counts_M) // self.num_layers
            used_TLK = experts_TLK + num_experts * np.arange(self.num_layers)[:, None]
            np.add.at(self._counts_M, used_TLK.ravel(), 1)


@dataclass
class OnlinePreGated(Online):
    """Each next layer computes with what its router chooses for this layer's hidden states, and that is prefetched.

    The publication fine-tunes the model to bear it; here it is as it was trained.

    Attributes:
        num_layers: MoE layers.
        num_experts: Experts in each.
    """

    num_layers: int
    num_experts: int
    _scores_M: F32 | None = None
    _next: Choice | None = None

    @override
    def choose(self, routing: Routing, resident_E: Bools) -> Choice | None:
        return self._next

    @override
    def routed(self, routing: Routing) -> list[Request]:
        self._next, layer = None, routing.layer + 1
        if not routing.decodes or layer == self.num_layers:
            return []
        self._next = routing.require_router("pre_gated")(layer)
        experts_K = self._next.experts_TK[0][np.argsort(-self._next.weights_TK[0], kind="stable")]
        return [Request(routing.event + 1, experts_K + layer * self.num_experts)]
