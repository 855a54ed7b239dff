"""What a device can reach with a model, told from the model's header: no routing, no download.

A token's time follows from how many of its experts are missing (`devices.expected`). How often an LRU hits at a share
of the experts is not known of this model: the known models give a band.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from moe_beyond.assess.known import KnownCurve, band, held_out, position_of
from moe_beyond.devices.device import NO_RECORDING, Device
from moe_beyond.devices.errors import decode_errors
from moe_beyond.devices.expected import Shape, expected_ms
from moe_beyond.devices.workload import MIB
from moe_beyond.formats.headers import ModelSizes

_GIB = 2**30


def card(
    sizes: ModelSizes,
    devices: Sequence[Device],
    curves: Sequence[KnownCurve],
    *,
    budget_bytes: int | None = None,
    memory_bytes: int | None = None,
) -> dict[str, Any]:
    """The card, ready for JSON; bytes, milliseconds and shares are plain numbers.

    Args:
        sizes: The model.
        devices: To tell of.
        curves: The known models.
        budget_bytes: Of the experts' cache, on each device.
        memory_bytes: Fast memory for all weights, instead: what dense weights leave is the cache; with neither, the
            device's own.
    """
    inside, farthest = held_out(curves)
    cycles = [curve.top_k / curve.num_experts for curve in curves]
    cycle = sizes.top_k / sizes.num_experts
    notes = [
        "Times are modelled, of single tokens in one stream: LRU over all layers loads on demand, nothing is "
        "prefetched, and missing experts spread over layers by chance. KV cache and activations take no memory here.",
        f"Hit rates are the least and the greatest of {len(curves)} models, with a cache at the same place between one "
        f"token's experts and all, first loads counted as misses: {', '.join(curve.model for curve in curves)}. Of "
        f"each model left out in turn, the others' band held the hit rate at {inside:.0%} of the sizes, and was up to "
        f"{100 * farthest:.0f} points off at the rest. At worst and at best add so many points, and the largest error "
        "of the device's times where one is known.",
    ]
    if not min(cycles) <= cycle <= max(cycles):
        notes.append(
            f"A token uses {cycle:.1%} of a layer's experts here, {min(cycles):.1%} to {max(cycles):.1%} in the known "
            "models: the band is carried beyond what was recorded."
        )
    return {
        "model": sizes.name,
        "source": sizes.source,
        "layers": sizes.num_layers,
        "moe_layers": len(sizes.layer_numbers),
        "experts_per_layer": sizes.num_experts,
        "top_k": sizes.top_k,
        "expert_bytes_by_layer": dict(zip(map(str, sizes.layer_numbers), sizes.expert_bytes, strict=True)),
        "all_experts_bytes": sizes.routed_bytes,
        "dense_bytes": sizes.dense_bytes,
        "other_bytes": sizes.other_bytes,
        "token_expert_bytes": sizes.token_cycle_bytes,
        "token_bytes": sizes.token_cycle_bytes + sizes.dense_bytes,
        "least_useful_cache_bytes": sizes.token_cycle_bytes,
        "devices": [
            _on(device, sizes, curves, margin=farthest, budget=budget_bytes, memory=memory_bytes) for device in devices
        ],
        "band": {
            "models": [curve.model for curve in curves],
            "held_out_share_inside": inside,
            "held_out_most_outside": farthest,
        },
        "notes": notes,
    }


def _on(
    device: Device,
    sizes: ModelSizes,
    curves: Sequence[KnownCurve],
    *,
    margin: float,
    budget: int | None,
    memory: int | None,
) -> dict[str, Any]:
    """What one device can reach; times are null where its memory is not known or too small.

    At worst and at best: with hit rates `margin` outside of the band, and the largest error of its modelled times.
    """
    if budget is None and memory is None and device.memory_gib is not None:
        memory = round(device.memory_gib * _GIB)
    if budget is None and memory is not None:
        budget = memory - sizes.dense_bytes
    shape = Shape(len(sizes.layer_numbers), sizes.top_k, float(np.mean(sizes.expert_bytes)), sizes.dense_bytes)

    def per_second(*hit_rates: float) -> list[float]:
        times = expected_ms(device, shape, shape.accesses * (1 - np.array(hit_rates)))
        return sorted((1e3 / times).tolist())

    errors = decode_errors(device.name)
    worst_percent = errors["ms_worst_percent"].to_list()
    error = max(worst_percent) / 100 if worst_percent else device.fit_error
    result: dict[str, Any] = {
        "device": device.name,
        "memory_bytes": memory,
        "budget_bytes": budget,
        "share_of_experts": None,
        "hit_rate": None,
        "tokens_per_s": None,
        "tokens_per_s_worst_and_best": None,
        "tokens_per_s_without_hits": per_second(0.0)[0],
        "tokens_per_s_all_resident": per_second(1.0)[0],
        "largest_error_of_times": error,
        "how_far_off": _how_far_off(device, errors),
    }
    if budget is None or budget < 0:
        return result
    share = min(1.0, budget / sizes.routed_bytes)
    position = position_of(share, sizes.top_k, sizes.num_experts)
    low, high = band(curves, position) if share < 1 else (1.0, 1.0)
    # below one token's cycle nothing hits less, and with all experts kept nothing is loaded
    widest = (max(0.0, low - margin), min(1.0, high + margin)) if position >= 0 and share < 1 else (low, high)
    slowest, fastest = per_second(*widest)
    return result | {
        "share_of_experts": share,
        "hit_rate": [low, high],
        "tokens_per_s": per_second(low, high),
        "tokens_per_s_worst_and_best": [slowest * max(0, 1 - (error or 0)), fastest * (1 + (error or 0))],
    }


def _how_far_off(device: Device, errors: pl.DataFrame) -> str:
    """How far the device's modelled times were from recorded ones."""
    if device.fit_error is None:
        return NO_RECORDING
    told = f"A fit to one part of its recording missed the time of the rest by {device.fit_error:.0%}"
    if errors.height:
        medians, worst = (
            [f"{value:.0f}" for value in errors[f"ms_{name}_percent"].sort()] for name in ("median", "worst")
        )
        span = medians[0] if medians[0] == medians[-1] else f"{medians[0]} to {medians[-1]}"
        told += f"; modelled times of runs that were not fitted were {span} % off at the median, {worst[-1]} % at worst"
    return f"{told}."


