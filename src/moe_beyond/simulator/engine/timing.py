"""What a policy costs in milliseconds on a device.

A predictor's steps are charged to the policies that it drives: what they carry (`Policy.token_step_ms`), times the
device's slowdown.

Shape suffixes: N events, S steps, A accesses, M experts of the model, P prompts, F phases (0 prefill, 1 decode).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from moe_beyond.devices.device import MILLISECONDS, Device
from moe_beyond.devices.workload import Workload
from moe_beyond.intervals import Ratio
from moe_beyond.simulator.engine import cache
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.policy_inputs import Prepared, prepare
from moe_beyond.simulator.engine.replay import in_threads
from moe_beyond.simulator.engine.results import MIB, Replay
from moe_beyond.simulator.engine.timed_loop import Misses, Pages, Run, Times, run
from moe_beyond.simulator.engine.usage import LATE
from moe_beyond.simulator.jit import F64, I64
from moe_beyond.simulator.schedule.events import Events

_PREFILL, _DECODE = 0, 1


@dataclass(frozen=True)
class TimedReplay:
    """One policy at one capacity over one trace on one device.

    Ratios are those of decoded tokens. A hit is an expert that is there when its layer needs it: one whose prefetch
    is still under way is waited for, and is a miss.

    Attributes:
        device: Where it ran.
        token_step_ms: Charged on this device ahead of each decoded token.
        layer_step_ms: Charged on this device after each layer's router.
        replay: What was hit, missed and moved; a late prefetch counts as a hit there. Bytes are the trace's own.
        late_PF: int64; prefetches that were waited for, by prompt and phase.
        step_ms_S: float64; time of each step.
        stall_ms_S: float64; the part of it in which the processor waited for the link.
        events: What was replayed.
        expert_bytes_scale: Bytes that an expert is timed with, as a multiple of the traced ones.
    """

    device: Device
    token_step_ms: float
    layer_step_ms: float
    replay: Replay
    late_PF: I64
    step_ms_S: F64
    stall_ms_S: F64
    events: Events
    expert_bytes_scale: float

    @property
    def tokens_P(self) -> I64:
        """Decoded tokens of each prompt."""
        return np.asarray(self.replay.tokens_PF[:, _DECODE])

    @property
    def time(self) -> Ratio:
        """Milliseconds over decoded tokens, by prompt.

        With a batch a step decodes several: then a user waits for a token as long as the step takes.
        """
        return Ratio(self.events.by_prompt(self.step_ms_S), self.tokens_P)

    @property
    def stall(self) -> Ratio:
        """Milliseconds of waiting for the link over decoded tokens, by prompt."""
        return Ratio(self.events.by_prompt(self.stall_ms_S), self.tokens_P)

    @property
    def hits(self) -> Ratio:
        """Accesses that found their expert there over all of them, by prompt."""
        counts_PC = self.replay.counts_PFC[:, _DECODE]
        return Ratio(counts_PC[:, cache.HITS] - self.late_PF[:, _DECODE], counts_PC[:, cache.ACCESSES])

    @property
    def moved(self) -> Ratio:
        """MiB loaded over decoded tokens, by prompt, prefetches included; as large as the experts are timed."""
        counts_PC = self.replay.counts_PFC[:, _DECODE]
        bytes_P = counts_PC[:, cache.DEMAND_BYTES] + counts_PC[:, cache.PREFETCH_BYTES]
        return Ratio(np.asarray(bytes_P * (self.expert_bytes_scale / MIB), np.float64), self.tokens_P)

    @property
    def first_token(self) -> Ratio:
        """Milliseconds from a prompt's start to its first token, by prompt: its prefill, which counts as one step.

        Prompts whose prefill was not replayed as one step do not count.
        """
        starts_P = np.asarray(self.replay.tokens_PF[:, _PREFILL] > 0, np.int64)
        prefill_ms_S = self.step_ms_S[~self.events.is_decode_S]
        ms_P = np.zeros(len(starts_P))
        # a prompt's prefill is one step, and prefills come in the order of their prompts
        ms_P[starts_P > 0] = prefill_ms_S
        return Ratio(ms_P, starts_P)

    @property
    def ms_per_token(self) -> float:
        """Mean time of a decoded token; 0 where nothing was decoded."""
        return self.time.value

    @property
    def by_heat(self) -> tuple[float, float] | None:
        """`ms_per_token` of the device's fastest and slowest recorded runs; None where heat was not recorded."""
        heat = self.device.heat_range
        return None if heat is None else (heat[0] * self.ms_per_token, heat[1] * self.ms_per_token)

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens a second; 0 where nothing was decoded."""
        return MILLISECONDS / self.ms_per_token if self.ms_per_token else 0.0

    @property
    def late_prefetches(self) -> int:
        """Prefetches that were waited for."""
        return int(self.late_PF.sum())

    @property
    def total_ms(self) -> float:
        """Time of the whole trace, prefill too."""
        return float(self.step_ms_S.sum())

    @property
    def link_idle_share(self) -> float:
        """Share of the decoding time in which the link carried nothing; 0 where nothing was decoded."""
        decode = self.replay.decode
        loaded = (decode.demand_bytes + decode.prefetch_bytes) * self.expert_bytes_scale
        busy_ms = decode.loads * self.device.transfer_ms(loaded / max(1, decode.loads))
        total_ms = float(self.time.numerator_P.sum())
        return max(0.0, 1 - busy_ms / total_ms) if total_ms else 0.0


def timed_replay(
    events: Events,
    policy: Policy,
    budget: Budget,
    device: Device,
    workload: Workload,
    *,
    keep_warm: bool = True,
    overrun: bool = False,
) -> TimedReplay:
    """Replay a trace with a clock.

    Args:
        events: The accesses.
        policy: What is evicted and prefetched.
        budget: How much the cache holds.
        device: Link and processor.
        workload: What there is to move and to compute.
        keep_warm: Keep the cache from one prompt to the next.
        overrun: As for `replay.replay`.
    """
    prepared = prepare(events, policy, keep_warm=keep_warm)
    return timed_sweep(prepared, [budget], [device], workload, overrun=overrun)[0]


def timed_sweep(
    prepared: Prepared,
    budgets: Sequence[Budget],
    devices: Sequence[Device],
    workload: Workload,
    *,
    overrun: bool = False,
) -> list[TimedReplay]:
    """Replay a prepared policy on each device and at each budget, devices first."""

    def one(device: Device, budget: Budget) -> TimedReplay:
        done = timed_run(prepared, budget, device, workload, overrun=overrun)
        events = prepared.events
        late_R = np.bincount(events.row_A[done.outcome_A == LATE], minlength=2 * events.num_prompts)
        return _timed(prepared, device, workload, done.replay, done.time_N, done.stall_N, late_R.reshape(-1, 2))

    pairs = list(product(devices, budgets))
    return in_threads(one, [device for device, _ in pairs], [budget for _, budget in pairs])


def timed_run(prepared: Prepared, budget: Budget, device: Device, workload: Workload, *, overrun: bool = False) -> Run:
    """One replay with a clock, event by event."""
    lookahead = workload.lookahead if prepared.policy.lookahead is None else prepared.policy.lookahead
    prefetches = prepared.prefetches.within(prepared.events, lookahead)
    times = times_of(prepared, device, workload, budget.capacity_experts)
    return run(prepared, prefetches, budget, times, overrun=overrun)


def times_of(prepared: Prepared, device: Device, workload: Workload, capacity_experts: int) -> Times:
    """How long everything takes that a policy does on a device, beside a cache of so many experts."""
    policy, events = prepared.policy, prepared.events
    held_bytes = workload.held_bytes(capacity_experts)
    device = device.holding(held_bytes)
    bytes_VM = np.rint(np.repeat(workload.expert_bytes_L, events.metadata.num_experts) * prepared.size_VM)
    dense_N, experts_N = workload.compute_ms(events.layer_N, np.diff(events.offsets_N), device)
    slowdown, load_VM = device.predictor_slowdown, device.transfer_ms(bytes_VM)
    admit_VM, never_VM = device.admit_ms(bytes_VM), np.full(bytes_VM.shape, np.inf)
    return Times(
        transfer_VM=load_VM + admit_VM,
        read_VM=device.read_ms(bytes_VM),
        token_step_N=_token_step_N(events) * (policy.token_step_ms * slowdown + device.token_overhead_us / 1e3)
        + _first_N(events) * ~events.is_decode_S[events.step_N] * device.prompt_overhead_ms,
        layer_step_N=_layer_step_N(events) * policy.layer_step_ms * slowdown,
        dense_N=dense_N,
        misses=Misses(
            load_VM=never_VM if device.miss == "compute" else load_VM,
            cpu_VM=never_VM if device.miss == "load" else device.cpu_ms(bytes_VM),
            admit_VM=admit_VM,
            layer_ms=device.miss_layer_us / 1e3,
            overlap=device.overlap,
        ),
        tokens_N=np.maximum(0.0, _prefill_N(events, device) - dense_N - experts_N),
        pages=None
        if device.page_gb_per_s is None
        else Pages(
            saves_VM=load_VM - device.page_ms(bytes_VM),
            bytes_VM=bytes_VM.astype(np.int64),
            held=max(0, int(device.memory_left(held_bytes))),
        ),
    )


def time_on_demand(prepared: Prepared, replay: Replay, device: Device, workload: Workload) -> TimedReplay:
    """The time of a replay that prefetched nothing: computing, and one load after another. No second replay.

    Args:
        prepared: The policy; a lossless one.
        replay: What it missed.
        device: Link and processor; one that loads what is missing, past the page cache.
        workload: What there is to move and to compute.
    """
    events = prepared.events
    times = times_of(prepared, device, workload, replay.capacity_experts)
    _, experts_N = workload.compute_ms(events.layer_N, np.diff(events.offsets_N), device)
    bytes_L = workload.expert_bytes_L.astype(np.float64)
    transfer_N, admit_N = device.transfer_ms(bytes_L)[events.layer_N], device.admit_ms(bytes_L)[events.layer_N]
    wait_N = transfer_N * replay.misses_N + device.miss_layer_us / 1e3 * (replay.misses_N > 0)
    # loads go on while the layer step runs
    stall_N = np.maximum(0, wait_N - times.layer_step_N)
    experts_N += (0.0 if times.tokens_N is None else times.tokens_N) + admit_N * replay.misses_N
    if device.overlap:
        last_N = device.read_ms(bytes_L)[events.layer_N] + admit_N
        stall_N -= np.minimum(stall_N, np.maximum(0, experts_N - last_N))
    time_N = times.token_step_N + times.dense_N + times.layer_step_N + stall_N + experts_N
    return _timed(prepared, device, workload, replay, time_N, stall_N, np.zeros((events.num_prompts, 2), np.int64))


def _timed(  # noqa: PLR0917 - all of it is the result
    prepared: Prepared, device: Device, workload: Workload, counted: Replay, time_N: F64, stall_N: F64, late_PF: I64
) -> TimedReplay:
    events, policy = prepared.events, prepared.policy
    return TimedReplay(
        device=device,
        token_step_ms=policy.token_step_ms * device.predictor_slowdown,
        layer_step_ms=policy.layer_step_ms * device.predictor_slowdown,
        replay=counted,
        late_PF=late_PF,
        step_ms_S=_by_step(events, time_N),
        stall_ms_S=_by_step(events, stall_N),
        events=events,
        expert_bytes_scale=float(workload.expert_bytes_L.sum() / sum(events.metadata.expert_bytes)),
    )


def _first_N(events: Events) -> F64:
    """1 for the first event of each step."""
    first_N = np.ones(events.num_events)
    first_N[1:] = events.step_N[1:] != events.step_N[:-1]
    return first_N


def _token_step_N(events: Events) -> F64:
    """1 for the first event of each decode step, ahead of which the token step runs."""
    return _first_N(events) * events.is_decode_S[events.step_N]


def _prefill_N(events: Events, device: Device) -> F64:
    """Milliseconds that each layer of a prefill computes at least: those of its tokens, shared by all layers."""
    prefill_ms_S = device.prefill_ms(events.num_tokens_S.astype(np.float64)) / events.metadata.num_layers
    return np.asarray((prefill_ms_S * ~events.is_decode_S)[events.step_N])


def _layer_step_N(events: Events) -> F64:
    """1 for each decoded layer that others of its token follow: between router and experts the layer step runs."""
    followed_N = np.append(events.step_N[1:] == events.step_N[:-1], [False])
    return np.asarray(followed_N & events.is_decode_S[events.step_N], np.float64)


def _by_step(events: Events, values_N: F64) -> F64:
    sums_S = np.zeros(events.num_steps)
    np.add.at(sums_S, events.step_N, values_N)
    return sums_S
