"""What engines that users run do beside LRU: swaps with hysteresis, pins beside an LRU, a warm start.

Their names carry a number (`swap_8`, `pinned_lru_300`), so the catalogue makes them only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.online import Online, Request, Step
from moe_beyond.simulator.engine.policy import LAST_STEP, LAST_USE, RANKS, SCORE, USES, USES_RESIDENT, Policy
from moe_beyond.simulator.jit import F32, F64, I32, I64, RANK, compiled
from moe_beyond.simulator.policies.count_matrices import finished_PM, uses_A
from moe_beyond.simulator.policies.on_demand import last_use
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import Prefetches, before
from moe_beyond.traces.schema import Trace, TraceMetadata

MARGIN = 1.5
"""Uses by which a candidate must exceed its victim."""
# accesses stay below 2 ** 52
_PINNED = 4503599627370496.0


@compiled(RANK, borrows=True)
def swapped(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Uses; of an expert that this event loaded, less the margin in a round, and below all others between rounds."""
    for place, expert in enumerate(residents):
        uses = features_FM[USES, expert]
        if features_FM[USES_RESIDENT, expert] == 1 and features_FM[LAST_STEP, expert] == step:
            uses = uses - MARGIN if step % features_FM[SCORE, expert] == 0 else -1.0
        features_FM[RANKS, place] = uses


