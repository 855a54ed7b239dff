"""A link's GB/s by read size and lanes, where one bandwidth and one setup do not describe it.

A point is (KiB of a read, lanes, GB/s of all lanes together). Between lanes GB/s follows their logarithm, and beyond
them it stays; between sizes the time follows the bytes, and beyond them on the line through the two nearest.

Shape suffix: B read sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Point = tuple[float, int, float]
F64 = npt.NDArray[np.float64]
_KIB = 1024


def read_ms(points: Sequence[Point], lanes: int, num_bytes: F64) -> F64:
    """Milliseconds in which the link is busy with one read, at so many lanes, of each of the sizes."""
    bytes_B, ms_B = _times(points, lanes)
    if len(bytes_B) == 1:
        return np.asarray(num_bytes * ms_B[0] / bytes_B[0])
    # the segment of each size; the first and the last go on
    after = np.clip(np.searchsorted(bytes_B, num_bytes), 1, len(bytes_B) - 1)
    slope = (ms_B[after] - ms_B[after - 1]) / (bytes_B[after] - bytes_B[after - 1])
    return np.maximum(0.0, ms_B[after] + (num_bytes - bytes_B[after]) * slope)


def complaint(points: Sequence[Point], lanes: int) -> str | None:
    """What is wrong with a curve that is used at so many lanes; None: nothing."""
    if any(not (kib > 0 and of_lanes >= 1 and 0 < gb_per_s < np.inf) for kib, of_lanes, gb_per_s in points):
        return "a point is (KiB, lanes, GB/s), all of them above 0"
    if len({point[:2] for point in points}) < len(points):
        return "two points have the same KiB and lanes; keep one"
    if points and (np.diff(_times(points, lanes)[1]) <= 0).any():
        return f"at {lanes} lanes a larger read takes no longer than a smaller one; measure both again"
    return None


def with_bandwidth(points: Sequence[Point], of_link: float, gb_per_s: float) -> tuple[Point, ...]:
    """The curve of a link with another bandwidth: bytes take that much less time or more, all else as long."""
    changed = []
    for kib, lanes, measured in points:
        seconds_per_gb = max(1 / gb_per_s, 1 / measured + 1 / gb_per_s - 1 / of_link)
        changed.append((kib, lanes, 1 / seconds_per_gb))
    return tuple(changed)


def _times(points: Sequence[Point], lanes: int) -> tuple[F64, F64]:
    """Bytes of each size, rising, and milliseconds of such a read."""
    sizes = sorted({kib for kib, _, _ in points})
    bytes_B, ms = np.array(sizes, np.float64) * _KIB, []
    for size, num_bytes in zip(sizes, bytes_B, strict=True):
        of_size = sorted((of_lanes, gb_per_s) for kib, of_lanes, gb_per_s in points if kib == size)
        known, gb_per_s = zip(*of_size, strict=True)
        ms.append(num_bytes / 1e6 / np.interp(np.log(lanes), np.log(known), gb_per_s))
    return bytes_B, np.asarray(ms, np.float64)
