"""What engines recorded: rows of tokens with the bytes that each read, or rows of runs with a hit rate.

Shape suffix: S decode steps, or runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.devices.calibrate import LEAST_TOKENS
from moe_beyond.documents import load_csv
from moe_beyond.errors import InputError

LEAST_RUNS = 2
_SPEEDS = ("tok_s", "decode_tok_s")
_FAR_APART = 0.5
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Recording:
    """Tokens, or runs, and their times.

    Attributes:
        name: Of the file.
        wall_S: Milliseconds of each token, or of a run's mean token.
        read_S: Bytes that each token read; None of runs.
        hit_rate_S: Share of accesses that found their expert; None of tokens.
        expert_mib_S: Of each run, where the file says it.
        io_S: Part of `wall_S` in which the engine loaded and did nothing else; None where it was not recorded.
        overlaps: Whether it computed meanwhile, so that only what remains visible of the loads is known.
        lanes: Requests under way at once; None where nobody says.
        left_out: Why rows do not count, a sentence each.
    """

    name: str
    wall_S: F64
    read_S: F64 | None = None
    hit_rate_S: F64 | None = None
    expert_mib_S: F64 | None = None
    io_S: F64 | None = None
    overlaps: bool = False
    lanes: int | None = None
    left_out: tuple[str, ...] = ()

    def misses_S(self, accesses: int, expert_bytes: float) -> F64:
        """Missing experts of each token, of which there are `accesses`."""
        if self.read_S is not None:
            return self.read_S / expert_bytes
        return accesses * (1 - np.asarray(self.hit_rate_S))

    def rows(self, which: slice | npt.NDArray[np.int64]) -> Recording:
        """Some of the tokens, or of the runs."""
        names = ("wall_S", "read_S", "hit_rate_S", "expert_mib_S", "io_S")
        return replace(self, **{name: of[which] for name in names if (of := getattr(self, name)) is not None})


def read_recording(path: Path, lanes: int | None = None) -> Recording:
    """Read a CSV; lines that begin with # are comments, of which `io_threads=N` says how many lanes there were.

    Rows of tokens have columns read_bytes and wall_ms, in milliseconds, and may have io_ms, compute_ms and stall_ms.
    Rows of runs have hit_rate, a share, and tok_s or decode_tok_s, and may have expert_mib. Rows with a reason in a
    column `contaminated` are left out.

    Raises:
        InputError: Not such a file, or one that holds no numbers, other units, or too few rows.
    """
    table, text = load_csv(path, infer_schema_length=None), path.read_text(encoding="utf-8-sig")
    left_out = []
    if "contaminated" in table.columns:
        spoilt = pl.col("contaminated").cast(pl.String).fill_null("").str.strip_chars() != ""
        if count := table.filter(spoilt).height:
            left_out.append(f"{path.name}: {count} rows are marked contaminated and left out.")
        table = table.filter(~spoilt)
    if "hit_rate" in table.columns:
        return _runs(path, table, left_out)
    read_S, wall_S = (_numbers(path, table, name) for name in ("read_bytes", "wall_ms"))
    if len(wall_S) < LEAST_TOKENS:
        raise InputError(f"{path}: {len(wall_S)} tokens; record at least {LEAST_TOKENS}")
    overlaps, io_S = "stall_ms" in table.columns and bool(_numbers(path, table, "stall_ms").any()), None
    if not overlaps and {"io_ms", "compute_ms"} <= set(table.columns):
        io_S, compute_S = _numbers(path, table, "io_ms"), _numbers(path, table, "compute_ms")
        if abs(io_S.sum() + compute_S.sum() - wall_S.sum()) > _FAR_APART * wall_S.sum():
            raise InputError(
                f"{path}: io_ms and compute_ms add up to {(io_S + compute_S).mean():.3g} a token, wall_ms is "
                f"{wall_S.mean():.3g}; give all three in milliseconds"
            )
    said = re.search(r"^#.*\bio_threads=(\d+)", text, re.MULTILINE)
    lanes = lanes if lanes is not None else int(said[1]) if said else None
    return Recording(path.name, wall_S, read_S, io_S=io_S, overlaps=overlaps, lanes=lanes)


def _runs(path: Path, table: pl.DataFrame, left_out: list[str]) -> Recording:
    speed = next((name for name in _SPEEDS if name in table.columns), None)
    if speed is None:
        raise InputError(f"{path}: expected a column {' or '.join(_SPEEDS)} beside hit_rate")
    hits = pl.col("hit_rate")
    if not table["hit_rate"].dtype.is_numeric():
        raise InputError(f"{path}: expected numbers in column 'hit_rate'")
    if table["hit_rate"].max() not in (None, 0) and _largest(table) > 1:
        raise InputError(f"{path}: hit_rate goes up to {_largest(table):g}; give all of them as shares, from 0 to 1")
    resident = table.filter(hits == 1)
    if resident.height:
        left_out.append(f"{path.name}: {resident.height} runs miss nothing: all experts resident is another regime.")
    table = table.filter(hits.is_null() | (hits != 1))
    if table.height < LEAST_RUNS:
        raise InputError(f"{path}: {table.height} runs that miss anything; give at least {LEAST_RUNS}")
    hit_rate_S, speed_S = _numbers(path, table, "hit_rate"), _numbers(path, table, speed)
    if (speed_S == 0).any():
        raise InputError(f"{path}: row {int(np.flatnonzero(speed_S == 0)[0]) + 1}: {speed} is 0")
    expert_mib_S = None
    if "expert_mib" in table.columns and not table["expert_mib"].null_count():
        expert_mib_S = _numbers(path, table, "expert_mib")
    return Recording(
        path.name, 1e3 / speed_S, hit_rate_S=hit_rate_S, expert_mib_S=expert_mib_S, left_out=tuple(left_out)
    )


def _largest(table: pl.DataFrame) -> float:
    return float(np.nanmax(table["hit_rate"].cast(pl.Float64).to_numpy()))


def _numbers(path: Path, table: pl.DataFrame, column: str) -> F64:
    """A column of numbers, none missing, infinite or negative."""
    if column not in table.columns or not table[column].dtype.is_numeric():
        raise InputError(f"{path}: expected numbers in column {column!r}")
    values_S = table[column].cast(pl.Float64).to_numpy()
    bad_S = ~np.isfinite(values_S) | (values_S < 0)
    if bad_S.any():
        row = int(np.flatnonzero(bad_S)[0])
        raise InputError(f"{path}: row {row + 1}: {column} is {table[column][row]}; remove the row or correct it")
    return np.asarray(values_S, np.float64)
