"""A device fitted to one or more recordings of an engine: every number with its interval, and the held-out error.

Tokens: where loading was recorded by itself, it is a line over layers that load and over misses, and computing a line
over misses, of which the slope is admission into the cache. Else the whole time is a line over misses, as for runs. All
lines have the least absolute error, so that single long tokens do not move them; what the mean token takes beyond them
is added.

Shape suffix: S decode steps, or runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import brentq

from moe_beyond.devices.calibrate import least_absolute
from moe_beyond.devices.device import LARGE_ERROR, Device
from moe_beyond.devices.expected import F64, Shape, expected_ms
from moe_beyond.devices.recordings import Recording
from moe_beyond.devices.workload import MIB
from moe_beyond.errors import InputError

_DRAWS = 100
_LEAST_ROWS = 5
_OTHER_REGIME = 0.25
_PAGING = 3.0
_LEAST_SPREAD = 0.01
_UNITS = {
    "link_gb_per_s": "GB/s of the link",
    "miss_layer_us": "us of a layer that loads",
    "admit_gb_per_s": "GB/s of admission",
    "setup_us": "us of a request",
    "cpu_gb_per_s": "GB/s of the host's processor",
    "memory_gb_per_s": "GB/s of memory",
    "layer_overhead_us": "us of a layer",
}


@dataclass(frozen=True)
class Known:
    """What was measured elsewhere, or is a matter of the engine.

    Attributes:
        miss: As the device's.
        overlap: As the device's, though the recordings need not overlap.
        lanes: At which the device is to stand; None: the most that a recording used.
        link_gb_per_s: Then what a miss takes beyond its bytes is the setup.
        memory_gb_per_s: Then what a token takes beyond its bytes is the layers'.
        recording: Repository, commit, file and date.
    """

    miss: Literal["load", "compute"] = "load"
    overlap: bool = False
    lanes: int | None = None
    link_gb_per_s: float | None = None
    memory_gb_per_s: float | None = None
    recording: str | None = None


@dataclass(frozen=True)
class Fitted:
    """A device, and what else to say of it."""

    device: Device
    rows: int
    notes: tuple[str, ...]


def fit(recordings: Sequence[Recording], shape: Shape, known: Known, name: str) -> Fitted:
    """Fit a device.

    Raises:
        InputError: Recordings of both kinds, rows that tell nothing apart, or a number that is not positive.
    """
    where = ", ".join(one.name for one in recordings)
    if len({(one.read_S is None, one.io_S is None, one.overlaps) for one in recordings}) > 1:
        raise InputError(
            f"{where}: recordings of several kinds (tokens or runs, with or without io_ms, overlapping or not)"
            "; fit each kind by itself"
        )
    if known.overlap and recordings[0].overlaps:
        raise InputError(
            f"{where}: the engine computed while it loaded (stall_ms), so that what is fitted is what remains visible "
            "of the link; leave --overlap out, or give recordings without overlap"
        )
    numbers = _numbers(recordings, shape, known, where)
    intervals = _intervals(recordings, shape, known, where)
    device = Device(
        name=name,
        about=f"Fitted to {sum(len(one.wall_S) for one in recordings)} rows of {where}.",
        lanes=_lanes(recordings, known),
        miss=known.miss,
        overlap=known.overlap,
        recording=known.recording,
        intervals=intervals,
        fit_error=_held_out(recordings, shape, known, where),
        resident_mib=round((shape.dense_bytes + shape.accesses * shape.expert_bytes) / MIB, 3),
        **numbers,
    )
    return Fitted(device, sum(len(one.wall_S) for one in recordings), tuple(_notes(recordings, shape, device)))


def refit_memory(base: Device, recordings: Sequence[Recording], shape: Shape, name: str) -> Device:
    """The same device with another model: only what its resident weights take is fitted, to the mean time.

    Where that is less than a third of the base's bandwidth, dense weights come by page faults.

    Raises:
        InputError: No bandwidth gives that time.
    """
    where = ", ".join(one.name for one in recordings)
    wall_ms = float(np.mean([one.wall_S.mean() for one in recordings]))
    misses_S = [one.misses_S(shape.accesses, shape.expert_bytes) for one in recordings]
    about = f"{base.name}, resident weights fitted to {where}."

    def off(field: str, value: float) -> float:
        device = base.model_copy(update={field: value})
        return float(np.mean([expected_ms(device, shape, one_S).mean() for one_S in misses_S])) - wall_ms

    for field, least in (("memory_gb_per_s", base.memory_gb_per_s / _PAGING), ("fault_gb_per_s", 1e-4)):
        if off(field, least) >= 0 > off(field, 1e5):
            value = round(float(brentq(lambda gb: off(field, gb), least, 1e5)), 4)  # noqa: B023 - called at once
            update = {
                "name": name,
                "about": about,
                field: value,
                "resident_mib": None,
                "intervals": {},
                "fit_error": None,
            }
            return base.model_copy(update=update)
    raise InputError(f"{where}: {wall_ms:.3g} ms a token is less than {base.name} needs for its loads alone")


def _lanes(recordings: Sequence[Recording], known: Known) -> int:
    return known.lanes or max((one.lanes or 1 for one in recordings), default=1)


def _numbers(recordings: Sequence[Recording], shape: Shape, known: Known, where: str) -> dict[str, float]:
    """The device's numbers, none of them negative."""
    misses_S = np.concatenate([one.misses_S(shape.accesses, shape.expert_bytes) for one in recordings])
    gb_S = misses_S * np.concatenate([_expert_bytes_S(one, shape) for one in recordings]) / 1e9
    if np.ptp(gb_S) <= _LEAST_SPREAD * gb_S.mean():
        raise InputError(
            f"{where}: all rows miss {gb_S.mean() * 1e9 / MIB:.0f} MiB, so that loading and computing cannot be told "
            "apart; add a recording that misses more or less, such as with another cache size"
        )
    if recordings[0].io_S is not None:
        found, computing_ms = _by_part(recordings, shape, known, misses_S)
    else:
        found, computing_ms = _by_wall(recordings, known, misses_S, gb_S)
    # what the host computes runs beside the accelerator's experts
    experts = 0 if known.miss == "compute" else shape.accesses
    resident_mb = (shape.dense_bytes + experts * shape.expert_bytes) / 1e6
    if known.memory_gb_per_s:
        rest_ms = computing_ms - resident_mb / known.memory_gb_per_s
        found |= {"memory_gb_per_s": known.memory_gb_per_s, "layer_overhead_us": rest_ms * 1e3 / shape.layers}
    else:
        found["memory_gb_per_s"] = resident_mb / computing_ms
    found = {"setup_us": 0.0, "layer_overhead_us": 0.0} | found
    for field, value in found.items():
        if not np.isfinite(value) or value < 0:
            raise InputError(
                f"{where}: the fit gives {value:.3g} {_UNITS[field]} ({field}): time does not follow the misses, "
                "something else decides, such as heat or paging; give what is known, or other runs"
            )
    return {field: float(f"{value:.5g}") for field, value in found.items()}


