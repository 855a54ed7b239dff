"""Prefetch requests: for which event, from when each is known, in which order.

Shape suffixes: N events, Q requests, X requested experts (of one request after another), W experts of a request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_beyond.simulator.jit import F32, F64, I32, I64
from moe_beyond.simulator.schedule.events import Events


def before(event: I64 | int) -> I64:
    """The moment ahead of an event, at which a token step's answer is there if the event is its token's first."""
    return 2 * np.asarray(event, np.int64)


def when_routed(event: I64 | int) -> I64:
    """The moment at which an event's router has chosen: from here on a policy may use what it chose."""
    return 2 * np.asarray(event, np.int64) + 1


@dataclass(frozen=True)
class Prefetches:
    """Requests, in order of the moment from which each is known.

    A request is for one event. A later request for the same event replaces of the earlier one what has not begun to
    load; one that names no expert withdraws it. What has not begun when the event's router has chosen is dropped, and
    so is, for all events, what has not begun when the cache is emptied. While the link is free, the expert of the
    highest priority among all requests is loaded next.

    Attributes:
        known_Q: int64, rising; the moment (`before` or `when_routed` of an event) from which the request is known.
        target_Q: int64; the event that it is for: of the same step, or less than L events later; not begun yet.
        offsets_Q: int64 [Q+1]; request q names `experts_X[offsets_Q[q]:offsets_Q[q+1]]`, experts of the target's layer.
        experts_X: int32, model-wide ids, within a request in order of priority.
        priorities_X: float32, falling within a request; equal ones of two requests: the sooner event first.
    """

    known_Q: I64
    target_Q: I64
    offsets_Q: I64
    experts_X: I32
    priorities_X: F32

    @classmethod
    def none(cls) -> Prefetches:
        """Nothing is fetched ahead."""
        empty = np.zeros(0, np.int64)
        return cls(empty, empty, np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))

    @property
    def num_requests(self) -> int:
        """Number of requests, Q."""
        return len(self.known_Q)

    @classmethod
    def from_requests(
        cls,
        events: Events,
        known_Q: I64,
        target_Q: I64,
        counts_Q: I64,
        experts_X: I64 | I32,
        *,
        priorities_X: F32 | F64 | None = None,
    ) -> Prefetches:
        """Requests in any order; those of one moment keep it, and of two for one event the later in the list holds.

        Args:
            events: What they are for.
            known_Q: As the attribute, in any order.
            target_Q: As the attribute.
            counts_Q: Experts that each request names.
            experts_X: Those experts, of one request after another.
            priorities_X: In any order; None: the sooner event first, within it as listed.

        Raises:
            ValueError: A request for an event that has begun, or that is too far ahead.
        """
        known_Q, target_Q, counts_Q = (np.asarray(column, np.int64) for column in (known_Q, target_Q, counts_Q))
        from_Q = known_Q // 2
        far_Q = target_Q - from_Q >= events.metadata.num_layers
        if ((known_Q > 2 * target_Q) | (far_Q & (events.step_N[from_Q] != events.step_N[target_Q]))).any():
            raise ValueError("a prefetch must be known before its event begins, and be for the same step or L events")
        if priorities_X is None:
            priorities_X = np.zeros(int(counts_Q.sum()), np.float32)
        request_X = np.repeat(np.arange(len(known_Q)), counts_Q)
        rank_Q = np.empty(len(known_Q), np.int64)
        order_Q = np.argsort(known_Q, kind="stable")
        rank_Q[order_Q] = np.arange(len(known_Q))
        order_X = np.lexsort((-priorities_X, rank_Q[request_X]))
        return cls(
            known_Q[order_Q],
            target_Q[order_Q],
            np.concatenate([[0], np.cumsum(counts_Q[order_Q])]).astype(np.int64),
            np.asarray(experts_X)[order_X].astype(np.int32),
            np.asarray(priorities_X)[order_X].astype(np.float32),
        )

    @classmethod
    def from_table(
        cls, events: Events, known_Q: I64, target_Q: I64, experts_QW: I64 | I32, priorities_QW: F32 | None = None
    ) -> Prefetches:
        """Requests in any order that all name as many experts: faster than `from_requests`.

        Args:
            events: What they are for.
            known_Q: As the attribute, in any order.
            target_Q: As the attribute.
            experts_QW: Model-wide ids, in order of priority.
            priorities_QW: Falling within a request; None: the sooner event first.
        """
        if priorities_QW is None:
            sooner_Q = -events.layer_N[target_Q].astype(np.float32)
            priorities_QW = np.broadcast_to(sooner_Q[:, None], experts_QW.shape)
        order_Q = np.argsort(known_Q, kind="stable")
        return cls(
            known_Q[order_Q].astype(np.int64),
            target_Q[order_Q].astype(np.int64),
            np.arange(len(known_Q) + 1, dtype=np.int64) * experts_QW.shape[1],
            experts_QW[order_Q].reshape(-1).astype(np.int32),
            priorities_QW[order_Q].reshape(-1).astype(np.float32),
        )

    def within(self, events: Events, lookahead: int) -> Prefetches:
        """The same, but no request before its event is `lookahead` events or fewer away.

        A request that is known too early counts from the moment before that event on. Of two for one event the one that
        was known later still holds.
        """
        earliest_Q = np.maximum(self.target_Q - lookahead, 0)
        known_Q = np.maximum(self.known_Q, before(earliest_Q))
        if (known_Q[1:] >= known_Q[:-1]).all():
            return Prefetches(known_Q, self.target_Q, self.offsets_Q, self.experts_X, self.priorities_X)
        return Prefetches.from_requests(
            events, known_Q, self.target_Q, np.diff(self.offsets_Q), self.experts_X, priorities_X=self.priorities_X
        )

    def just_in_time(self, num_events: int) -> tuple[I64, I32]:
        """What the last request for each event names: where loading takes no time, it is there when the event begins.

        Returns:
            Offsets int64 [N+1] and experts int32, by the event that they are for, in order of priority.
        """
        last_N = np.full(num_events, -1, np.int64)
        last_N[self.target_Q] = np.arange(self.num_requests)  # of several for one event the last assignment holds
        last_Q = last_N[last_N >= 0]
        counts_N = np.zeros(num_events, np.int64)
        counts_N[last_N >= 0] = np.diff(self.offsets_Q)[last_Q]
        offsets_N = np.concatenate([[0], np.cumsum(counts_N)]).astype(np.int64)
        starts = np.repeat(self.offsets_Q[last_Q] - offsets_N[:-1][last_N >= 0], counts_N[last_N >= 0])
        return offsets_N, self.experts_X[starts + np.arange(offsets_N[-1])]
