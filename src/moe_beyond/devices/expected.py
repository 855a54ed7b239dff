"""The mean time of a decoded token, and of a prompt, given how many experts were missing: a device file of a recording.

The event loop replays routing; a recording mostly holds none. Here misses are taken to be spread over layers by chance.

Shape suffix: S decode steps, runs, or prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from moe_beyond.devices.device import Device

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """Of a model.

    Attributes:
        layers: MoE layers.
        top_k: Experts that a token uses in each.
        expert_bytes: Of one.
        dense_bytes: Of all that every token reads besides.
    """

    layers: int
    top_k: int
    expert_bytes: float
    dense_bytes: float

    @property
    def accesses(self) -> int:
        """Experts that a token uses."""
        return self.layers * self.top_k

    def loading_layers(self, misses_S: F64) -> F64:
        """Layers of a token that miss at least one expert."""
        share_S = np.minimum(1.0, misses_S / self.accesses)
        return np.asarray(self.layers * (1 - (1 - share_S) ** self.top_k))


@dataclass(frozen=True)
class Prompts:
    """Prompts of one model on one device.

    Attributes:
        tokens_S: Of each.
        wall_S: Milliseconds until its first token.
        misses_S: Distinct experts of all layers that were missing; what lay there is read while tokens compute.
    """

    tokens_S: F64
    wall_S: F64
    misses_S: F64

    def rows(self, which: slice | npt.NDArray[np.int64]) -> Prompts:
        """Some of them."""
        return Prompts(self.tokens_S[which], self.wall_S[which], self.misses_S[which])


def expected_ms(device: Device, shape: Shape, misses_S: F64, *, admits: bool = True) -> F64:
    """Milliseconds of a token.

    Args:
        device: What takes how long.
        shape: The model.
        misses_S: Missing experts of each token.
        admits: Whether there is a cache that loaded experts are copied into.
    """
    fixed_ms = device.dense_ms(shape.dense_bytes) + shape.layers * device.layer_overhead_us / 1e3
    fixed_ms += device.token_overhead_us / 1e3
    share_S = np.clip(np.asarray(misses_S, np.float64) / shape.accesses, 0, 1)
    num_missing = range(shape.top_k + 1)
    layer_ms = [_layer_ms(device, shape, missing, shape.top_k, admits=admits) for missing in num_missing]
    return np.asarray(fixed_ms + shape.layers * binom.pmf(num_missing, shape.top_k, share_S[:, None]) @ layer_ms)


def expected_prompt_ms(device: Device, shape: Shape, prompts: Prompts, *, admits: bool = True) -> F64:
    """Milliseconds of each prompt until its first token, its experts spread evenly over the layers.

    Args:
        device: What takes how long.
        shape: The model.
        prompts: How many tokens each has, and what it misses.
        admits: Whether there is a cache that loaded experts are copied into.
    """
    dense_ms = float(device.dense_ms(shape.dense_bytes)) / shape.layers + device.layer_overhead_us / 1e3
    read_ms = float(device.read_ms(shape.expert_bytes))

    def layer_ms(tokens: float, missing: int) -> float:
        beyond_ms = max(0.0, float(device.prefill_ms(tokens)) / shape.layers - dense_ms - missing * read_ms)
        return dense_ms + _layer_ms(device, shape, missing, missing, admits=admits, tokens_ms=beyond_ms)

    told = []
    for tokens, misses in zip(prompts.tokens_S.tolist(), prompts.misses_S.tolist(), strict=True):
        fewer, part = divmod(misses / shape.layers, 1)
        one_ms = (1 - part) * layer_ms(tokens, int(fewer)) + part * layer_ms(tokens, int(fewer) + 1)
        told.append(device.prompt_overhead_ms + shape.layers * one_ms)
    return np.asarray(told)


def _layer_ms(device: Device, shape: Shape, missing: int, used: int, *, admits: bool, tokens_ms: float = 0.0) -> float:
    """A layer's wait and its experts, as `timed_kernel` has them."""
    load_ms = float(device.transfer_ms(shape.expert_bytes)) if device.miss != "compute" else np.inf
    own_cpu_ms = float(device.cpu_ms(shape.expert_bytes)) if device.miss != "load" else np.inf
    read_ms = float(device.read_ms(shape.expert_bytes))
    admit_ms = float(device.admit_ms(shape.expert_bytes)) if admits else 0.0
    wait_ms, cpu_ms, loaded, begins_ms = 0.0, 0.0, 0, device.miss_layer_us / 1e3
    for _ in range(missing):
        if wait_ms + begins_ms + load_ms <= cpu_ms + own_cpu_ms:
            wait_ms, begins_ms, loaded = wait_ms + begins_ms + load_ms, 0.0, loaded + 1
        else:
            cpu_ms += own_cpu_ms
    experts_ms = tokens_ms + (used - missing + loaded) * read_ms + loaded * admit_ms
    if device.overlap and loaded:
        wait_ms -= min(wait_ms, experts_ms - read_ms - admit_ms)
    return wait_ms + max(experts_ms, cpu_ms - wait_ms)