def _by_part(
    recordings: Sequence[Recording], shape: Shape, known: Known, misses_S: F64
) -> tuple[dict[str, float], float]:
    """Lines of loading and of computing; the second result is milliseconds of computing where nothing is missing."""
    io_S = np.concatenate([one.io_S for one in recordings if one.io_S is not None])
    rest_S = np.concatenate([one.wall_S for one in recordings]) - io_S
    columns = [shape.loading_layers(misses_S), misses_S]
    if several := len({one.lanes for one in recordings}) > 1:
        lanes_S = np.concatenate([np.full(len(one.wall_S), one.lanes or 1) for one in recordings])
        columns.append(misses_S / lanes_S)
    line = least_absolute(np.stack(columns, axis=1), io_S)
    # the mean takes longer than the line: pauses
    line *= io_S.mean() / (np.stack(columns, axis=1) @ line).mean()
    miss_ms = line[1] + (line[2] / _lanes(recordings, known) if several else 0.0)
    start_ms, admit_ms = least_absolute(np.stack([np.ones_like(io_S), misses_S], axis=1), rest_S)
    found = {
        "link_gb_per_s": shape.expert_bytes / 1e6 / miss_ms,
        "miss_layer_us": max(0.0, line[0] * 1e3),
        **({"admit_gb_per_s": shape.expert_bytes / 1e6 / admit_ms} if admit_ms > 0 else {}),
    }
    return found, float(start_ms + (rest_S - start_ms - admit_ms * misses_S).mean())


def _by_wall(recordings: Sequence[Recording], known: Known, misses_S: F64, gb_S: F64) -> tuple[dict[str, float], float]:
    """One line of the whole time."""
    wall_S = np.concatenate([one.wall_S for one in recordings])
    by_setup = known.miss == "load" and known.link_gb_per_s is not None
    if by_setup:
        wall_S = wall_S - gb_S * 1e3 / (known.link_gb_per_s or np.inf)
    over_S = misses_S if by_setup else gb_S
    computing_ms, slope = map(float, least_absolute(np.stack([np.ones_like(wall_S), over_S], axis=1), wall_S))
    if recordings[0].read_S is not None:
        # pauses of single tokens; a table's rows are means already, and one that is off is another regime
        computing_ms += float((wall_S - computing_ms - slope * over_S).mean())
    gb_per_s = 1e3 / slope if slope else np.nan
    if known.miss == "compute":
        return {"link_gb_per_s": known.link_gb_per_s or np.nan, "cpu_gb_per_s": gb_per_s}, computing_ms
    if by_setup:
        setup_us = slope * 1e3 * _lanes(recordings, known)
        return {"link_gb_per_s": known.link_gb_per_s or np.nan, "setup_us": setup_us}, computing_ms
    return {"link_gb_per_s": gb_per_s}, computing_ms


