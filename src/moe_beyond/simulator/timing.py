"""What a policy costs in milliseconds on a device, and the time that no policy can beat.

Shape suffixes: N events, S steps, M experts of the model, L MoE layers, P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.device import MILLISECONDS, Device
from moe_beyond.simulator.events import Events
from moe_beyond.simulator.loop import Times, run
from moe_beyond.simulator.policies.base import Policy
from moe_beyond.simulator.prepared import Prepared, prepare
from moe_beyond.simulator.replay import in_threads
from moe_beyond.simulator.results import Replay
from moe_beyond.simulator.usage import LATE


@dataclass(frozen=True)
class Workload:
    """What there is to move and to compute, beside what the trace says.

    Attributes:
        expert_bytes_L: Bytes of an expert of each layer.
        dense_bytes_L: Bytes of each layer that every token reads: attention, shared experts, norms.
        predictor_ms: Milliseconds from a token's sampling to the predictor's answer, on the critical path; charged to
            policies that predict.
        lookahead: For how many layers beyond the present one prefetches may start, unless the policy says otherwise.
        layer_predictor_ms: Milliseconds from a router's choice to the layer step's answer; charged, for every layer but
            the last, to policies that predict layers.
    """

    expert_bytes_L: npt.NDArray[np.int64]
    dense_bytes_L: npt.NDArray[np.int64]
    predictor_ms: float
    lookahead: int
    layer_predictor_ms: float = 0.0

    @classmethod
    def like_its_experts(
        cls,
        events: Events,
        predictor_ms: float,
        lookahead: int,
        expert_bytes: int | None = None,
        layer_predictor_ms: float = 0.0,
    ) -> Workload:
        """An assumption where a trace does not say: a layer's other weights weigh as much as the k experts it uses.

        Args:
            events: Of the model.
            predictor_ms: As the attribute.
            lookahead: As the attribute.
            expert_bytes: Bytes of every expert; None for the trace's own sizes.
            layer_predictor_ms: As the attribute.
        """
        meta = events.metadata
        sizes = meta.expert_bytes if expert_bytes is None else (expert_bytes,) * meta.num_layers
        expert_bytes_L = np.asarray(sizes, np.int64)
        return cls(expert_bytes_L, expert_bytes_L * meta.top_k, predictor_ms, lookahead, layer_predictor_ms)


@dataclass(frozen=True)
class TimedReplay:
    """One policy at one capacity over one trace on one device.

    Attributes:
        device: Name of the device.
        replay: What was hit, missed and moved; a late prefetch counts as a hit there, and its waiting here. Bytes are
            the trace's own.
        step_ms_S: Time of each step, float64.
        stall_ms_S: The part of it in which the processor waited for the link.
        is_decode_S: True for steps that route one token.
        late_prefetches: Prefetches that were waited for.
    """

    device: str
    replay: Replay
    step_ms_S: npt.NDArray[np.float64]
    stall_ms_S: npt.NDArray[np.float64]
    is_decode_S: npt.NDArray[np.bool_]
    late_prefetches: int

    @property
    def total_ms(self) -> float:
        """Time of the whole trace."""
        return float(self.step_ms_S.sum())

    @property
    def ms_per_token(self) -> float:
        """Time of all decode steps over the tokens that they decode; 0 where nothing was decoded.

        With a batch a step decodes several: then a user waits for a token as long as the step takes.
        """
        return self._per_token(self.step_ms_S)

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens a second; 0 where nothing was decoded."""
        return MILLISECONDS / self.ms_per_token if self.ms_per_token else 0.0

    @property
    def stall_ms_per_token(self) -> float:
        """Mean time that a decoded token waits for the link."""
        return self._per_token(self.stall_ms_S)

    def _per_token(self, ms_S: npt.NDArray[np.float64]) -> float:
        decoded = int(self.replay.tokens_PF[:, 1].sum())
        return float(ms_S[self.is_decode_S].sum() / decoded) if decoded else 0.0


def timed_replay(
    events: Events, policy: Policy, budget: Budget, device: Device, workload: Workload, *, keep_warm: bool = True
) -> TimedReplay:
    """Replay a trace with a clock.

    Args:
        events: What is asked for.
        policy: Who leaves and what is fetched ahead.
        budget: How much the cache holds.
        device: Link and processor.
        workload: What there is to move and to compute.
        keep_warm: Keep the cache from one prompt to the next.
    """
    return timed_sweep(events, policy, [budget], [device], workload, keep_warm=keep_warm)[0]


def timed_sweep(
    events: Events,
    policy: Policy,
    budgets: Sequence[Budget],
    devices: Sequence[Device],
    workload: Workload,
    *,
    keep_warm: bool = True,
) -> list[TimedReplay]:
    """Replay the same events on each device and at each budget, devices first."""
    return timed_sweep_prepared(prepare(events, policy, keep_warm=keep_warm), budgets, devices, workload)


