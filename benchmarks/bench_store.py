"""Size and speed of stored traces. Prints a line `NAME VALUE TARGET` for each promise; exits 1 if one is not kept.

    python benchmarks/bench_store.py [--traces FOLDER]

The folder holds the paper's published traces as `puffin.tar.xz` (default ../shared/traces); without it, a synthetic
trace of the same size stands in and the ratio to the CSVs is left out.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moe_beyond.formats import importers
from moe_beyond.formats.importers import moe_beyond_csv
from moe_beyond.traces import store
from moe_beyond.traces.schema import Trace

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Result:
    """A measured promise."""

    name: str
    value: float
    target: float
    at_most: bool

    @property
    def kept(self) -> bool:
        """Whether the target is met."""
        return self.value <= self.target if self.at_most else self.value >= self.target

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} {'<=' if self.at_most else '>='}{self.target:.4g}"


def measure(archive: Path, folder: Path) -> Iterator[Result]:
    """Yield every promise about the store, measured.

    Args:
        archive: The published CSVs; need not exist.
        folder: An empty folder for the files that are written.
    """
    if archive.exists():
        trace = importers.read("moe-beyond-csv", archive)
        with tarfile.open(archive) as files:
            csv_bytes = sum(member.size for member in files if member.name.endswith(".csv"))
        store.write_parquet(trace, folder / "whole.parquet")
        share = (folder / "whole.parquet").stat().st_size / csv_bytes
        yield Result("store_share_of_csv_bytes", share, 1 / 6, at_most=True)
    else:
        trace = synthetic_trace()
    ids_only = replace(trace, token_texts=None, token_ids_T=None, weights_TLK=None, predicted_TLK=None)
    published, working = folder / "ids.parquet", folder / "working"
    store.write_parquet(ids_only, published)
    store.write_working(ids_only, working)
    activations = ids_only.experts_TLK.size
    yield Result("store_bytes_per_activation", published.stat().st_size / activations, 1.0, at_most=True)
    million_a_second = {
        # the files are warm: they have just been written
        "store_stream_published_million_a_second": activations
        / best_seconds(lambda: stream_published(published))
        / 1e6,
        "store_stream_working_million_a_second": activations / best_seconds(lambda: stream_working(working)) / 1e6,
    }
    for name, speed in million_a_second.items():
        yield Result(name, speed, 100, at_most=False)


def stream_published(path: Path) -> int:
    """Read, decode and validate every batch; use every id."""
    return sum(int(batch.experts_TLK.sum(dtype=np.int64)) for batch in store.iterate_parquet(path))


def stream_working(directory: Path) -> int:
    """Map the arrays and copy windows of 128 tokens, as training does; use every id."""
    experts_TLK = store.open_working(directory).experts_TLK
    return sum(int(np.array(experts_TLK[a : a + 128]).sum(dtype=np.int64)) for a in range(0, len(experts_TLK), 128))


def best_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of some runs: the one that others on the machine disturbed least."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def synthetic_trace() -> Trace:
    """As many tokens and layers as the published traces; experts at random, so that nothing compresses better."""
    tokens, prompts = 177_471, 1_851
    rng = np.random.default_rng(0)
    meta = moe_beyond_csv.METADATA
    keys = rng.random((tokens, meta.num_layers, meta.num_experts), np.float32)
    experts_TLK = np.argpartition(keys, meta.top_k, axis=2)[:, :, : meta.top_k].astype(np.uint8)
    offsets = np.sort(rng.choice(np.arange(1, tokens), prompts - 1, replace=False))
    lengths = np.diff([0, *offsets, tokens])
    return Trace(
        metadata=meta,
        prompt_ids=tuple(f"p{i}" for i in range(prompts)),
        domains=("synthetic",) * prompts,
        held_out_P=np.zeros(prompts, np.bool_),
        prompt_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        num_prefill_P=lengths.astype(np.int32),
        experts_TLK=experts_TLK,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--traces", type=Path, default=_ROOT.parent / "shared" / "traces")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = list(measure(arguments.traces / "puffin.tar.xz", Path(folder)))
    for result in results:
        print(result)
    sys.exit(0 if all(result.kept for result in results) else 1)


if __name__ == "__main__":
    main()