def sentences(found: dict[str, Any]) -> list[str]:
    """The card in words."""
    sizes = sorted(found["expert_bytes_by_layer"].values())
    expert = _size(sizes[0]) if sizes[0] == sizes[-1] else f"{_size(sizes[0])} to {_size(sizes[-1])} by layer"
    least = found["least_useful_cache_bytes"] / found["all_experts_bytes"]
    lines = [
        f"{found['model']} ({found['source']}): {found['layers']} layers, {found['moe_layers']} of them with "
        f"{found['experts_per_layer']} experts, top-{found['top_k']}.",
        f"An expert has {expert}; all of them {_size(found['all_experts_bytes'])}, the weights that every token reads "
        f"{_size(found['dense_bytes'])}, all others {_size(found['other_bytes'])}.",
        f"A token reads {_size(found['token_bytes'])}, {_size(found['token_expert_bytes'])} of them experts: an LRU "
        f"cache of less than these ({least:.1%} of all experts) evicts each expert before it is used again.",
    ]
    return lines + [_about(device) for device in found["devices"]]


def _about(found: dict[str, Any]) -> str:
    name, alone = found["device"], f"{_rate(found['tokens_per_s_without_hits'])} without any hit"
    resident, off = f"{_rate(found['tokens_per_s_all_resident'])} if all were resident", found["how_far_off"]
    budget = found["budget_bytes"]
    if budget is None:
        return f"{name}: {alone}, {resident}; its memory is not stated: give --memory-gib or --budget-mib. {off}"
    if budget < 0:
        return f"{name}: the weights that every token reads exceed its memory of {_size(found['memory_bytes'])}."
    if found["share_of_experts"] == 1:
        return f"{name}: all experts fit into {_size(budget)}; {resident}. {off}"
    (worst, best), (slow, fast) = found["tokens_per_s_worst_and_best"], found["tokens_per_s"]
    low, high = found["hit_rate"]
    return (
        f"{name}: {_size(budget)} hold {found['share_of_experts']:.0%} of the experts; LRU hits {low:.0%} to "
        f"{high:.0%}, {slow:.3g} to {fast:.3g} tokens/s; {worst:.3g} at worst, {best:.3g} at best "
        f"({alone}, {resident}). {off}"
    )


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.3g} tokens/s"


def _size(num_bytes: float) -> str:
    mib = num_bytes / MIB
    if mib < 1:
        return f"{num_bytes / 1024:.3g} KiB"
    return f"{mib / 1024:,.1f} GiB" if mib >= 10_240 else f"{mib:,.0f} MiB" if mib >= 100 else f"{mib:.3g} MiB"
