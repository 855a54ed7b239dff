"""Published recordings as events, where a `Trace` cannot say what they hold.

Shape suffixes as in `simulator.events`.
"""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import TraceMetadata

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
"""Where published traces lie beside the repository, by default."""

_COMMENT = "#"


@dataclass(frozen=True)
class PhoneRun:
    """What BigMoeOnEdge recorded of one model on a phone.

    Attributes:
        events: One batched prefill, then decode.
        dense_bytes_L: Bytes of each layer that every token reads.
        metrics: A row a decoded token: wall_ms, read_bytes, cache_hit_pct and more.
        curve: Rows of budget_mib, policy, hit_pct_cum, hit_pct_decode, read_mib.
    """

    events: Events
    dense_bytes_L: npt.NDArray[np.int64]
    metrics: pl.DataFrame
    curve: pl.DataFrame


def phone_run(folder: Path, name: str) -> PhoneRun:
    """Read `<name>.route.csv.gz`, `<name>.metrics` and `<name>-curve.csv`.

    The engine computes a prompt's last layer for its last token only, so that events are built directly.
    """
    lines = gzip.decompress((folder / f"{name}.route.csv.gz").read_bytes()).decode().splitlines()
    header = "\n".join(line for line in lines if line.startswith(_COMMENT))
    table = pl.read_csv("\n".join(line for line in lines if not line.startswith(_COMMENT)).encode())
    sizes = tuple(int(size) for size in re.findall(r" expert_bytes=(\d+)", header))
    shape = {key: int(value) for key, value in re.findall(r"(n_expert\w*)=(\d+)", header)}
    metadata = TraceMetadata(
        model_id=name,
        layer_numbers=tuple(range(len(sizes))),
        num_experts=shape["n_expert"],
        top_k=shape["n_expert_used"],
        expert_bytes=sizes,
        source="Helldez/BigMoeOnEdge",
        licence="Apache-2.0",
    )
    return PhoneRun(
        events=_phone_events(metadata, table),
        dense_bytes_L=np.array([int(size) for size in re.findall(r" dense_bytes=(\d+)", header)]),
        metrics=pl.read_csv(folder / f"{name}.metrics", comment_prefix=_COMMENT),
        curve=pl.read_csv(folder / f"{name}-curve.csv"),
    )


def _phone_events(meta: TraceMetadata, table: pl.DataFrame) -> Events:
    table = table.with_columns(member=pl.col("layer") * meta.num_experts + pl.col("expert"))
    prefill, decode = table.filter(pl.col("phase") == 0), table.filter(pl.col("phase") == 1)
    num_tokens = decode["step"].n_unique()
    listed = np.tile(np.repeat(np.arange(meta.num_layers), meta.top_k), num_tokens)
    if not np.array_equal(decode["layer"].to_numpy(), listed):
        raise AssertionError("decoded tokens do not list top-k experts of every layer in order")
    members: list[int] = []
    lengths: list[int] = []
    for layer in range(meta.num_layers):
        wanted = prefill.filter(pl.col("layer") == layer).sort("step", "slot")["member"].to_list()
        # in order of last use
        union = list(dict.fromkeys(reversed(wanted)))[::-1]
        members += union
        lengths.append(len(union))
    members += decode["member"].to_list()
    lengths += [meta.top_k] * (meta.num_layers * num_tokens)
    num_prefill = prefill["step"].n_unique()
    return Events(
        metadata=meta,
        members_A=np.asarray(members, np.int32),
        offsets_N=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        layer_N=np.tile(np.arange(meta.num_layers, dtype=np.int32), num_tokens + 1),
        step_N=np.repeat(np.arange(num_tokens + 1, dtype=np.int32), meta.num_layers),
        prompt_S=np.zeros(num_tokens + 1, np.int32),
        token_S=np.concatenate([[-1], num_prefill + np.arange(num_tokens)]),
        prompt_tokens_PF=np.array([[num_prefill, num_tokens]]),
    )


def toy(folder: Path) -> tuple[Events, dict[str, Any], pl.DataFrame]:
    """The hand-checkable toy of moe-cache-eval: its events, its manifest, and the expected misses of each event."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    table = pl.read_csv(folder / "events.csv")
    num_layers, num_experts = manifest["model"]["num_layers"], manifest["model"]["num_experts_per_layer"]
    steps = manifest["scheduler_steps"]
    members = [
        [int(expert) + layer * num_experts for expert in wanted.split()]
        for layer, wanted in table.select("layer", "requested_experts").iter_rows()
    ]
    metadata = TraceMetadata(
        model_id="toy",
        layer_numbers=tuple(range(num_layers)),
        num_experts=num_experts,
        top_k=2,
        expert_bytes=(1,) * num_layers,
        source="shijiuzhang/moe-cache-eval",
        licence="Apache-2.0",
    )
    events = Events(
        metadata=metadata,
        members_A=np.concatenate(members).astype(np.int32),
        offsets_N=np.cumsum([0, *map(len, members)]).astype(np.int64),
        layer_N=table["layer"].to_numpy().astype(np.int32),
        step_N=table["scheduler_step"].to_numpy().astype(np.int32),
        prompt_S=np.zeros(steps, np.int32),
        token_S=np.arange(steps, dtype=np.int64),
        prompt_tokens_PF=np.array([[0, steps]]),
    )
    return events, manifest, table
