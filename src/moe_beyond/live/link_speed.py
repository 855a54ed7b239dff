"""GB/s of a link by read size and lanes, measured here: of a drive past the page cache, or of copies to a card.

Shape suffixes: B read sizes, N numbers of lanes, R rounds.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from moe_beyond.devices.link_curve import Point
from moe_beyond.errors import InputError
from moe_beyond.live.store import open_direct
from moe_beyond.simulator.jit import F64

SIZES = (4096, 2**17, 2**20, 2**23)
"""Bytes of a read: from a page to a large expert."""
LANES = (1, 4, 8)
ROUNDS = 3
_SECONDS = 0.5
"""Of a round of one size and one number of lanes."""
_FILE_BYTES, _LEAST_FILE_BYTES = 2**30, 2**28
_BETWEEN_CLOCKS = 2**20
"""Bytes that a lane reads before it looks at the clock."""
_AS_FAST = 0.95
_IN_MEMORY = ("tmpfs", "ramfs")

Measure = Callable[[int, int], float]
"""`measure(size, lanes)`: GB/s of one round."""


@dataclass(frozen=True)
class Curve:
    """GB/s by read size and lanes.

    Attributes:
        gb_per_s_RBN: 10^9 bytes a second of all lanes together, float64, of each round, by `SIZES` and `LANES`.
    """

    gb_per_s_RBN: F64

    @property
    def median_BN(self) -> F64:
        """GB/s at the median of the rounds."""
        return np.asarray(np.median(self.gb_per_s_RBN, axis=0))

    @property
    def points(self) -> tuple[Point, ...]:
        """The median as a device's `link_curve`, of reads of 128 KiB and more."""
        return tuple(
            (float(size // 1024), lanes, float(f"{gb_per_s:.4g}"))
            for size, of_size_N in zip(SIZES[1:], self.median_BN[1:], strict=True)
            for lanes, gb_per_s in zip(LANES, of_size_N.tolist(), strict=True)
        )

    @property
    def spread_BN(self) -> F64:
        """Of the rounds, largest less smallest, as a share of the median."""
        return np.asarray(np.ptp(self.gb_per_s_RBN, axis=0) / self.median_BN)

    @property
    def lanes(self) -> int:
        """The fewest lanes that are about as fast as the fastest, at the largest size."""
        largest_N = self.median_BN[-1]
        return LANES[int(np.argmax(largest_N >= _AS_FAST * largest_N.max()))]


@dataclass(frozen=True)
class LinkFit:
    """What a device's file holds of a curve, for experts of 128 KiB and more.

    Attributes:
        gb_per_s: Bandwidth.
        gb_per_s_range: The smallest and the largest of this and what single rounds give.
        setup_us: Time from a request to its first byte.
        lanes: At which both were fitted.
        error: Of a load's time from these two, as a share of the measured one: the largest over the sizes.
    """

    gb_per_s: float
    gb_per_s_range: tuple[float, float]
    setup_us: float
    lanes: int
    error: float

    @classmethod
    def of(cls, curve: Curve) -> LinkFit:
        """Fit bandwidth and setup so that the shares by which they miss the times are small."""
        # experts are larger than a page, whose time is all setup
        sizes_B, n = np.array(SIZES[1:], np.float64), LANES.index(curve.lanes)
        seconds_B = sizes_B / 1e9 / curve.median_BN[1:, n]
        fitted = _line(sizes_B, seconds_B)
        rounds = [_line(sizes_B, sizes_B / 1e9 / one_BN[1:, n])[1] for one_BN in curve.gb_per_s_RBN]
        error = float(np.max(np.abs(fitted[0] + fitted[1] * sizes_B - seconds_B) / seconds_B))
        rounds.append(fitted[1])
        slowest, fastest = 1e-9 / max(rounds), 1e-9 / min(rounds)
        return cls(1e-9 / fitted[1], (slowest, fastest), fitted[0] * 1e6 * curve.lanes, curve.lanes, error)


def _line(sizes_B: F64, seconds_B: F64) -> tuple[float, float]:
    """Seconds before the first byte, at least 0, and seconds a byte."""
    columns = np.stack([1 / seconds_B, sizes_B / seconds_B], axis=1)
    (setup, each), *_ = np.linalg.lstsq(columns, np.ones(len(sizes_B)), rcond=None)
    if setup >= 0 and each > 0:
        return float(setup), float(each)
    share_B = sizes_B / seconds_B
    return 0.0, float(share_B.sum() / (share_B**2).sum())


def curve_of(measure: Measure, rounds: int = ROUNDS) -> Curve:
    """Measure every size with every number of lanes, round after round, so that a drift shows as a spread."""
    return Curve(np.array([[[measure(size, lanes) for lanes in LANES] for size in SIZES] for _ in range(rounds)]))


@contextmanager
def drive(folder: Path, seconds: float = _SECONDS) -> Iterator[Measure]:
    """Random reads of a file in `folder` that exists only inside the `with`, a thread a lane.

    Args:
        folder: On the drive.
        seconds: Of a round.

    Raises:
        InputError: No such folder, no permission or too little space in it, or a file system in memory or one that
            does not let reads go past the page cache.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one on the drive that experts will lie on")
    kind = _file_system(folder)
    if kind in _IN_MEMORY:
        raise InputError(f"{folder}: lies in memory ({kind}); name a folder on the drive that experts will lie on")
    try:
        # half of what is left stays free
        space = os.statvfs(folder)
        nbytes = min(_FILE_BYTES, space.f_bavail * space.f_frsize // 2) // SIZES[-1] * SIZES[-1]
        if nbytes < _LEAST_FILE_BYTES:
            raise InputError(f"{folder}: {nbytes // 2**20} MiB to spare; free {_LEAST_FILE_BYTES // 2**19} MiB first")
        with tempfile.TemporaryFile(dir=folder) as file:
            # a drive may compress, and need not read what was never written
            generator = np.random.default_rng()
            for _ in range(nbytes // SIZES[-1]):
                file.write(generator.bytes(SIZES[-1]))
            file.flush()
            os.fsync(file.fileno())
            # the file has no name
            descriptor = open_direct(Path(f"/proc/self/fd/{file.fileno()}"))
            if descriptor is None:
                raise InputError(
                    f"{folder}: its file system does not let reads go past the page cache, so that memory would be "
                    "measured; name a folder on another"
                )
            try:
                with ThreadPoolExecutor(max(LANES)) as pool:
                    yield lambda size, lanes: sum(
                        pool.map(lambda seed: _read(descriptor, nbytes, size, seconds, seed), range(lanes))
                    )
            finally:
                os.close(descriptor)
    except OSError as error:
        raise InputError(f"{folder}: a file cannot be written or read here ({error.strerror})") from error


def _read(descriptor: int, nbytes: int, size: int, seconds: float, seed: int) -> float:
    """GB/s of one lane."""
    generator, batch, done = np.random.default_rng(seed), max(1, _BETWEEN_CLOCKS // size), 0
    # direct reads want a buffer that starts at a page
    with mmap.mmap(-1, size) as pages, memoryview(pages) as buffer:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            for place in generator.integers(0, nbytes // size, batch).tolist():
                done += os.preadv(descriptor, [buffer], place * size)
        return done / 1e9 / (time.perf_counter() - began)


def _file_system(folder: Path) -> str | None:
    """Its type where the system tells, such as ext4."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = Path("/proc/self/mountinfo")
    for line in mounts.read_text(encoding="utf-8").splitlines() if mounts.exists() else ():
        mounted, _, rest = line.partition(" - ")
        if mounted.split()[2] == number:
            return rest.split()[0]
    return None


def card(seconds: float = _SECONDS) -> Measure:
    """Copies from pinned memory to the graphics card; `lanes` of them are under way before one is waited for."""
    pinned = torch.empty(_LEAST_FILE_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(SIZES[-1] * max(LANES), dtype=torch.uint8, device="cuda")

    def measure(size: int, lanes: int) -> float:
        generator, done = np.random.default_rng(0), 0
        torch.cuda.synchronize()
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            for lane, place in enumerate(generator.integers(0, len(pinned) // size, lanes).tolist()):
                source = pinned[place * size : (place + 1) * size]
                there[lane * size : (lane + 1) * size].copy_(source, non_blocking=True)
            torch.cuda.synchronize()
            done += size * lanes
        return done / 1e9 / (time.perf_counter() - began)

    return measure
