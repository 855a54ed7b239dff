"""The outcome of a retraining as Markdown: for a comment on a pull request, a job's summary, or a person."""

from __future__ import annotations

import json
from os.path import relpath
from pathlib import Path
from typing import Any

import polars as pl

from moe_beyond.errors import InputError
from moe_beyond.files import begins_with, check_output, replacing
from moe_beyond.registry.markdown import render
from moe_beyond.registry.states import revision, workspace
from moe_beyond.reporting.compare import Number, differing_params, numbers, text

_FIGURES = ("ms_per_token", "recall_by_layer")


def write_report(root: Path, base: str, out: Path, defaults: dict[str, Any]) -> None:
    """Write the report of the pipeline's state in a folder.

    Args:
        root: The project's root, after `dvc repro`.
        base: Git revision to compare with; where there is none, the report says so.
        out: The Markdown file, relative to the root.
        defaults: Parameters that a params.yaml does not set, flat.

    Raises:
        InputError: The publish stage has not run, or something else stands at `out`.
    """
    check_output(root / out, ours=begins_with(b"# Retraining"))
    reports = root / "reports" / "publish"
    if not (reports / "verdict.json").exists():
        raise InputError(f"{reports / 'verdict.json'}: no such file; run dvc repro first")
    verdict = json.loads((reports / "verdict.json").read_text(encoding="utf-8"))
    values: dict[str, Any] = {"before": None}
    try:
        before, now = revision(root, base, defaults), workspace(root, defaults, "now")
        params = [[f"`{key}`", *map(_code, found)] for key, found in differing_params([before, now])]
        rows = [[name, *map(text, found), _change(*found)] for name, found in numbers([before, now])]
        values = {"before": before, "now": now, "params": params, "numbers": rows}
    except InputError as error:
        values["unavailable"] = error
    sides, gate_rows = _gate_rows(pl.read_csv(reports / "table.csv", glob=False))
    report = render(
        "retrain.md.j2",
        verdict=verdict,
        rules=[
            [check["rule"], f"{check['value']:.4g}", f"{check['limit']:.4g}", "yes" if check["passed"] else "no"]
            for check in verdict["checks"]
        ],
        sides=sides,
        gate_rows=gate_rows,
        figures=_figures(root, (root / out).parent),
        **values,
    )
    with replacing(root / out) as temporary:
        temporary.write_text(report, encoding="utf-8")


def _gate_rows(table: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The contestants, and a row a split of the gate and metric with the value of each."""
    wide = table.filter(pl.col("split") != "all").pivot("contestant", index=["split", "metric"], values="value")
    rows = [[split, metric, *(f"{value:.4g}" for value in values)] for split, metric, *values in wide.iter_rows()]
    return wide.columns[2:], rows


def _figures(root: Path, beside: Path) -> list[tuple[str, str]]:
    """Titles, and paths relative to the report: CML's commands publish such files with the comment."""
    files = [root / "reports" / "figures" / f"{name}.png" for name in _FIGURES]
    present = [file for file in files if file.exists()]
    return [(file.stem.replace("_", " "), Path(relpath(file, beside)).as_posix()) for file in present]


def _code(value: str | None) -> str:
    return "" if value is None else f"`{value}`"


def _change(before: Number | None, now: Number | None) -> str:
    return "" if before is None or now is None else f"{now['value'] - before['value']:+.3g}"
