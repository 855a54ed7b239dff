"""What a policy costs in milliseconds on a device, and the time that no policy can beat.

Shape suffixes: N events, S steps, M experts of the model, L MoE layers, P prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator import timed_kernel
from moe_beyond.simulator.bounds import Belady
from moe_beyond.simulator.budget import Budget
from moe_beyond.simulator.cache import NUM_COUNTERS
from moe_beyond.simulator.device import MILLISECONDS, Device
from moe_beyond.simulator.events import Events
from moe_beyond.simulator.policies.base import Policy
from moe_beyond.simulator.replay import prepare, replay
from moe_beyond.simulator.results import Replay


@dataclass(frozen=True)
class Workload:
    """What the processor does in a layer beside its routed experts.

    Attributes:
        dense_bytes_L: Bytes of each layer that every token reads: attention, shared experts, norms.
        predictor_ms: Milliseconds from a token's sampling to the predictor's answer, on the critical path; charged to
            policies that prefetch.
        lookahead: For how many layers beyond the present one prefetches may start.
    """

    dense_bytes_L: npt.NDArray[np.int64]
    predictor_ms: float
    lookahead: int

    @classmethod
    def like_its_experts(cls, events: Events, predictor_ms: float, lookahead: int) -> Workload:
        """An assumption where a trace does not say: a layer's other weights weigh as much as the k experts it uses."""
        meta = events.metadata
        return cls(np.asarray(meta.expert_bytes, np.int64) * meta.top_k, predictor_ms, lookahead)


@dataclass(frozen=True)
class TimedReplay:
    """One policy at one capacity over one trace on one device.

    Attributes:
        device: Name of the device.
        replay: What was hit, missed and moved; a late prefetch counts as a hit there, and its waiting here.
        step_ms_S: Time of each step, float64.
        stall_ms_S: The part of it in which the processor waited for the link.
        is_decode_S: True for steps that route one token.
        late_prefetches: Prefetches that were waited for.
        bound_ms: Time that no lossless policy at this capacity can beat, see `bound_ms`.
    """

    device: str
    replay: Replay
    step_ms_S: npt.NDArray[np.float64]
    stall_ms_S: npt.NDArray[np.float64]
    is_decode_S: npt.NDArray[np.bool_]
    late_prefetches: int
    bound_ms: float

    @property
    def total_ms(self) -> float:
        """Time of the whole trace."""
        return float(self.step_ms_S.sum())

    @property
    def ms_per_token(self) -> float:
        """Mean time of a decoded token; 0 where nothing was decoded."""
        return float(self.step_ms_S[self.is_decode_S].mean()) if self.is_decode_S.any() else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens a second; 0 where nothing was decoded."""
        return MILLISECONDS / self.ms_per_token if self.ms_per_token else 0.0

    @property
    def stall_ms_per_token(self) -> float:
        """Mean time that a decoded token waits for the link."""
        return float(self.stall_ms_S[self.is_decode_S].mean()) if self.is_decode_S.any() else 0.0

    @property
    def fraction_of_bound(self) -> float:
        """The bound over the time taken: 1 is as fast as can be."""
        return self.bound_ms / self.total_ms


def timed_replay(
    events: Events, policy: Policy, budget: Budget, device: Device, workload: Workload, *, keep_warm: bool = True
) -> TimedReplay:
    """Replay a trace with a clock.

    Args:
        events: What is asked for.
        policy: Who leaves and what is fetched ahead.
        budget: How much the cache holds.
        device: Link and processor.
        workload: What the processor does beside the routed experts.
        keep_warm: Keep the cache from one prompt to the next.
    """
    prepared = prepare(events, policy, keep_warm=keep_warm)
    prefetches_any = len(prepared.prefetch_experts) > 0
    dense_ms_N, expert_ms_N = compute_ms(events, device, workload)
    transfer_ms_M = np.array([device.transfer_ms(size) for size in events.expert_bytes_M.tolist()])
    think_ms_N = _first_of_step(events) * events.is_decode_S[events.step_N] * workload.predictor_ms * prefetches_any
    counts_RC, time_N, stall_N, late_R = timed_kernel.timed_replay(
        policy.rank,
        policy.bypass,
        *prepared,
        budget.units_M,
        budget.group_M,
        budget.budget_G,
        2 * events.num_prompts,
        transfer_ms_M,
        think_ms_N,
        dense_ms_N,
        expert_ms_N,
        workload.lookahead,
    )
    return TimedReplay(
        device=device.name,
        replay=Replay(
            policy=policy.name,
            capacity_experts=budget.capacity_experts,
            counts_PFC=counts_RC.reshape(events.num_prompts, 2, NUM_COUNTERS),
            tokens_PF=events.prompt_tokens_PF,
            misses_N=np.zeros(0, np.int32),
        ),
        step_ms_S=_by_step(events, time_N),
        stall_ms_S=_by_step(events, stall_N),
        is_decode_S=events.is_decode_S,
        late_prefetches=int(late_R.sum()),
        bound_ms=bound_ms(events, budget, device, workload, keep_warm=keep_warm),
    )


def compute_ms(
    events: Events, device: Device, workload: Workload
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Milliseconds of each event before its experts are known, and with them: float64 [N] each."""
    dense_ms_L = np.array([device.read_ms(size) for size in workload.dense_bytes_L.tolist()])
    expert_ms_L = np.array([device.read_ms(size) for size in events.metadata.expert_bytes])
    counts_N = np.diff(events.offsets_N)
    dense_ms_N = dense_ms_L[events.layer_N] + device.layer_overhead_us / 1e3
    return dense_ms_N, expert_ms_L[events.layer_N] * counts_N


def bound_ms(events: Events, budget: Budget, device: Device, workload: Workload, *, keep_warm: bool = True) -> float:
    """The clairvoyant bound: the larger of all computing, and of moving what even perfect foresight must move.

    Belady loads fewest experts; where experts differ in size the count is taken times the smallest, so that it stays a
    bound. Setup, prediction and waiting are left out. A budget in bytes is taken as that many of the smallest experts,
    and one per layer as one for all: both only lower the bound.
    """
    dense_ms_N, expert_ms_N = compute_ms(events, device, workload)
    smallest = int(min(events.metadata.expert_bytes))
    slots = min(budget.capacity_experts, events.metadata.num_model_experts)
    loads = replay(events, Belady(), Budget.slots(events.metadata, slots), keep_warm=keep_warm).total.misses
    return max(float(dense_ms_N.sum() + expert_ms_N.sum()), loads * smallest / (device.link_gb_per_s * 1e6))


def _first_of_step(events: Events) -> npt.NDArray[np.float64]:
    first_N = np.ones(events.num_events)
    first_N[1:] = events.step_N[1:] != events.step_N[:-1]
    return first_N


def _by_step(events: Events, values_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    sums_S = np.zeros(events.num_steps)
    np.add.at(sums_S, events.step_N, values_N)
    return sums_S
