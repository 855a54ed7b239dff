"""How far modelled times to the first token are from recorded ones; see `device_errors` for what is fitted.

Beside them, as the straight line: of the phone what its decoding alone says of a prompt; of its start one time for all
models; of desktops tokens over the rate of the longest prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from moe_beyond.devices.device import Device
from moe_beyond.devices.errors import PREFILL, START
from moe_beyond.devices.expected import Prompts, Shape, expected_prompt_ms
from moe_beyond.devices.prefill import fit_prefill

MIB = 2**20
Phone = tuple[dict[str, Any], Shape, Device]
"""Of a run: its row in the index, its model, and the device that decoding says."""


def misses_of_prompt(tokens: pl.DataFrame, shape: Shape) -> float:
    """Experts that a prompt missed, from a run's hit counter, which counts the prompt too, and the bytes of its tokens.

    After n tokens the counter says (H + n L k - m) / (A + n L k), where m is the bytes read by then over those of an
    expert: accesses A and hits H of the prompt, and the expert's bytes, are three unknowns of as many equations as
    there are tokens. Recorded runs obey them to a tenth of a percentage point.
    """
    share_S = tokens["cache_hit_pct"].to_numpy() / 100
    accesses_S = shape.accesses * np.arange(1.0, len(share_S) + 1)
    read_S = np.cumsum(tokens["read_bytes"].to_numpy()) / shape.expert_bytes
    columns = np.stack([share_S, -np.ones_like(share_S), read_S], axis=1)
    weight_S = 1 / (accesses_S + accesses_S[0])
    known_S = accesses_S * (1 - share_S)
    (accesses, hits, _), *_ = np.linalg.lstsq(columns * weight_S[:, None], known_S * weight_S, rcond=None)
    return float(accesses - hits)


def phone_prompts(folder: Path, runs: Sequence[Phone], fitted: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Prefill by model, with the rate of the two fitted runs; then the start of the engine."""
    counted = [(*run, _prompt(folder, *run[:2])) for run in runs if _counts_hits(run[0])]
    first = [run for run in counted if run[0]["file"] in fitted]
    prompts = Prompts(
        *(np.concatenate([getattr(run[3], name) for run in first]) for name in ("tokens_S", "wall_S", "misses_S"))
    )
    rate = fit_prefill(first[-1][2], first[0][1], prompts, "phone").prefill_tokens_per_s
    for model, size in (("Qwen3-30B-A3B", 48), ("gpt-oss-120b", 36), ("Qwen3.6-35B-A3B", 40)):
        told, plain = [], []
        for row, shape, device, prompt in counted:
            if shape.layers == size and row["file"] not in fitted:
                with_rate = device.model_copy(update={"prefill_tokens_per_s": rate})
                told.append(float(expected_prompt_ms(with_rate, shape, prompt)[0] / prompt.wall_S[0] - 1))
                plain.append(float(expected_prompt_ms(device, shape, prompt)[0] / prompt.wall_S[0] - 1))
        yield ("phone_oneplus_15r", PREFILL, model, "2 runs of one session"), told, plain
    starts = [(row["file"], shape, start) for row, shape, _ in runs if (start := _start_s(folder, row)) is not None]
    gb_per_s = np.mean([_model_gb(shape) / start for file, shape, start in starts if file in fitted])
    mean_s = np.mean([start for file, _, start in starts if file in fitted])
    rest = [(shape, start) for file, shape, start in starts if file not in fitted]
    told = [float(_model_gb(shape) / gb_per_s / start - 1) for shape, start in rest]
    yield (
        ("phone_oneplus_15r", START, "three models", "2 runs of one session"),
        told,
        [float(mean_s / start - 1) for _, start in rest],
    )


def _counts_hits(row: dict[str, Any]) -> bool:
    return row["hit_pct_end"] is not None and row["hit_pct_end"] > 0 and row["prefill_s"] is not None


def _prompt(folder: Path, row: dict[str, Any], shape: Shape) -> Prompts:
    tokens = pl.read_csv(folder / row["file"], comment_prefix="#", infer_schema_length=None)
    found = (row["n_prompt"], row["prefill_s"] * 1e3, misses_of_prompt(tokens, shape))
    return Prompts(*(np.array([float(value)]) for value in found))


def _model_gb(shape: Shape) -> float:
    # experts of a layer: Qwen3 and gpt-oss have 128, Qwen3.6 256
    experts = 256 if shape.layers == 40 else 128
    return (shape.layers * experts * shape.expert_bytes + shape.dense_bytes) / 1e9


def _start_s(folder: Path, row: dict[str, Any]) -> float | None:
    """Seconds until the engine took a prompt, from what it printed beside the tokens."""
    stem = folder / row["file"]
    for path in (stem.with_suffix(suffix) for suffix in (".log", ".out", ".metrics", ".csv")):
        text = path.read_text(encoding="utf-8", errors="ignore") if path.exists() else ""
        if said := re.search(r"(?:model load |load_s=)([0-9.]+)", text):
            return float(said[1])
    return None


def desktop_prompts(table: pl.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Rows of one machine, model and note that differ in the prompt alone: its shortest and longest are fitted."""
    known = pl.col("prefill_tok_s").is_not_null() & pl.col("prompt_tokens").is_not_null()
    told, line = [], []
    shape = Shape(48, 10, 1.0, 0.0)
    for _, rows in table.filter(known).group_by("machine", "quantisation", "note", maintain_order=True):
        rows = rows.sort("prompt_tokens", maintain_order=True)  # noqa: PLW2901
        tokens_S = rows["prompt_tokens"].cast(pl.Float64).to_numpy()
        if len(np.unique(tokens_S)) < 3 or tokens_S[-1] < 2 * tokens_S[0]:
            continue
        prompts = Prompts(tokens_S, tokens_S / rows["prefill_tok_s"].to_numpy() * 1e3, np.zeros(len(tokens_S)))
        ends = np.array([0, len(tokens_S) - 1])
        device = fit_prefill(_blank(), shape, prompts.rows(ends), "desktop")
        middle = prompts.rows(slice(1, -1))
        told += (expected_prompt_ms(device, shape, middle) / middle.wall_S - 1).tolist()
        line += (middle.tokens_S * (prompts.wall_S[-1] / prompts.tokens_S[-1]) / middle.wall_S - 1).tolist()
    yield (
        (
            "desktops, misses computed",
            PREFILL,
            "Qwen3.8-Flash-Next",
            "2 lengths a machine and model",
        ),
        told,
        line,
    )


def _blank() -> Device:
    fields = {"link_gb_per_s": 20, "setup_us": 0, "lanes": 1, "memory_gb_per_s": 1e6, "layer_overhead_us": 0}
    return Device.model_validate({"name": "desktop", "about": "-", **fields})
