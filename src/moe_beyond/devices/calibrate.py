"""A device fitted to a recording: the bytes that each token of a real one read, and the time it took.

Shape suffixes: S decode steps, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from moe_beyond.devices.device import LARGE_ERROR, Device
from moe_beyond.errors import InputError, reason_of

COLUMNS = ("read_bytes", "wall_ms")
LEAST_TOKENS = 20
_LEAST_SPREAD = 0.01
"""Standard deviation of what tokens read, over their mean."""
_MANY_FAULTS = 20
_ROUNDS = 100
_NEGLIGIBLE_MS = 1e-3


@dataclass(frozen=True)
class TokenTime:
    """Time of a decoded token as a line over the bytes it misses.

    Attributes:
        computing_ms: Where nothing is missing.
        ms_per_gb: For each 10^9 bytes that are.
        pauses_ms: What the mean token takes beyond that line, which single long tokens do not move.
    """

    computing_ms: float
    ms_per_gb: float
    pauses_ms: float = 0.0

    @property
    def link_gb_per_s(self) -> float:
        """Effective bandwidth: loads that are hidden behind computing make it look faster."""
        return 1e3 / self.ms_per_gb

    def predict_ms(self, missed_bytes_S: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Time of each step, float64 [S]."""
        return np.asarray(self.computing_ms + self.ms_per_gb * missed_bytes_S / 1e9, np.float64)


def fit_token_time(missed_bytes_S: npt.NDArray[np.int64], wall_ms_S: npt.NDArray[np.float64]) -> TokenTime:
    """The line with the least absolute error: a recording has pauses that squares would follow.

    Args:
        missed_bytes_S: Bytes that each recorded step missed.
        wall_ms_S: How long it took.
    """
    columns = np.stack([np.ones(len(wall_ms_S)), missed_bytes_S / 1e9], axis=1)
    line = least_absolute(columns, wall_ms_S)
    return TokenTime(float(line[0]), float(line[1]), float((wall_ms_S - columns @ line).mean()))


