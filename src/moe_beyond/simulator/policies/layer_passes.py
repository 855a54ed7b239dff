"""Passes of a layer, one a step, in the order in which the model runs them: the routing that a policy has seen so far.

In an event-atomic replay a pass is an event; in a sequential one it is the events of one layer in one step.

Shape suffixes: V passes, N events, A accesses, S steps, E routed experts in a layer, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_beyond.simulator.jit import F32, I32, I64, Bools, compiled
from moe_beyond.simulator.schedule.events import Events


@dataclass(frozen=True)
class LayerPasses:
    """Steps and layers in the order in which the model runs them.

    Attributes:
        step_V: int32, step of each pass.
        layer_V: int32, layer of each pass.
        first_V: int64, its first event.
        last_V: int64, its last event: when it is routed, all of the pass is known.
        offsets_V: int64 [V+1]; the pass uses `members_A[offsets_V[v]:offsets_V[v+1]]`.
        prompt_S: int32, prompt of each step.
        is_decode_S: True for steps that route one token of each running prompt.
    """

    step_V: I32
    layer_V: I32
    first_V: I64
    last_V: I64
    offsets_V: I64
    prompt_S: I32
    is_decode_S: Bools

    @classmethod
    def of(cls, events: Events) -> LayerPasses:
        """Gather a replay's events into passes."""
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
    def decode_V(self) -> Bools:
        """True for passes of decode steps."""
        return np.asarray(self.is_decode_S[self.step_V])


@compiled()
def best(scores_RE: F32, count: int) -> I64:
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
