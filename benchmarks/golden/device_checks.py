"""The error table of modelled times: none of its figures may be larger than the published one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.golden.check import Check
from benchmarks.golden.device_errors import device_errors
from moe_beyond.devices.errors import published_errors

_NAMED = ["device", "regime", "model", "fitted_on", "predicted_rows"]
_JUDGED = ("ms_median_percent", "ms_worst_percent", "tokens_per_s_median_percent", "tokens_per_s_worst_percent")


def device_checks(traces: Path) -> Iterator[Check]:
    """Errors of ms a token and of tokens a second, by device, regime and model; recordings lie beside the traces."""
    found, published = device_errors(traces.parent / "recordings"), published_errors()
    same = found.join(published, on=_NAMED, how="inner")
    yield Check("device_errors_of_the_published_rows", same.height, published.height)
    yield Check("device_errors_rows", found.height, published.height)
    for row in same.iter_rows(named=True):
        name = "_".join(str(row[key]) for key in _NAMED[:3]).replace(",", "").replace(" ", "_")
        yield from (
            Check(f"error_{name}_{figure}", row[figure], row[f"{figure}_right"], relation="at most")
            for figure in _JUDGED
        )
