"""What a policy may use of the routing so far: one visit a step and layer, in order, and asks for visits to come.

In an event-atomic replay a visit is an event; in a sequential one it is the events of one layer in one step.

Shape suffixes: V visits, N events, A accesses, S steps, L MoE layers, E routed experts in a layer, M = L * E experts,
Q asks, W experts that an ask names, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.simulator.jit import compiled
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.schedule.prefetches import Prefetches


@dataclass(frozen=True)
class Visits:
    """Steps and layers in the order in which the model runs them.

    Attributes:
        step_V: int32, step of each visit.
        layer_V: int32, layer of each visit.
        first_V: int64, its first event.
        last_V: int64, its last event: when it is routed, all of the visit is known.
        offsets_V: int64 [V+1]; the visit wants `members_A[offsets_V[v]:offsets_V[v+1]]`.
        prompt_S: int32, prompt of each step.
        is_decode_S: True for steps that route one token of each running prompt.
    """

    step_V: npt.NDArray[np.int32]
    layer_V: npt.NDArray[np.int32]
    first_V: npt.NDArray[np.int64]
    last_V: npt.NDArray[np.int64]
    offsets_V: npt.NDArray[np.int64]
    prompt_S: npt.NDArray[np.int32]
    is_decode_S: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, events: Events) -> Visits:
        """Gather a replay's events into visits."""
        place_N = events.step_N.astype(np.int64) * events.metadata.num_layers + events.layer_N
        first_V = np.nonzero(np.concatenate([[True], place_N[1:] != place_N[:-1]]))[0]
        return cls(
            step_V=events.step_N[first_V],
            layer_V=events.layer_N[first_V],
            first_V=first_V,
            last_V=np.concatenate([first_V[1:], [events.num_events]]) - 1,
            offsets_V=np.concatenate([events.offsets_N[first_V], events.offsets_N[-1:]]),
            prompt_S=events.prompt_S,
            is_decode_S=events.is_decode_S,
        )

    @property
    def decode_V(self) -> npt.NDArray[np.bool_]:
        """True for visits of decode steps."""
        return np.asarray(self.is_decode_S[self.step_V])


def asks(
    events: Events,
    known_Q: npt.NDArray[np.int64],
    target_Q: npt.NDArray[np.int64],
    experts_QW: npt.NDArray[np.integer],
    priorities_QW: npt.NDArray[np.float32] | None = None,
) -> Prefetches:
    """Prefetches of asks in any order that all name as many experts, most wanted first.

    Args:
        events: What they are for.
        known_Q: The moment from which each ask is known.
        target_Q: The event that wants the experts.
        experts_QW: Model-wide ids.
        priorities_QW: Falling within an ask; None: the sooner event first.
    """
    width = experts_QW.shape[1]
    if priorities_QW is None:
        sooner_Q = -events.layer_N[target_Q].astype(np.float32)
        priorities_QW = np.broadcast_to(sooner_Q[:, None], experts_QW.shape)
    order_Q = np.argsort(known_Q, kind="stable")
    return Prefetches(
        known_Q[order_Q].astype(np.int64),
        target_Q[order_Q].astype(np.int64),
        np.arange(len(known_Q) + 1, dtype=np.int64) * width,
        experts_QW[order_Q].reshape(-1).astype(np.int32),
        priorities_QW[order_Q].reshape(-1).astype(np.float32),
    )


@compiled()
def best(scores_RE: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Columns of the `count` highest scores of each row, highest first, ties by lower column: int64 [R, count]."""
    num_rows, num_experts = scores_RE.shape
    best_RW = np.empty((num_rows, count), np.int64)
    taken_E = np.zeros(num_experts, np.bool_)
    for row in range(num_rows):
        taken_E[:] = False
        for place in range(count):
            leader = -1
            for expert in range(num_experts):
                if not taken_E[expert] and (leader < 0 or scores_RE[row, expert] > scores_RE[row, leader]):
                    leader = expert
            taken_E[leader] = True
            best_RW[row, place] = leader
    return best_RW


def require_shares(events: Events, policy: str) -> npt.NDArray[np.float32]:
    """The router's weights as shares of each event, for a policy that cannot do without them.

    Raises:
        InputError: The trace has none.
    """
    if events.shares_A is None:
        meta = events.metadata
        raise InputError(
            f"policy {policy} needs router weights, the trace of {meta.model_id} ({meta.source}) has none; "
            "replay a trace that was captured with its weights, or another policy"
        )
    return events.shares_A
