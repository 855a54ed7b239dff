"""What a prompt takes on a device that was fitted to decoding: its tokens a second, and what is lost beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import brentq

from moe_beyond.devices.calibrate import least_absolute
from moe_beyond.devices.device import MILLISECONDS, Device
from moe_beyond.devices.expected import Prompts, Shape, expected_prompt_ms
from moe_beyond.documents import load_csv
from moe_beyond.errors import InputError

_SLOWEST, _FASTEST = 1e-3, 1e9


def fit_prefill(device: Device, shape: Shape, prompts: Prompts, where: str, *, admits: bool = True) -> Device:
    """The device with `prefill_tokens_per_s`, and from prompts of several lengths `prompt_overhead_ms`.

    The rate is the slope of time over tokens, with the least absolute error; the overhead is what prompts take beyond
    that and their loads, at the median, and at least 0. From one length the rate is what gives the mean time.

    Raises:
        InputError: Longer prompts take no longer, or loading alone takes longer than was recorded.
    """
    plain = device.model_copy(update={"prefill_tokens_per_s": None, "prompt_overhead_ms": 0.0})
    if np.ptp(prompts.tokens_S) > 0:
        columns = np.stack([np.ones_like(prompts.tokens_S), prompts.tokens_S], axis=1)
        ms_per_token = float(least_absolute(columns, prompts.wall_S)[1])
        if ms_per_token <= 0:
            raise InputError(
                f"{where}: longer prompts take no longer ({ms_per_token:.3g} ms a token); check both columns"
            )
        computing = plain.model_copy(update={"prefill_tokens_per_s": float(f"{MILLISECONDS / ms_per_token:.5g}")})
        beyond_ms = float(np.median(prompts.wall_S - expected_prompt_ms(computing, shape, prompts, admits=admits)))
        return computing.model_copy(update={"prompt_overhead_ms": max(0.0, round(beyond_ms, 1))})

    def off(rate: float) -> float:
        told = plain.model_copy(update={"prefill_tokens_per_s": rate})
        return float(expected_prompt_ms(told, shape, prompts, admits=admits).mean() - prompts.wall_S.mean())

    if off(_FASTEST) >= 0:
        raise InputError(
            f"{where}: loading alone takes longer than the {prompts.wall_S.mean():.0f} ms of these prompts"
        )
    rate = float(brentq(off, _SLOWEST, _FASTEST, xtol=1e-6))
    return plain.model_copy(update={"prefill_tokens_per_s": float(f"{rate:.5g}")})


def read_prompts(path: Path) -> Prompts:
    """Read a CSV with a row a prompt: prompt_tokens, and prefill_ms or prefill_tok_s; misses, where it says them.

    Raises:
        InputError: No such file, a column is missing, or a value is no positive number.
    """
    table = load_csv(path, infer_schema_length=None)
    speed = next((name for name in ("prefill_ms", "prefill_tok_s") if name in table.columns), None)
    if speed is None or not table.height:
        raise InputError(f"{path}: expected rows with prompt_tokens, and prefill_ms or prefill_tok_s")
    found = {}
    for name, least in (("prompt_tokens", 1.0), (speed, 1e-9), ("misses", 0.0)):
        if name == "misses" and name not in table.columns:
            found[name] = np.zeros(table.height)
            continue
        if name not in table.columns or not table[name].dtype.is_numeric():
            raise InputError(f"{path}: expected numbers in column {name!r}")
        found[name] = table[name].cast(pl.Float64).to_numpy()
        bad = np.flatnonzero(~np.isfinite(found[name]) | (found[name] < least))
        if len(bad):
            raise InputError(
                f"{path}: row {bad[0] + 1}: {name} is {table[name][int(bad[0])]}; remove the row or correct it"
            )
    tokens_S, speed_S = found["prompt_tokens"], found[speed]
    wall_S = speed_S if speed == "prefill_ms" else tokens_S / speed_S * MILLISECONDS
    return Prompts(tokens_S, wall_S, found["misses"])
