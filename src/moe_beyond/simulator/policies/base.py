"""The one interface of cache policies: who leaves, who is fetched ahead, and what the policy needs to know.

A policy never counts and never touches residency: the replay does. It ranks experts; whoever ranks lowest leaves first.

Shape suffixes: N events, M experts of the model, S steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.events import Events

# What the replay keeps of every expert, resident or not: rows of the array `features_FM` that a rank function reads.
LAST_USE = 0
"""Access of the last use: a later one is larger; -1 before the first."""
LAST_STEP = 1
"""Step of the last use; -1 before the first."""
USES = 2
"""Uses so far, kept when the expert leaves."""
USES_RESIDENT = 3
"""Uses since the expert was last admitted."""
ADMITTED = 4
"""Running number of the admission: a later one is larger."""
NEXT_USE = 5
"""Event of the next use: only bounds may read it."""
SCORE = 6
"""What the policy's own `scores_SM` says in this step."""
LAYER = 7
"""Index of the expert's layer."""
SECOND_SCORE = 8
"""What the second half of a row of `scores_SM` says, where rows have two."""
RANKS = 9
"""Where a rank function writes: of the i-th resident that it is given, at place i."""
NUM_FEATURES = 10

Rank = Callable[[npt.NDArray[np.float64], npt.NDArray[np.int32], int, int, int], None]
"""`rank(features_FM, residents, now, step, layer)`, compiled with `jit.RANK`, writes a rank for each resident into
RANKS: the lowest leaves first, and none is infinite. All at once, because a call for each would cost the most.

`now` is the access that comes next, so that `now - LAST_USE` is an age of at least 1; `step` and `layer` are those of
the event. Ties leave least recently used first, then by lower id.
"""


@dataclass(frozen=True)
class Prefetches:
    """Experts to fetch before each event, most wanted first.

    Attributes:
        offsets_N: int64 [N+1]; event n's are `experts[offsets_N[n]:offsets_N[n+1]]`.
        experts: int32, model-wide expert ids.
    """

    offsets_N: npt.NDArray[np.int64]
    experts: npt.NDArray[np.int32]

    @classmethod
    def none(cls, events: Events) -> Prefetches:
        """Nothing is fetched ahead."""
        return cls(np.zeros(events.num_events + 1, np.int64), np.zeros(0, np.int32))


class Policy(ABC):
    """What to keep, and what to fetch before it is asked for."""

    name: str
    """Name in tables, plots and on the command line."""
    per_layer: bool = False
    """True where each layer has a budget of its own, so that layers do not evict each other's experts."""
    bypass: bool = False
    """True where an expert may be used without being kept: the event's own experts compete with the residents."""

    knows_future: bool = False
    """True for bounds: their rank reads NEXT_USE, which no policy can know."""

    predicts: bool = False
    """True where it needs a predictor's answer for every decoded token, whose time is charged."""

    @property
    @abstractmethod
    def rank(self) -> Rank:
        """The compiled rank function."""

    def scores_SM(self, events: Events) -> npt.NDArray[np.float32]:
        """Scores that `rank` reads as SCORE: float32, one row a step, one row for all steps, or no row.

        A row has a value an expert, or two: first those of SCORE, then those of SECOND_SCORE.
        """
        return np.zeros((0, events.metadata.num_model_experts), np.float32)

    def prefetches(self, events: Events) -> Prefetches:
        """What to fetch before each event."""
        return Prefetches.none(events)
