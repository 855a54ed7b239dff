"""How fast the processor that computes reads weights, and what a layer takes beside them, measured here.

Shape suffixes: X experts, H hidden size, I inner size, E experts of a router.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import silu

from moe_beyond.simulator.jit import F64
from moe_beyond.threads import torch_threads

_HIDDEN, _INNER, _EXPERTS, _TOP_K = 2048, 1408, 64, 6
"""Shape of DeepSeek-V2-Lite's experts and routers."""
_BYTES = 2**29
"""Of all experts together: no processor's own cache holds them."""
_SECONDS, _ROUNDS = 0.3, 5


@dataclass(frozen=True)
class ProcessorSpeed:
    """What was measured; of each the median of the rounds, and their smallest and largest.

    Attributes:
        where: `cuda` or `cpu`.
        memory_gb_per_s: Bandwidth of a sum over all of them.
        expert_gb_per_s: Bytes of an expert over the time it takes to compute one token.
        expert_mib: Its size.
        layer_us: Time of a router and of choosing its experts: launches, and waiting for the choice.
        launch_us: Time to start one operation of a card without waiting for it; None without a card.
    """

    where: str
    memory_gb_per_s: tuple[float, float, float]
    expert_gb_per_s: tuple[float, float, float]
    expert_mib: float
    layer_us: tuple[float, float, float]
    launch_us: float | None


def measure_processor(threads: int, seconds: float = _SECONDS) -> ProcessorSpeed:
    """Measure the card where there is one, else the processor with so many threads."""
    has_card = torch.cuda.is_available()
    where, dtype = ("cuda", torch.bfloat16) if has_card else ("cpu", torch.float32)
    expert_bytes = 3 * _HIDDEN * _INNER * dtype.itemsize
    with torch_threads(threads), torch.inference_mode():
        weights_X3HI = torch.empty(_BYTES // expert_bytes, 3, _HIDDEN, _INNER, dtype=dtype, device=where)
        weights_X3HI.normal_(std=0.02)
        hidden_1H = torch.randn(1, _HIDDEN, dtype=dtype, device=where)
        router_HE = torch.randn(_HIDDEN, _EXPERTS, dtype=dtype, device=where)
        turn = iter(range(2**62))

        def expert() -> None:
            gate_HI, up_HI, down_HI = weights_X3HI[next(turn) % len(weights_X3HI)]
            (silu(hidden_1H @ gate_HI) * (hidden_1H @ up_HI)) @ down_HI.T

        def layer() -> None:
            # the list waits for the choice, as an engine does that must know what to load
            torch.topk(torch.softmax(hidden_1H @ router_HE, dim=-1), _TOP_K).indices.tolist()

        summed = _seconds_each(weights_X3HI.sum, seconds)
        computed, routed = _seconds_each(expert, seconds), _seconds_each(layer, seconds)
        launch_us = None
        if has_card:
            # times until the host goes on; the queue is short enough that it never waits for the card
            launch_us = float(np.median([_launch_seconds(hidden_1H) for _ in range(_ROUNDS)])) * 1e6
    return ProcessorSpeed(
        where,
        _ordered(weights_X3HI.nbytes / 1e9 / summed),
        _ordered(expert_bytes / 1e9 / computed),
        expert_bytes / 2**20,
        _ordered(routed * 1e6),
        launch_us,
    )


def _seconds_each(work: Callable[[], object], seconds: float) -> F64:
    """Seconds of one call, float64, of each round; the first call is not timed."""
    wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work()
    rounds = []
    for _ in range(_ROUNDS):
        wait()
        began, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - began < seconds / _ROUNDS:
            work()
            calls += 1
        wait()
        rounds.append((time.perf_counter() - began) / calls)
    return np.array(rounds)


def _launch_seconds(tensor: torch.Tensor, launches: int = 100) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(launches):
        tensor.neg_()
    return (time.perf_counter() - began) / launches


def _ordered(rounds: F64) -> tuple[float, float, float]:
    return float(np.median(rounds)), float(rounds.min()), float(rounds.max())