def least_absolute(columns_SP: npt.NDArray[np.float64], wall_ms_S: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Coefficients of the columns, float64 [P], with the least absolute error."""
    weights_S = np.ones(len(wall_ms_S))
    for _ in range(_ROUNDS):
        # squares weighted by one over the error are the error itself
        root_S = np.sqrt(weights_S)
        line, *_ = np.linalg.lstsq(columns_SP * root_S[:, None], wall_ms_S * root_S, rcond=None)
        weights_S = 1 / np.maximum(np.abs(columns_SP @ line - wall_ms_S), _NEGLIGIBLE_MS)
    return np.asarray(line)


@dataclass(frozen=True)
class Calibration:
    """A fitted device, and how well such a fit predicts.

    Attributes:
        device: What to simulate with; its `fit_error` is that of the mean time, pauses included.
        tokens: Decoded tokens of the recording.
        median_error: Error of a fit to the first half on the second half's times without pauses, as a share of them.
        notes: Sentences about an error that is large, and what to record instead.
    """

    device: Device
    tokens: int
    median_error: float
    notes: tuple[str, ...] = ()


def calibrate(recording: Path, resident_bytes: int, name: str) -> Calibration:
    """Fit a device to a recording.

    A token takes a time that depends on nothing, and more for each byte that it reads. The first is what the processor
    needs to read the resident weights, with its share of the recording's pauses; the second what remains visible of the
    link. So setup and overhead are 0.

    Args:
        recording: CSV with a row a decoded token and columns read_bytes and wall_ms; lines that begin with # are
            comments. A column majflt, major page faults, says whether paging spoils it. A `.metrics` file of
            BigMoeOnEdge is one.
        resident_bytes: Weights that a token reads besides: dense parts and as many experts as it uses.
        name: Of the device.

    Raises:
        InputError: No such file, a column is missing or holds no numbers, too few tokens, tokens that read nothing or
            all the same, or a fit that makes no sense.
    """
    try:
        table = pl.read_csv(recording, comment_prefix="#", glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{recording}: not a readable CSV ({reason_of(error)})") from error
    for column in COLUMNS:
        if column not in table.columns or not table[column].dtype.is_numeric() or table[column].null_count():
            raise InputError(f"{recording}: expected numbers in columns {', '.join(COLUMNS)}; fix column {column!r}")
    if table.height < LEAST_TOKENS:
        raise InputError(f"{recording}: {table.height} tokens; record at least {LEAST_TOKENS}")
    read_S, wall_S = table["read_bytes"].cast(pl.Int64).to_numpy(), table["wall_ms"].cast(pl.Float64).to_numpy()
    half = table.height // 2
    _require_reads(recording, read_S, "no token")
    _require_reads(recording, read_S[:half], "of the first half no token")
    first, fitted = fit_token_time(read_S[:half], wall_S[:half]), fit_token_time(read_S, wall_S)
    computing_ms, cause = fitted.computing_ms + fitted.pauses_ms, _cause(table)
    if fitted.ms_per_gb <= 0 or fitted.computing_ms <= 0 or computing_ms <= 0:
        raise InputError(
            f"{recording}: reading more takes no longer ({fitted.ms_per_gb:.3g} ms a GB after "
            f"{fitted.computing_ms:.3g} ms): {cause}"
        )
    wall, predicted = wall_S[half:], first.predict_ms(read_S[half:])
    median_error = float(np.median(np.abs(predicted - wall) / wall))
    fit_error = float(abs(predicted.mean() + first.pauses_ms - wall.mean()) / wall.mean())
    errors = {"mean time": fit_error, "time of a token, at the median,": median_error}
    notes = [
        f"The {what} is {error:.0%} off on the second half, more than {LARGE_ERROR:.0%}: {cause}."
        for what, error in errors.items()
        if error > LARGE_ERROR
    ]
    device = Device(
        name=name,
        about=f"Fitted to {table.height} tokens of {recording.name}; setup and overhead are in the other numbers.",
        link_gb_per_s=round(fitted.link_gb_per_s, 4),
        setup_us=0,
        lanes=1,
        memory_gb_per_s=round(resident_bytes / 1e9 / (computing_ms / 1e3), 4),
        layer_overhead_us=0,
        fit_error=round(fit_error, 4),
        resident_mib=round(resident_bytes / 2**20, 3),
    )
    return Calibration(device, table.height, median_error, tuple(notes))


def _require_reads(recording: Path, read_S: npt.NDArray[np.int64], none: str) -> None:
    """Refuse tokens whose reads tell nothing of the link: it takes some that differ."""
    if not read_S.any():
        raise InputError(
            f"{recording}: {none} reads anything (read_bytes is 0): all experts were in memory, or came by page faults "
            "(mmap), which are not counted; record an engine that reads experts itself, into a cache that is too small"
        )
    if read_S.std() < _LEAST_SPREAD * read_S.mean():
        raise InputError(
            f"{recording}: {none} reads more or less than {read_S.mean() / 2**20:.0f} MiB (read_bytes varies by less "
            f"than {_LEAST_SPREAD:.0%}), so that loading and computing cannot be told apart; record with a cache, of "
            "which tokens miss more or less, or two sizes of it in one file"
        )


def _cause(table: pl.DataFrame) -> str:
    """Why times do not follow the reads, and what to record."""
    faults = table["majflt"].mean() if "majflt" in table.columns and table["majflt"].dtype.is_numeric() else None
    if isinstance(faults, float) and faults > _MANY_FAULTS:
        return (
            f"{faults:.0f} major page faults a token read weights that read_bytes does not count (paging); record with "
            "a smaller cache, or dense parts locked in memory"
        )
    return (
        "something other than loading decides, such as heat, paging or other programs; record more tokens on a cool, "
        "idle device"
    )
