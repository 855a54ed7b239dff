"""Recordings of BigMoeOnEdge on a phone, as events.

The engine computes a prompt's last layer for its last token only, which a `Trace` cannot say, so events are built
directly.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from moe_beyond.simulator.events import Events
from moe_beyond.traces.schema import TraceMetadata

SHARED = Path(__file__).resolve().parents[3] / "shared" / "traces"


def shared(*parts: str) -> Path:
    """A file of published traces beside the repository; skips the test where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"published traces are not there: {path}")
    return path


def phone_events(name: str) -> Events:
    """Events of `<name>.route.csv.gz`: one batched prefill, then decode."""
    path = shared("bigmoe-on-edge", f"{name}.route.csv.gz")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    header = [line for line in lines if line.startswith("#")]
    sizes = tuple(int(found[1]) for line in header if (found := re.search(r"expert_bytes=(\d+)", line)))
    shape = {key: int(value) for key, value in re.findall(r"(n_expert\w*)=(\d+)", "\n".join(header))}
    num_layers, num_experts, top_k = len(sizes), shape["n_expert"], shape["n_expert_used"]
    table = pl.read_csv("\n".join(line for line in lines if not line.startswith("#")).encode())
    table = table.with_columns(member=pl.col("layer") * num_experts + pl.col("expert"))
    prefill, decode = table.filter(pl.col("phase") == 0), table.filter(pl.col("phase") == 1)
    num_tokens = decode["step"].n_unique()
    assert decode["layer"].to_list() == np.tile(np.repeat(np.arange(num_layers), top_k), num_tokens).tolist()
    members: list[int] = []
    lengths: list[int] = []
    for layer in range(num_layers):
        wanted = prefill.filter(pl.col("layer") == layer).sort("step", "slot")["member"].to_list()
        # in order of last use
        union = list(dict.fromkeys(reversed(wanted)))[::-1]
        members += union
        lengths.append(len(union))
    members += decode["member"].to_list()
    lengths += [top_k] * (num_layers * num_tokens)
    num_prefill = prefill["step"].n_unique()
    return Events(
        metadata=TraceMetadata(
            model_id=name,
            layer_numbers=tuple(range(num_layers)),
            num_experts=num_experts,
            top_k=top_k,
            expert_bytes=sizes,
            source="Helldez/BigMoeOnEdge",
            licence="Apache-2.0",
        ),
        members_A=np.asarray(members, np.int32),
        offsets_N=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        layer_N=np.tile(np.arange(num_layers, dtype=np.int32), num_tokens + 1),
        step_N=np.repeat(np.arange(num_tokens + 1, dtype=np.int32), num_layers),
        prompt_S=np.zeros(num_tokens + 1, np.int32),
        token_S=np.concatenate([[-1], num_prefill + np.arange(num_tokens)]),
        prompt_tokens_PF=np.array([[num_prefill, num_tokens]]),
    )
