"""A run's times as a table, a row a decoded token, and as the device that it ran on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from moe_beyond.devices.device import MILLISECONDS, Device
from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.simulator.engine.results import MIB

if TYPE_CHECKING:
    from moe_beyond.live.offloaded import StepTime
    from moe_beyond.simulator.engine.results import Replay
    from moe_beyond.traces.schema import TraceMetadata


def decoded(times: Sequence[StepTime]) -> list[StepTime]:
    """Those of decoded tokens.

    Raises:
        InputError: Nothing was decoded.
    """
    rows = [time for time in times if time.decodes]
    if not rows:
        raise InputError("nothing was decoded, so no token has a time; decode at least one token")
    return rows


def table(times: Sequence[StepTime]) -> pl.DataFrame:
    """A row a decoded token: `step, prompt`, then the times of `StepTime` and `compute_ms`, bytes, hits and misses.

    As in other engines' recordings, `compute_ms` is what is left of `wall_ms` without the wait for the link.
    """
    rows = pl.DataFrame([asdict(time) for time in decoded(times)]).with_row_index("step")
    return rows.select(
        "step",
        "prompt",
        "wall_ms",
        "io_ms",
        (pl.col("wall_ms") - pl.col("stall_ms")).alias("compute_ms"),
        "stall_ms",
        "predictor_ms",
        "dense_ms",
        "experts_ms",
        "read_bytes",
        "hits",
        "misses",
    )


def write_recording(path: Path, times: Sequence[StepTime], about: str) -> None:
    """Write the table as CSV under a comment line, as `moe-beyond calibrate-device` reads it."""
    with replacing(path) as temporary:
        temporary.write_text(f"# {about}\n{table(times).write_csv(float_precision=4)}", encoding="utf-8")


def hit_rate(times: Sequence[StepTime]) -> float:
    """Share of experts that were there when their layer needed them; 0 where none was needed."""
    hits, misses = (sum(getattr(time, name) for time in times) for name in ("hits", "misses"))
    return hits / (hits + misses) if hits + misses else 0.0


def summary(times: Sequence[StepTime], counted: Replay) -> dict[str, float]:
    """What decoding took, and what the prefill before it."""
    rows = table(times)
    mean = means(rows)
    prefill = [time for time in times if not time.decodes]
    prefill_ms = sum(time.wall_ms for time in prefill)
    return {
        "tokens_decoded": rows.height,
        "tokens_per_second": MILLISECONDS / mean["wall_ms"],
        "ms_per_token": mean["wall_ms"],
        "stall_ms_per_token": mean["stall_ms"],
        "predictor_ms_per_token": mean["predictor_ms"],
        "hit_rate": hit_rate(decoded(times)),
        "mib_per_token": mean["read_bytes"] / MIB,
        "prefetches": counted.decode.prefetches,
        "prefetches_useful": counted.decode.prefetches_useful,
        "router_weight_given_up": counted.decode.mass_given_up,
        "prefill_tokens_per_second": sum(time.tokens for time in prefill) * MILLISECONDS / prefill_ms,
        "ms_to_first_token": prefill_ms / len(prefill),
    }


def means(rows: pl.DataFrame) -> dict[str, float]:
    """Mean of each column of a table of times."""
    return {name: float(rows[name].mean()) for name in rows.columns}  # type: ignore[arg-type] # all are numbers


def measured_device(times: Sequence[StepTime], meta: TraceMetadata, record_bytes: int, gb_per_s: float) -> Device:
    """The device that a run on demand took place on: its parts, each measured apart.

    Args:
        times: Of a policy that prefetches nothing.
        meta: The model's shape.
        record_bytes: Bytes that one expert moves.
        gb_per_s: Bandwidth of the link, 10^9 bytes a second.
    """
    rows = table(times)
    mean = means(rows)
    transfer_ms = record_bytes / gb_per_s / 1e6
    wait_ms = mean["stall_ms"] / mean["misses"] - transfer_ms if mean["misses"] else 0.0
    outside_ms = mean["compute_ms"] - mean["predictor_ms"] - mean["dense_ms"] - mean["experts_ms"]
    used_bytes = record_bytes * meta.token_cycle
    return Device(
        name="this machine",
        about=f"Measured over {rows.height} tokens of {meta.model_id}, decoded on demand.",
        link_gb_per_s=gb_per_s,
        setup_us=float(np.maximum(wait_ms, 0) * 1e3),
        lanes=1,
        memory_gb_per_s=used_bytes / mean["experts_ms"] / 1e6,
        layer_overhead_us=mean["dense_ms"] / meta.num_layers * 1e3,
        token_overhead_us=max(outside_ms, 0.0) * 1e3,
    )