@compiled(RANK, borrows=True)
def pinned_last(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Last use; pinned experts after all others."""
    for place, expert in enumerate(residents):
        features_FM[RANKS, place] = features_FM[LAST_USE, expert] + _PINNED * features_FM[SCORE, expert]


@dataclass(frozen=True)
class Swap(Policy):
    """Keeps a layer's residents until another expert has clearly more uses: swap with hysteresis.

    In every n-th step an expert that was missed takes the place of the resident of its layer with the fewest uses so
    far, if it has at least 1.5 more; otherwise it is used and not kept. A candidate is judged when it is used; engines
    that also look at those of the steps between two rounds swap a little sooner.

    Attributes:
        every: Steps from one round to the next, below 2 ** 24.
    """

    every: int
    title = "Swap with hysteresis"
    per_layer = True
    bypass = True
    rank = staticmethod(swapped)

    @property
    def name(self) -> str:  # type: ignore[override] # carries a number
        """With its number."""
        return f"swap_{self.every}"

    @override
    def fixed_scores_M(self, meta: TraceMetadata) -> F32:
        return np.full(meta.num_model_experts, self.every, np.float32)


@dataclass(frozen=True)
class PinnedLru(Policy):
    """The experts that other prompts used most are loaded ahead and stay; the rest of the cache is an LRU.

    Attributes:
        pinned_M: bool; True for the pinned experts.
    """

    pinned_M: F32
    pins: int
    title = "Pins and LRU"
    rank = staticmethod(pinned_last)

    @property
    def name(self) -> str:  # type: ignore[override] # carries a number
        """With its number."""
        return f"pinned_lru_{self.pins}"

    @classmethod
    def fit(cls, training: Trace, pins: int) -> PinnedLru:
        """Pin the most used experts of a training trace; of equally used ones the lower id."""
        uses_M = finished_PM(training).sum(axis=0)
        pinned_M = np.zeros(len(uses_M), np.float32)
        pinned_M[np.argsort(-uses_M, kind="stable")[:pins]] = 1
        return cls(pinned_M, pins)

    @override
    def fixed_scores_M(self, meta: TraceMetadata) -> F32:
        return self.pinned_M

    def _of_layers(self, meta: TraceMetadata) -> list[I64]:
        pinned_LE = self.pinned_M.reshape(meta.num_layers, -1)
        return [np.flatnonzero(pinned_E) + layer * meta.num_experts for layer, pinned_E in enumerate(pinned_LE)]

    @override
    def prefetches(self, events: Events) -> Prefetches:
        of_layers = self._of_layers(events.metadata)
        target_Q = _first_events(events, events.step_N[events.starts_prompt_N])
        return _ahead_of_steps(events, target_Q, [of_layers[layer] for layer in events.layer_N[target_Q]])

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return _OnlinePins(self.pinned_M, self._of_layers(meta))


@dataclass(frozen=True)
class WarmLru(Policy):
    """LRU that a prompt's own prefill warms up.

    Ahead of a prompt's first decoded token the experts of each layer are fetched that most of its tokens used, of
    equally used ones the lower id. Without a prefill nothing is.

    Attributes:
        width: Experts of each layer.
    """

    width: int
    title = "LRU, warmed up by the prompt"
    lookahead = 2**20
    rank = staticmethod(last_use)

    @property
    def name(self) -> str:  # type: ignore[override] # carries a number
        """With its number."""
        return f"warm_lru_{self.width}"

    @override
    def prefetches(self, events: Events) -> Prefetches:
        decodes_S, prompt_S = events.is_decode_S, events.prompt_S
        warmed_S = 1 + np.flatnonzero(~decodes_S[:-1] & decodes_S[1:] & (prompt_S[:-1] == prompt_S[1:]))
        target_Q = _first_events(events, warmed_S)
        prefilled_A = np.flatnonzero(np.isin(events.step_N[events.event_A], warmed_S - 1))
        uses, members = uses_A(events)[prefilled_A], events.members_A[prefilled_A]
        steps, layers = (of_N[events.event_A[prefilled_A]] for of_N in (events.step_N, events.layer_N))
        order = np.lexsort((members, -uses, layers, steps))
        keys = steps[order].astype(np.int64) * events.metadata.num_layers + layers[order]
        wanted_Q = (events.step_N[target_Q].astype(np.int64) - 1) * events.metadata.num_layers + events.layer_N[
            target_Q
        ]
        starts_Q, ends_Q = (np.searchsorted(keys, wanted_Q, side=side) for side in ("left", "right"))
        ends_Q = np.minimum(ends_Q, starts_Q + self.width)
        named = [members[order[start:end]] for start, end in zip(starts_Q, ends_Q, strict=True)]
        return _ahead_of_steps(events, target_Q, named)


def _first_events(events: Events, steps: I32 | I64) -> I64:
    """The first event of each layer of these steps: where every access is an event, a layer has several."""
    first_N = np.concatenate([[True], (np.diff(events.layer_N) != 0) | (np.diff(events.step_N) != 0)])
    return np.flatnonzero(first_N & np.isin(events.step_N, steps))


def _ahead_of_steps(events: Events, target_Q: I64, named: Sequence[I64 | I32]) -> Prefetches:
    """Requests that are known from before their steps on."""
    first_S = np.searchsorted(events.step_N, np.arange(events.num_steps))
    experts_X = np.concatenate([*named, np.zeros(0, np.int64)]).astype(np.int64)
    counts_Q = np.array([len(experts) for experts in named], np.int64)
    return Prefetches.from_requests(events, before(first_S[events.step_N[target_Q]]), target_Q, counts_Q, experts_X)


class _OnlinePins(Online):
    def __init__(self, pinned_M: F32, of_layers: list[I64]) -> None:
        super().__init__(pinned_M)
        self._of_layers = of_layers

    @override
    def begin(self, step: Step) -> tuple[F32 | None, list[Request]]:
        scores_M, _ = super().begin(step)
        if not step.starts_prompt:
            return scores_M, []
        return scores_M, [Request(step.first_event + layer, pins) for layer, pins in enumerate(self._of_layers)]


def require_number(name: str, number: int) -> int:
    """A number from 1 to 2 ** 24 - 1; raises InputError that names the policy."""
    if not 0 < number < 2**24:
        raise InputError(f"policy {name!r}: give a number from 1 to {2**24 - 1} after the name")
    return number
