"""A device fitted to a recording: the bytes that each token of a real one read, and the time it took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from moe_beyond.devices.calibrate import fit_token_time
from moe_beyond.devices.device import Device
from moe_beyond.errors import InputError

COLUMNS = ("read_bytes", "wall_ms")
LEAST_TOKENS = 20


@dataclass(frozen=True)
class Calibration:
    """A fitted device, and how well such a fit foretells.

    Attributes:
        device: What to simulate with.
        tokens: Decoded tokens of the recording.
        median_error: Of the second half's times, foretold by a fit to the first half, as a share of them.
    """

    device: Device
    tokens: int
    median_error: float


def calibrate(recording: Path, resident_bytes: int, name: str) -> Calibration:
    """Fit a device to a recording.

    A token takes a time that depends on nothing, and more for each byte that it reads. The first is what the processor
    needs to read the resident weights, the second what remains visible of the link; so setup and overhead are 0.

    Args:
        recording: CSV with a row a decoded token and columns read_bytes and wall_ms; lines that begin with # are
            comments. A `.metrics` file of BigMoeOnEdge is one.
        resident_bytes: Weights that a token reads besides: dense parts and as many experts as it uses.
        name: Of the device.

    Raises:
        InputError: No such file, a column is missing or holds no numbers, too few tokens, or a fit that makes no sense.
    """
    try:
        table = pl.read_csv(recording, comment_prefix="#")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{recording}: not a readable CSV ({' '.join(str(error).split())[:200]})") from error
    for column in COLUMNS:
        if column not in table.columns or not table[column].dtype.is_numeric() or table[column].null_count():
            raise InputError(f"{recording}: expected numbers in columns {', '.join(COLUMNS)}; mend column {column!r}")
    if table.height < LEAST_TOKENS:
        raise InputError(f"{recording}: {table.height} tokens; record at least {LEAST_TOKENS}")
    read_S, wall_S = table["read_bytes"].cast(pl.Int64).to_numpy(), table["wall_ms"].cast(pl.Float64).to_numpy()
    half = table.height // 2
    first, fitted = fit_token_time(read_S[:half], wall_S[:half]), fit_token_time(read_S, wall_S)
    if fitted.ms_per_gb <= 0 or fitted.computing_ms <= 0:
        raise InputError(
            f"{recording}: reading more takes no longer ({fitted.ms_per_gb:.3g} ms a GB after "
            f"{fitted.computing_ms:.3g} ms): something other than loading decides; record without paging"
        )
    error_S = np.abs(first.predict_ms(read_S[half:]) - wall_S[half:]) / wall_S[half:]
    device = Device(
        name=name,
        about=f"Fitted to {table.height} tokens of {recording.name}; setup and overhead are in the other numbers.",
        link_gb_per_s=round(fitted.link_gb_per_s, 4),
        setup_us=0,
        lanes=1,
        memory_gb_per_s=round(resident_bytes / 1e9 / (fitted.computing_ms / 1e3), 4),
        layer_overhead_us=0,
    )
    return Calibration(device, table.height, float(np.median(error_S)))
