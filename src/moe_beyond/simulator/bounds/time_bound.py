"""The time of a decoded token that no lossless policy without prefetch during prefills goes below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_beyond.devices.device import Device
from moe_beyond.devices.workload import Workload
from moe_beyond.simulator.bounds.hit_curves import Curve
from moe_beyond.simulator.schedule.events import Events


@dataclass(frozen=True)
class TimeBound:
    """The clairvoyant bound of one capacity on one device.

    Attributes:
        ms_per_token: The larger of all computing of the decoded tokens and of moving what perfect foresight must move
            for them, over the decoded tokens; setup, prediction and waiting are left out.
        compute_ms_per_token: The first of the two: the time if all experts lay in fast memory.
        hit_rate: Of the decoded tokens' accesses, those that perfect foresight does not load.
        mib_per_token: What it loads for them, over the decoded tokens.
    """

    ms_per_token: float
    compute_ms_per_token: float
    hit_rate: float
    mib_per_token: float


def time_bound(
    events: Events, curve: Curve, slots: int, device: Device, workload: Workload, *, overrun: bool = False
) -> TimeBound:
    """The clairvoyant bound, from Belady's MIN with bypass (Belady 1966): max(computing, bytes / bandwidth).

    Experts of several sizes each count as the smallest one, so that it stays a bound.

    Args:
        events: Of a trace that decodes something.
        curve: `hit_curves.belady_curve` of these events.
        slots: Experts that the cache holds.
        device: Link and processor.
        workload: What there is to move and to compute.
        overrun: Whether caches may keep above their budget what an event has used until the next event of their group.
            Where each layer has a group of its own, the layer's next event may find all of that: then it counts as
            moved for nothing, so that it stays a bound.
    """
    device = device.holding(workload.held_bytes(slots))
    tokens = int(events.prompt_tokens_PF[:, 1].sum())
    decode_N = events.is_decode_S[events.step_N]
    dense_N, experts_N = workload.compute_ms(events.layer_N, np.diff(events.offsets_N), device)
    if device.cpu_gb_per_s is not None:
        # at best both processors share the experts
        experts_N *= device.memory_gb_per_s / (device.memory_gb_per_s + device.cpu_gb_per_s)
    compute_ms = float((dense_N + experts_N)[decode_N].sum())
    slots = min(slots, len(curve.hits_D) - 1)
    # what prefills load may serve decoding too
    loads = max(0, events.num_accesses - int(curve.hits_D[slots]) - int(curve.accesses_F[0]))
    if overrun:
        # the event of the same layer one step earlier lies as many events back as there are layers
        meta = events.metadata
        use_A = events.event_A * meta.num_model_experts + events.members_A
        again_A = np.isin(use_A[events.is_decode_A] - meta.num_layers * meta.num_model_experts, use_A)
        loads = max(0, loads - int(again_A.sum()))
    decode_accesses = int(curve.accesses_F[1])
    smallest_mib = int(workload.expert_bytes_L.min()) / 2**20
    loading_ms = workload.least_transfer_ms(loads, device) if device.miss == "load" else 0.0
    return TimeBound(
        ms_per_token=max(compute_ms, loading_ms) / tokens,
        compute_ms_per_token=compute_ms / tokens,
        hit_rate=1 - loads / decode_accesses,
        mib_per_token=loads * smallest_mib / tokens,
    )
