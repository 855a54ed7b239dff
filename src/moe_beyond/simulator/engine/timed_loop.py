"""The loop with a clock, called from Python: for times, and for policies whose demand depends on what is resident.

Shape suffixes: N events, A accesses, M experts of the model, V precisions, Z moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.engine import timed_kernel
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Prefetches
from moe_beyond.simulator.engine.policy_inputs import Prepared
from moe_beyond.simulator.engine.results import Replay
from moe_beyond.simulator.engine.usage import full_precision
from moe_beyond.simulator.jit import F64, I32, I64
from moe_beyond.simulator.schedule.prefetches import before


class Misses(NamedTuple):
    """What becomes of experts that are missing, in milliseconds.

    Attributes:
        load_VM: Loading each; infinite where nothing is loaded on demand.
        cpu_VM: Computing it on the host's processor instead, beside the accelerator; infinite where it never is.
        admit_VM: Copying into the cache what was loaded on demand, before it computes.
        layer_ms: Ahead of the first load of an event.
        overlap: Whether experts compute while others of their event load.
    """

    load_VM: F64
    cpu_VM: F64
    admit_VM: F64
    layer_ms: float = 0.0
    overlap: bool = False

    @classmethod
    def loaded(cls, transfer_VM: F64) -> Misses:
        """Each is loaded, and nothing takes time beside that."""
        return cls(transfer_VM, np.full_like(transfer_VM, np.inf), np.zeros_like(transfer_VM))


class Pages(NamedTuple):
    """The operating system's page cache, which keeps what the link read last.

    Attributes:
        saves_VM: By how many milliseconds a read is sooner done where the expert lies in it.
        bytes_VM: What each expert takes of it.
        held: Bytes that it keeps at most.
    """

    saves_VM: F64
    bytes_VM: I64
    held: int


@dataclass(frozen=True)
class Times:
    """How long everything takes, in milliseconds.

    Attributes:
        transfer_VM: Prefetching each expert at each precision, or copying it when it has been computed elsewhere.
        read_VM: Computing with it.
        token_step_N: What a token takes outside its layers, and the predictor's token step, ahead of an event.
        layer_step_N: Its layer step, between an event's router and its experts.
        dense_N: What else an event computes, ahead of its router's choice.
        misses: What becomes of experts that are missing; None: they take `transfer_VM`.
        tokens_N: What an event's experts compute beyond `read_VM`, as where a prefill has many tokens; None: nothing.
        pages: What is read again sooner; None: nothing.
    """

    transfer_VM: F64
    read_VM: F64
    token_step_N: F64
    layer_step_N: F64
    dense_N: F64
    misses: Misses | None = None
    tokens_N: F64 | None = None
    pages: Pages | None = None

    @classmethod
    def none(cls, prepared: Prepared) -> Times:
        """Loading takes no time, and there is some ahead of every event to load in."""
        none_VM, none_N = np.zeros(prepared.size_VM.shape), np.zeros(prepared.events.num_events)
        return cls(none_VM, none_VM, none_N, none_N, np.ones_like(none_N))


@dataclass(frozen=True)
class Run:
    """What the loop counted and measured.

    Attributes:
        replay: Its counts.
        time_N: Milliseconds of each event.
        stall_N: The part of it in which the processor waited for the link.
        outcome_A: Outcome of each access, a number of `usage`.
        evictions_N: Evictions of each event; not those of a cache that was emptied before it.
        wasted_N: Those of them that had been prefetched and were not used.
    """

    replay: Replay
    time_N: F64
    stall_N: F64
    outcome_A: npt.NDArray[np.int8]
    evictions_N: I32
    wasted_N: I32


def run(prepared: Prepared, prefetches: Prefetches, budget: Budget, times: Times, *, overrun: bool = False) -> Run:
    """Replay a trace through one cache beside a link and a processor.

    Args:
        prepared: The policy with what it computed from the trace.
        prefetches: Its requests.
        budget: How much the cache holds.
        times: How long everything takes.
        overrun: As for `replay.replay`.
    """
    policy, events = prepared.policy, prepared.events
    units_VM, budget_G = prepared.units(budget)
    demand = policy.demand
    counts_RC, weight_lost_RW, misses_N, time_N, stall_N, outcome_A, evictions_N, wasted_N = timed_kernel.timed_replay(
        policy.rank,
        policy.bypass,
        overrun,
        *prepared.common,
        prepared.bytes_VM,
        demand or full_precision,
        events.is_decode_S[events.step_N] & (demand is not None),
        np.zeros(0, np.float32) if events.shares_A is None or not prepared.needs_general_loop else events.shares_A,
        np.searchsorted(prefetches.known_Q, np.arange(2 * events.num_events + 1)),
        prefetches.target_Q,
        prefetches.offsets_Q,
        prefetches.experts_X,
        prefetches.priorities_X,
        units_VM,
        budget.group_M,
        budget_G,
        2 * events.num_prompts,
        times.transfer_VM,
        times.read_VM,
        times.token_step_N,
        times.layer_step_N,
        times.dense_N,
        np.zeros_like(times.dense_N) if times.tokens_N is None else times.tokens_N,
        *(times.misses or Misses.loaded(times.transfer_VM)),
        *(times.pages or Pages(np.zeros_like(times.transfer_VM), prepared.bytes_VM, 0)),
    )
    replay = prepared.result(budget, counts_RC, weight_lost_RW, misses_N)
    return Run(replay, time_N, stall_N, outcome_A, evictions_N, wasted_N)


def just_in_time(prepared: Prepared) -> Prefetches:
    """Of all requests for an event the last one, at the moment before it."""
    requests = prepared.prefetches
    return Prefetches.from_requests(
        prepared.events,
        before(requests.target_Q),
        requests.target_Q,
        np.diff(requests.offsets_Q),
        requests.experts_X,
        priorities_X=requests.priorities_X,
    )
