"""How far measure-device's reads of a drive are from fio's: `python benchmarks/fio_agreement.py FOLDER [ROUNDS]`.

Both read the same file, one right after the other and in turn first, cell by cell in an order drawn anew each round,
so that bursts of a virtual drive and other programs fall on both. A cell's figures are the median of the rounds'
ratios, and the ratio of what a quarter of the rounds exceed, which other programs slow less. Needs Debian's fio.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np

from moe_beyond.live.link_speed import LANES, SIZES, drive

SECONDS = 0.3
ROUNDS = 25


def fio(file: str, size: int, lanes: int) -> float:
    """GB/s of a round of fio."""
    options = {
        "name": "agreement", "filename": file, "rw": "randread", "bs": size, "numjobs": lanes,
        "runtime": f"{SECONDS * 1e3:.0f}ms",
        "size": Path(file).stat().st_size, "ioengine": "psync", "output-format": "json",
    }  # fmt: skip
    flags = ("--direct=1", "--time_based", "--group_reporting", "--norandommap", "--randrepeat=0", "--readonly")
    done = subprocess.run(
        ["fio", *flags, *(f"--{name}={value}" for name, value in options.items())],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    read = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]
    return float(read["bw_bytes"]) / 1e9


def open_file(folder: Path) -> str:
    """The path of the nameless file that `drive` holds open in a folder."""
    for entry in Path("/proc/self/fd").iterdir():
        target = str(entry.readlink()) if entry.is_symlink() else ""
        if target.startswith(str(folder)) and target.endswith("(deleted)"):
            return f"/proc/{os.getpid()}/fd/{entry.name}"
    raise SystemExit(f"error: {folder}: no file of drive() is open")


def main(folder: Path, rounds: int) -> None:
    """Print a row a cell: both medians, the spread of fio's rounds, and how far ours are from fio's."""
    cells = list(product(SIZES, LANES))
    ours: dict[tuple[int, int], list[float]] = {cell: [] for cell in cells}
    theirs: dict[tuple[int, int], list[float]] = {cell: [] for cell in cells}
    with drive(folder, SECONDS) as measure:
        file = open_file(folder.resolve())
        for turn in range(rounds):
            for size, lanes in random.sample(cells, len(cells)):
                for fio_now in (turn % 2 == 0, turn % 2 == 1):
                    both = theirs if fio_now else ours
                    both[size, lanes].append(fio(file, size, lanes) if fio_now else measure(size, lanes))
    print(
        "| KiB | lanes | ours, GB/s | fio, GB/s | fio, largest over smallest | ours over fio, median | upper quartile |"
    )
    print("|---|---|---|---|---|---|---|")
    for size, lanes in cells:
        mine, other = np.array(ours[size, lanes]), np.array(theirs[size, lanes])
        off = float(np.median(mine / other)) - 1
        best = float(np.quantile(mine, 0.75) / np.quantile(other, 0.75)) - 1
        middles = f"{np.median(mine):.3f} | {np.median(other):.3f}"
        print(f"| {size // 1024} | {lanes} | {middles} | {other.max() / other.min():.2f} | {off:+.1%} | {best:+.1%} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS)
