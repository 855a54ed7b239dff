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
from moe_beyond.registry.revisions import State, revision, workspace
from moe_beyond.reporting.compare import Cell, differing_params, headline

_MEANING = {
    "first": "the first champion",
    "promoted": "**champion**: it beats the one before",
    "refused": "refused: the champion stays",
    "unchanged": "nothing new: this predictor is the champion already",
    "incomparable": "not comparable: the champion stays",
}
_FIGURES = ("hit_rate_test_in_domain", "hit_rate_test_out_of_domain", "recall_by_layer_test_out_of_domain")


def write_report(root: Path, base: str, out: Path) -> None:
    """Write the report of the pipeline's state in a folder.

    Args:
        root: The project's root, after `dvc repro`.
        base: Git revision to hold the numbers against; where there is none, the report says so.
        out: The Markdown file, relative to the root.

    Raises:
        InputError: The publish stage has not run.
    """
    verdict_file = root / "reports" / "publish" / "verdict.json"
    if not verdict_file.exists():
        raise InputError(f"{verdict_file}: no such file; run dvc repro first")
    verdict = json.loads(verdict_file.read_text(encoding="utf-8"))
    receipt = json.loads((root / "reports" / "publish" / "run.json").read_text(encoding="utf-8"))
    now = workspace(root)
    lines = ["# Retraining", "", *verdict_lines(verdict, receipt["run_id"]), "", *_gate_table(now), ""]
    try:
        lines += difference_lines(revision(root, base), now)
    except InputError as error:
        lines += ["## Against an earlier state", "", f"Not available: {error}."]
    lines += ["", *_figures(root, (root / out).parent)]
    with replacing(root / out) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def verdict_lines(verdict: dict[str, Any], run_id: str) -> list[str]:
    """The gate's decision with its reasons and rules."""
    lines = [
        f"`{verdict['registered_model']}` version {verdict['challenger']}: {_MEANING[verdict['outcome']]}.",
        "",
        *(f"- {reason}" for reason in verdict["reasons"]),
        "",
        f"Champion before: {verdict['champion_before'] or 'none'}; now: {verdict['champion'] or 'none'}. MLflow run of "
        f"the stage: `{run_id}`.",
    ]
    if verdict["checks"]:
        rows = [
            f"| {check['rule']} | {check['value']:.4g} | {check['limit']:.4g} | {'yes' if check['passed'] else 'no'} |"
            for check in verdict["checks"]
        ]
        lines += ["", "| rule of the gate | found | limit | holds |", "| --- | --- | --- | --- |", *rows]
    return lines


def difference_lines(before: State, now: State) -> list[str]:
    """Parameters and headline numbers against an earlier state."""
    lines = [f"## Against {before.name}", "", f"{before.about}."]
    changed = differing_params([before, now])
    if changed:
        rows = [f"| `{key}` | {_code(values[0])} | {_code(values[1])} |" for key, values in changed]
        lines += ["", f"| parameter | {before.name} | now |", "| --- | --- | --- |", *rows]
    else:
        lines += ["", "No parameter differs."]
    rows = [f"| {row.title} | {_text(row.cells[0])} | {_text(row.cells[1])} | {_change(row.cells)} |"
            for row in headline([before, now])]  # fmt: skip
    lines += ["", f"| number (95 % interval) | {before.name} | now | change |", "| --- | --- | --- | --- |", *rows]
    lines += [f"- not there in {state.name}: {why}" for state in (before, now) for why in state.missing.values()]
    return lines


def _gate_table(now: State) -> list[str]:
    gate = now.tables.get("gate")
    if gate is None:
        return []
    wide = gate.filter(pl.col("split") != "all").pivot("contestant", index=["split", "metric"], values="value")
    sides = [name for name in ("challenger", "champion") if name in wide.columns]
    rows = [
        f"| {row['split']} | {row['metric']} | {' | '.join(_number(row[side]) for side in sides)} |"
        for row in wide.iter_rows(named=True)
    ]
    return [f"| split | metric | {' | '.join(sides)} |", "| --- " * (2 + len(sides)) + "|", *rows]


def _figures(root: Path, beside: Path) -> list[str]:
    """Pictures by paths relative to the report: CML's commands publish such files with the comment."""
    files = [root / "reports" / "figures" / f"{name}.png" for name in _FIGURES]
    present = [file for file in files if file.exists()]
    links = [f"![{file.stem.replace('_', ' ')}]({Path(relpath(file, beside)).as_posix()})" for file in present]
    return ["## Curves", "", *links] if links else []


def _code(value: str | None) -> str:
    return "" if value is None else f"`{value}`"


def _text(cell: Cell | None) -> str:
    return "" if cell is None else cell.text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _change(cells: Sequence[Cell | None]) -> str:
    before, now = cells
    return "" if before is None or now is None else f"{now.value - before.value:+.3g}"
