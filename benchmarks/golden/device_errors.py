"""How far modelled time is from recorded time: by device, regime and model, beside a straight line in the misses.

Fitted rows are chosen by rule, not by result: two named runs of the phone's first session, the first run of each other
model whose dense weights stay in memory and the first whose do not, the first two rows of a table, and of a desktop the
lowest and the highest hit rate. Every other row is predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.golden.prompt_errors import desktop_prompts, phone_prompts
from moe_beyond.devices.calibrate import least_absolute
from moe_beyond.devices.device import Device
from moe_beyond.devices.errors import COLUMNS
from moe_beyond.devices.expected import F64, Shape
from moe_beyond.devices.fit import Known, errors_of, fit, refit_memory
from moe_beyond.devices.recordings import Recording, read_recording

Row = dict[str, Any]
MIB = 2**20
QWEN = Shape(48, 8, 2.736 * MIB, 567_263_232)
GPT_OSS = Shape(36, 4, 13_219_200, 828_131_328)
# dense weights of Qwen3.6 were not recorded
QWEN36 = Shape(40, 8, 1.816 * MIB, 1_500_000_000)
FLASH_NEXT = Shape(48, 10, 1.941 * MIB, 2_000_000_000)
FIRST_SESSION = "2026-07-12"
FITTED = ("2026-07-12/qwen_c2000_l2.csv", "2026-07-12/qwen_c4000_l4.csv")


@dataclass(frozen=True)
class _Run:
    """A recorded run of a phone: its row in the index, its shape and what was recorded."""

    row: Row
    shape: Shape
    recording: Recording


def device_errors(recordings: Path) -> pl.DataFrame:
    """The table, in the columns of `COLUMNS`."""
    rows = [*_phone(recordings / "bigmoe-on-edge"), _pcie(recordings / "tables" / "imp.csv")]
    rows += _desktops(recordings / "strata.csv")
    rows += [
        _summary(*one) for one in desktop_prompts(pl.read_csv(recordings / "strata.csv", infer_schema_length=None))
    ]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def _summary(what: Sequence[str], told: Sequence[float], line: Sequence[float]) -> tuple[Any, ...]:
    """Errors as modelled over recorded time, less 1; of tokens a second the error is recorded over modelled, less 1."""
    errors, lines = np.abs(told), np.abs(line)
    speed = np.abs(1 / (1 + np.asarray(told)) - 1)
    figures = (np.median(errors), errors.max(), np.median(speed), speed.max(), np.median(lines), lines.max())
    return (*what, len(told), *(round(100 * float(figure), 1) for figure in figures))


# the phone


def _phone(folder: Path) -> Iterator[tuple[Any, ...]]:
    index = pl.read_csv(folder / "index.csv", infer_schema_length=None)
    # runs without a cache of the engine's own have no loads to tell of; two files are copies of others
    clean = (
        pl.col("contaminated").is_null()
        & (pl.col("cache_mb") != "none")
        & ~pl.col("note").fill_null("").str.contains("same bytes as")
    )
    runs = [_run(folder, row) for row in index.filter(clean).iter_rows(named=True)]
    fitted = [run for run in runs if run.row["file"] in FITTED]
    link = {lanes: _phone_at(fitted, lanes) for lanes in (2, 4, 8)}
    line = _line([run.recording for run in fitted], QWEN)
    qwen = [run for run in runs if run.shape.expert_bytes == QWEN.expert_bytes and run not in fitted]
    first = [run for run in qwen if run.row["session"] == FIRST_SESSION]
    said = ("Qwen3-30B-A3B", "2 runs of one session")
    for regime, chosen in (("same session", first), ("other sessions", [run for run in qwen if run not in first])):
        yield _summary(("phone_oneplus_15r", regime, *said), *_errors(chosen, link, line))
    for model, shape in (("gpt-oss-120b", GPT_OSS), ("Qwen3.6-35B-A3B", QWEN36)):
        of_model = [run for run in runs if run.shape.expert_bytes == shape.expert_bytes]
        for paged in (False, True):
            some = [run for run in of_model if (run.row["dense"] == "mmap (page cache)") == paged]
            if len(some) < 2:
                continue
            one, *others = some
            base = link[one.recording.lanes or 4].model_copy(update={"overlap": bool(one.row["overlap"])})
            found = refit_memory(base, [one.recording], one.shape, "phone")
            memory = found.model_dump(include={"memory_gb_per_s", "fault_gb_per_s"})
            devices = {lanes: device.model_copy(update=memory) for lanes, device in link.items()}
            regime = "dense weights paged" if paged else "dense weights held"
            yield _summary(("phone_oneplus_15r", regime, model, "memory: 1 run"), *_errors(others, devices, line))
    phones = [(run.row, run.shape, _running(run, link)) for run in runs]
    yield from (_summary(*one) for one in phone_prompts(folder, phones, FITTED))


def _run(folder: Path, row: Row) -> _Run:
    shapes = {48: QWEN, 36: GPT_OSS, 40: QWEN36}
    of_model = shapes[row["moe_layers"]]
    shape = Shape(of_model.layers, row["top_k"], of_model.expert_bytes, of_model.dense_bytes)
    return _Run(row, shape, read_recording(folder / row["file"], int(row["lanes"][0])))


def _phone_at(fitted: Sequence[_Run], lanes: int) -> Device:
    return fit([run.recording for run in fitted], QWEN, Known(lanes=lanes), "phone").device


def _line(recordings: Sequence[Recording], shape: Shape) -> F64:
    """Milliseconds of a token without misses, and of each missed GB."""
    read_S, wall_S = (
        np.concatenate(of) for of in zip(*[(_gb_S(one, shape), one.wall_S) for one in recordings], strict=True)
    )
    return least_absolute(np.stack([np.ones_like(read_S), read_S], axis=1), wall_S)


def _gb_S(recording: Recording, shape: Shape) -> F64:
    size_S = shape.expert_bytes if recording.expert_mib_S is None else recording.expert_mib_S * MIB
    return np.asarray(recording.misses_S(shape.accesses, shape.expert_bytes) * size_S / 1e9)


def _running(run: _Run, devices: dict[int, Device]) -> Device:
    """The device at the run's lanes, overlapping as it did."""
    return devices[run.recording.lanes or 4].model_copy(update={"overlap": bool(run.row["overlap"])})


