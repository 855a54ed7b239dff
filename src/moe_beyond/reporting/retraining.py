"""What a retraining came to, as Markdown: for a comment on a pull request, a job's summary, or a person."""

from __future__ import annotations

import json
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path
from typing import Any

import polars as pl

from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.registry.states import State, revision, workspace
from moe_beyond.reporting.compare import Number, differing_params, numbers, text

_MEANING = {
    "first": "the first champion",
    "promoted": "**champion**: it beats the one before",
    "refused": "refused: the champion stays",
    "unchanged": "nothing new: this predictor is the champion already",
    "incomparable": "not comparable: the champion stays",
    "pending": "not judged yet: the next `dvc repro` does it",
}
_FIGURES = ("ms_per_token", "hit_rate_on_device", "recall_by_layer")


def write_report(root: Path, base: str, out: Path, defaults: dict[str, Any]) -> None:
    """Write the report of the pipeline's state in a folder.

    Args:
        root: The project's root, after `dvc repro`.
        base: Git revision to compare with; where there is none, the report says so.
        out: The Markdown file, relative to the root.
        defaults: Parameters that a params.yaml does not set, flat.

    Raises:
        InputError: The publish stage has not run.
    """
    reports = root / "reports" / "publish"
    if not (reports / "verdict.json").exists():
        raise InputError(f"{reports / 'verdict.json'}: no such file; run dvc repro first")
    verdict = json.loads((reports / "verdict.json").read_text(encoding="utf-8"))
    lines = ["# Retraining", "", *verdict_lines(verdict), "", *gate_lines(pl.read_csv(reports / "table.csv")), ""]
    try:
        lines += difference_lines(revision(root, base, defaults), workspace(root, defaults, "now"))
    except InputError as error:
        lines += ["## Against an earlier state", "", f"Not available: {error}."]
    lines += ["", *_figures(root, (root / out).parent)]
    with replacing(root / out) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def verdict_lines(verdict: dict[str, Any]) -> list[str]:
    """The gate's decision with its reasons and rules."""
    version = f"version {verdict['challenger']}" if verdict["challenger"] else "the new version"
    lines = [
        f"`{verdict['registered_model']}` {version}: {_MEANING[verdict['outcome']]}.",
        "",
        *(f"- {reason}" for reason in verdict["reasons"]),
        "",
        f"Champion before: {verdict['champion_before'] or 'none'}; now: {verdict['champion'] or 'none'}. MLflow run of "
        f"this state: `{verdict['pipeline_run']}`.",
    ]
    rows = [
        (check["rule"], f"{check['value']:.4g}", f"{check['limit']:.4g}", "yes" if check["passed"] else "no")
        for check in verdict["checks"]
    ]
    return [*lines, "", *_table(("rule of the gate", "found", "limit", "holds"), rows)] if rows else lines


def gate_lines(table: pl.DataFrame) -> list[str]:
    """Challenger and champion on each split of the gate."""
    rows = table.filter(pl.col("split") != "all")
    if rows.is_empty():
        return []
    wide = rows.pivot("contestant", index=["split", "metric"], values="value")
    sides = wide.columns[2:]
    return _table(
        ("split of the gate", "metric", *sides),
        [(row["split"], row["metric"], *(f"{row[side]:.4g}" for side in sides)) for row in wide.iter_rows(named=True)],
    )


def difference_lines(before: State, now: State) -> list[str]:
    """Parameters that differ from an earlier state's, and the numbers that decide beside its own."""
    lines = [f"## Against {before.name}", "", f"{before.about}.", ""]
    changed = [(f"`{key}`", *map(_code, values)) for key, values in differing_params([before, now])]
    lines += _table(("parameter", before.name, now.name), changed) if changed else ["No parameter differs."]
    rows = [(name, *map(text, found), _change(*found)) for name, found in numbers([before, now])]
    return [*lines, "", *_table(("number (95 % interval)", before.name, now.name, "change"), rows)]


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heading, ("---",) * len(heading), *rows)]


def _figures(root: Path, beside: Path) -> list[str]:
    """Pictures by paths relative to the report: CML's commands publish such files with the comment."""
    files = [root / "reports" / "figures" / f"{name}.png" for name in _FIGURES]
    present = [file for file in files if file.exists()]
    links = [f"![{file.stem.replace('_', ' ')}]({Path(relpath(file, beside)).as_posix()})" for file in present]
    return ["## Curves", "", *links] if links else []


def _code(value: str | None) -> str:
    return "" if value is None else f"`{value}`"


def _change(before: Number | None, now: Number | None) -> str:
    return "" if before is None or now is None else f"{now['value'] - before['value']:+.3g}"