def timed_sweep_prepared(
    prepared: Prepared, budgets: Sequence[Budget], devices: Sequence[Device], workload: Workload
) -> list[TimedReplay]:
    """The same for what a policy has said already."""
    policy = prepared.policy
    lookahead = workload.lookahead if policy.lookahead is None else policy.lookahead
    prefetches = prepared.prefetches.within(prepared.events, lookahead)

    def one(device: Device, budget: Budget) -> TimedReplay:
        clocked = run(prepared, prefetches, budget, times_of(prepared, device, workload))
        late = int((clocked.outcome_A == LATE).sum())
        return _timed(prepared.events, device, clocked.replay, clocked.time_N, clocked.stall_N, late)

    pairs = list(product(devices, budgets))
    return in_threads(one, [device for device, _ in pairs], [budget for _, budget in pairs])


def times_of(prepared: Prepared, device: Device, workload: Workload) -> Times:
    """How long everything takes that a policy does on a device."""
    policy, events = prepared.policy, prepared.events
    bytes_M = np.repeat(workload.expert_bytes_L, events.metadata.num_experts)
    bytes_VM = np.rint(bytes_M * prepared.size_VM)
    dense_N, _ = compute_ms(events, device, workload)
    return Times(
        transfer_VM=device.transfer_ms(bytes_VM),
        read_VM=device.read_ms(bytes_VM),
        think_N=_think_ms(events, workload.predictor_ms if policy.predicts else 0.0),
        layer_think_N=_layer_think_ms(events, workload.layer_predictor_ms if policy.predicts_layers else 0.0),
        dense_N=dense_N,
    )


def time_on_demand(
    events: Events, replay: Replay, device: Device, workload: Workload, *, predicts: bool = False
) -> TimedReplay:
    """The time of a replay that fetched nothing ahead: computing, and one load after another. No second replay.

    Args:
        events: What was asked for.
        replay: What it missed.
        device: Link and processor.
        workload: What there is to move and to compute.
        predicts: Whether the predictor's time is charged all the same.
    """
    think_ms_N = _think_ms(events, workload.predictor_ms if predicts else 0.0)
    dense_ms_N, expert_ms_N = compute_ms(events, device, workload)
    transfer_ms_L = np.array([device.transfer_ms(size) for size in workload.expert_bytes_L.tolist()])
    stall_N = transfer_ms_L[events.layer_N] * replay.misses_N.astype(np.float64)
    return _timed(events, device, replay, think_ms_N + dense_ms_N + stall_N + expert_ms_N, stall_N, 0)


def compute_ms(
    events: Events, device: Device, workload: Workload
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Milliseconds of each event before its experts are known, and with them: float64 [N] each."""
    dense_ms_L = np.array([device.read_ms(size) for size in workload.dense_bytes_L.tolist()])
    expert_ms_L = np.array([device.read_ms(size) for size in workload.expert_bytes_L.tolist()])
    counts_N = np.diff(events.offsets_N)
    dense_ms_N = dense_ms_L[events.layer_N] + device.layer_overhead_us / 1e3
    return dense_ms_N, expert_ms_L[events.layer_N] * counts_N


def bound_ms(events: Events, belady_loads: int, device: Device, workload: Workload) -> float:
    """The clairvoyant bound of the whole trace: the larger of all computing, and of moving what foresight must move.

    Setup, prediction and waiting are left out. Where experts differ in size each load counts as the smallest, so that
    it stays a bound.

    Args:
        events: What is asked for.
        belady_loads: Loads of `bounds.Belady` in as many slots as the cache has.
        device: Link and processor.
        workload: What there is to move and to compute.
    """
    dense_ms_N, expert_ms_N = compute_ms(events, device, workload)
    moving_ms = belady_loads * int(workload.expert_bytes_L.min()) / (device.link_gb_per_s * 1e9) * MILLISECONDS
    return max(float(dense_ms_N.sum() + expert_ms_N.sum()), moving_ms)


def _timed(  # noqa: PLR0917 - all of it is the result
    events: Events,
    device: Device,
    counted: Replay,
    time_N: npt.NDArray[np.float64],
    stall_N: npt.NDArray[np.float64],
    late_prefetches: int,
) -> TimedReplay:
    step_ms_S, stall_ms_S = _by_step(events, time_N), _by_step(events, stall_N)
    return TimedReplay(device.name, counted, step_ms_S, stall_ms_S, events.is_decode_S, late_prefetches)


def _think_ms(events: Events, predictor_ms: float) -> npt.NDArray[np.float64]:
    """The predictor's time, ahead of the first event of each decode step."""
    first_N = np.ones(events.num_events)
    first_N[1:] = events.step_N[1:] != events.step_N[:-1]
    return first_N * events.is_decode_S[events.step_N] * predictor_ms


def _layer_think_ms(events: Events, layer_predictor_ms: float) -> npt.NDArray[np.float64]:
    """The layer step's time, between router and experts of each decoded layer that others of the token follow."""
    followed_N = np.append(events.step_N[1:] == events.step_N[:-1], [False])
    return np.asarray(followed_N & events.is_decode_S[events.step_N], np.float64) * layer_predictor_ms


def _by_step(events: Events, values_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    sums_S = np.zeros(events.num_steps)
    np.add.at(sums_S, events.step_N, values_N)
    return sums_S