def _errors(runs: Sequence[_Run], devices: dict[int, Device], line: F64) -> tuple[list[float], list[float]]:
    told, lines = [], []
    for run in runs:
        device = _running(run, devices)
        told.append(errors_of(device, run.recording, run.shape, admits=run.row["cache_mb"] != "0"))
        lines.append(float(line @ [1, _gb_S(run.recording, run.shape).mean()] / run.recording.wall_S.mean() - 1))
    return told, lines


# tables of runs


def _pcie(path: Path) -> tuple[Any, ...]:
    table = pl.read_csv(path).filter((pl.col("model") == "Qwen3-30B-A3B") & (pl.col("hit_rate") < 1))
    runs = _of_table(table, "tok_s", None)
    device = fit([runs.rows(slice(0, 2))], QWEN, Known(link_gb_per_s=25.6, memory_gb_per_s=900), "card").device
    line = _line([runs.rows(slice(0, 2))], QWEN)
    rest = [runs.rows(slice(row, row + 1)) for row in range(2, len(runs.wall_S))]
    told = [errors_of(device, one, QWEN) for one in rest]
    lines = [float(line @ [1, _gb_S(one, QWEN)[0]] / one.wall_S[0] - 1) for one in rest]
    return _summary(("gpu_pcie4_wsl", "misses loaded", "Qwen3-30B-A3B", "2 of 5 rows"), told, lines)


def _desktops(path: Path) -> Iterator[tuple[Any, ...]]:
    table = pl.read_csv(path, infer_schema_length=None).filter(pl.col("hit_rate") < 1)
    machines = {
        str(name): _of_table(rows.sort("hit_rate", maintain_order=True), "decode_tok_s", "expert_mib")
        for (name,), rows in table.group_by("machine", maintain_order=True)
    }
    told, lines = [], []
    for runs in machines.values():
        if len(runs.wall_S) < 3:
            continue
        ends = runs.rows(np.array([0, len(runs.wall_S) - 1]))
        base_ms, per_gb = _not_negative(ends)
        rest = [runs.rows(slice(row, row + 1)) for row in range(1, len(runs.wall_S) - 1)]
        device = _desktop(base_ms, per_gb)
        told.append(float(np.median([abs(errors_of(device, one, FLASH_NEXT)) for one in rest])))
        lines.append(
            float(np.median([abs((base_ms + per_gb * _gb_S(one, FLASH_NEXT)[0]) / one.wall_S[0] - 1) for one in rest]))
        )
    model = "Qwen3.8-Flash-Next"
    yield _summary(("desktops, misses computed", "median row of a machine", model, "2 rows a machine"), told, lines)
    unseen, ignorant = [], []
    for name, runs in machines.items():
        others = [one for other, one in machines.items() if other != name]
        wall_ms = float(np.median(runs.wall_S))
        pooled = [_not_negative(one) for one in others]
        base_ms, per_gb = np.median([base for base, _ in pooled]), np.median([slope for _, slope in pooled])
        middle = runs.rows(slice(len(runs.wall_S) // 2, len(runs.wall_S) // 2 + 1))
        unseen.append(errors_of(_desktop(float(base_ms), float(per_gb)), middle, FLASH_NEXT))
        ignorant.append(float(np.median([np.median(one.wall_S) for one in others]) / wall_ms - 1))
    yield _summary(
        ("desktops, misses computed", "machine never seen", model, "medians of the others"), unseen, ignorant
    )


def _not_negative(runs: Recording) -> tuple[float, float]:
    """Milliseconds of a token, and of each missed GB: neither negative, and no slope from rows of one hit rate."""
    base_ms, per_gb = _line([runs], FLASH_NEXT) if np.ptp(_gb_S(runs, FLASH_NEXT)) > 0 else (-1.0, -1.0)
    if base_ms < 0 or per_gb < 0:
        return float(np.median(runs.wall_S)), 0.0
    return float(base_ms), float(per_gb)


def _desktop(base_ms: float, per_gb: float) -> Device:
    """The card reads so fast that its own part stands in `layer_overhead_us`."""
    fields = {"link_gb_per_s": 20, "setup_us": 0, "lanes": 1, "memory_gb_per_s": 1e6, "miss": "compute"}
    overhead_us = base_ms * 1e3 / FLASH_NEXT.layers
    return Device.model_validate(
        {
            **fields,
            "name": "desktop",
            "about": "-",
            "layer_overhead_us": overhead_us,
            "cpu_gb_per_s": 1e3 / max(per_gb, 1e-9),
        }
    )


def _of_table(table: pl.DataFrame, speed: str, sizes: str | None) -> Recording:
    size_S = None if sizes is None else table[sizes].fill_null(FLASH_NEXT.expert_bytes / MIB).to_numpy()
    return Recording(
        "table", 1e3 / table[speed].to_numpy(), hit_rate_S=table["hit_rate"].to_numpy(), expert_mib_S=size_S
    )
