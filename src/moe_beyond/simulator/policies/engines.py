"""What engines that users run do beside LRU: a resident set that changes by swaps, and pins beside an LRU.

Their names carry a number (`swap_8`, `pinned_lru_300`), so the catalogue makes them only when they are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.online import Online, Request, Step
from moe_beyond.simulator.engine.policy import LAST_STEP, LAST_USE, RANKS, SCORE, USES, USES_RESIDENT, Policy
from moe_beyond.simulator.jit import F32, F64, I32, I64, RANK, compiled
from moe_beyond.simulator.policies.count_matrices import finished_PM
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import Prefetches, before
from moe_beyond.traces.schema import Trace, TraceMetadata

MARGIN = 1.5
"""Uses by which a candidate must exceed its victim."""
# accesses stay below 2 ** 52
_PINNED = 4503599627370496.0


@compiled(RANK)
def swapped(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Uses; of an expert that this event loaded, less the margin in a round, and below all others between rounds."""
    for place, expert in enumerate(residents):
        uses = features_FM[USES, expert]
        if features_FM[USES_RESIDENT, expert] == 1 and features_FM[LAST_STEP, expert] == step:
            uses = uses - MARGIN if step % features_FM[SCORE, expert] == 0 else -1.0
        features_FM[RANKS, place] = uses


@compiled(RANK)
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
        starts_N = np.flatnonzero(events.starts_prompt_N)
        # where every access is an event, the first of a layer
        steps_N = np.isin(events.step_N, events.step_N[starts_N])
        first_N = np.concatenate([[True], np.diff(events.layer_N) != 0]) & steps_N
        target_Q = np.flatnonzero(first_N)
        named = [of_layers[layer] for layer in events.layer_N[target_Q]]
        starts_Q = starts_N[np.searchsorted(starts_N, target_Q, side="right") - 1]
        experts_X = np.concatenate([*named, np.zeros(0, np.int64)])
        counts_Q = np.array([len(pinned) for pinned in named], np.int64)
        return Prefetches.from_requests(events, before(starts_Q), target_Q, counts_Q, experts_X)

    @override
    def online(self, meta: TraceMetadata) -> Online:
        return _OnlinePins(self.pinned_M, self._of_layers(meta))


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