def _expert_bytes_S(recording: Recording, shape: Shape) -> F64:
    if recording.expert_mib_S is not None:
        return recording.expert_mib_S * MIB
    return np.full(len(recording.wall_S), shape.expert_bytes)


def _intervals(
    recordings: Sequence[Recording], shape: Shape, known: Known, where: str
) -> dict[str, tuple[float, float]]:
    """Of each fitted number, from drawing rows again; none where there are too few rows to draw from."""
    if sum(len(one.wall_S) for one in recordings) < _LEAST_ROWS:
        return {}
    draw = np.random.default_rng(0)
    drawn = []
    for _ in range(_DRAWS):
        again = [one.rows(draw.integers(0, len(one.wall_S), len(one.wall_S))) for one in recordings]
        try:
            drawn.append(_numbers(again, shape, known, where))
        except InputError:
            continue  # a draw that tells nothing apart: a wide interval is what the others show
    given = {name for name in ("link_gb_per_s", "memory_gb_per_s") if getattr(known, name) is not None}
    found = {field: [one[field] for one in drawn if field in one] for one in drawn for field in one}
    ends = {
        field: np.percentile(values, (2.5, 97.5))
        for field, values in found.items()
        if field not in given and any(values)
    }
    return {field: (float(f"{low:.4g}"), float(f"{high:.4g}")) for field, (low, high) in ends.items()}


def _held_out(recordings: Sequence[Recording], shape: Shape, known: Known, where: str) -> float | None:
    """Tokens: error of a fit to first halves on the mean of second halves. Runs: of each from the others, median."""
    if recordings[0].read_S is not None:
        first = [one.rows(slice(0, len(one.wall_S) // 2)) for one in recordings]
        second = [one.rows(slice(len(one.wall_S) // 2, None)) for one in recordings]
        pairs = [(first, one) for one in second]
    elif len(recordings) == 1 and len(recordings[0].wall_S) > 2:
        rows = np.arange(len(recordings[0].wall_S))
        pairs = [([recordings[0].rows(rows[rows != row])], recordings[0].rows(rows[row : row + 1])) for row in rows]
    else:
        return None
    errors = []
    for fitted_on, judged in pairs:
        lanes = judged.lanes or _lanes(recordings, known)
        try:
            numbers = _numbers(fitted_on, shape, replace(known, lanes=lanes), where)
        except InputError:
            continue  # what is left tells nothing apart
        device = Device(name="held out", about="-", lanes=lanes, miss=known.miss, **numbers)
        errors.append(abs(errors_of(device, judged, shape)))
    return round(float(np.median(errors)), 4) if errors else None


def errors_of(device: Device, recording: Recording, shape: Shape, *, admits: bool = True) -> float:
    """Modelled over recorded mean time, less 1."""
    sizes_S = _expert_bytes_S(recording, shape)
    misses_S = recording.misses_S(shape.accesses, shape.expert_bytes)
    told_S = [
        float(expected_ms(device, replace(shape, expert_bytes=size), np.array([misses]), admits=admits)[0])
        for size, misses in zip(sizes_S, misses_S, strict=True)
    ]
    return float(np.mean(told_S) / recording.wall_S.mean() - 1)


def _notes(recordings: Sequence[Recording], shape: Shape, device: Device) -> list[str]:
    notes = [note for one in recordings for note in one.left_out]
    if any(one.overlaps for one in recordings):
        notes.append("The engine computed while it loaded: link_gb_per_s is what remains visible of the loads.")
    for one in recordings:
        if one.hit_rate_S is None:
            continue
        for row in range(len(one.wall_S)):
            error = errors_of(device, one.rows(slice(row, row + 1)), shape)
            if abs(error) > _OTHER_REGIME:
                regime = "no cache" if one.hit_rate_S[row] == 0 else f"hit rate {one.hit_rate_S[row]:.3g}"
                notes.append(f"{one.name}, {regime}: modelled time is {error:+.0%} off: another regime than the rest.")
    if device.fit_error is not None and device.fit_error > LARGE_ERROR:
        notes.append(
            f"The mean time is {device.fit_error:.0%} off on what was not fitted, more than {LARGE_ERROR:.0%}."
        )
    if device.fit_error is None:
        notes.append("No row is left to judge the fit by.")
    return notes
