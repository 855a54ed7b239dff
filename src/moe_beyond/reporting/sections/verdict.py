"""The top of the page: what the predictor is worth on a device, beside LRU, the best without it, and the bound."""

from __future__ import annotations

from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Block, Folded, Section, Table, section, table
from moe_beyond.reporting.columns import capacity, cells
from moe_beyond.reporting.names import BOUND, label
from moe_beyond.reporting.read import Contest, Run
from moe_beyond.reporting.sections.findings import findings
from moe_beyond.reporting.text import (
    MISSING,
    Row,
    bounds,
    number,
    percent,
    signed,
    texts,
)


def verdict_section(run: Run) -> Section:
    """The headline's device and split first, the others folded."""
    contests = [run.contest(split, device) for split, device in run.places]
    if not contests:
        return section("verdict", [])
    blocks = [*_four_rows(contests[0]), *findings(run)]
    blocks += [Folded(caption(contest), tuple(_four_rows(contest))) for contest in contests[1:]]
    verdict = texts()["verdicts"][run.card["verdict"]]
    title = headline(contests[0])
    return section(
        "verdict", blocks, title, model=run.card["model_id"], verdict=verdict, split=label(run.split).lower()
    )


def headline(contest: Contest) -> str:
    """What the predictor is worth on a device, in a sentence."""
    place = f"{label(contest.device)}, {capacity(contest.lru)} in fast memory"
    ours = contest.ours
    if ours is None:
        return f"{place}: no use of the predictor was timed"
    ms = f"{place}: {number(ours['ms_per_token'])} ms a token with our predictor"
    if _decided(ours, "against_lru_ms") != "faster":
        return f"{ms}, no faster than LRU"
    won = f"{ms}, {number(-ours['against_lru_ms'])} ms less than LRU"
    if _decided(ours, "against_best_ms") != "faster":
        return f"{won}, but no less than the best policy without it"
    return f"{won} and {number(-ours['against_best_ms'])} ms less than the best policy without it"


def caption(contest: Contest) -> str:
    """Where a contest was."""
    return f"{label(contest.device)}, {capacity(contest.lru)}, {label(contest.split).lower()}"


def _four_rows(contest: Contest) -> list[Block]:
    """LRU, the best without the predictor, ours, the bound; and how ours differs on the same prompts."""
    ours = contest.ours or {}
    named = [
        ("LRU", contest.lru, MISSING),
        (f"Best without the predictor: {contest.best['title']}", contest.best, "with hindsight, on these prompts"),
        (f"Ours: {ours.get('title')}", ours, "on validation prompts"),
        (BOUND, _bound(contest.lru), MISSING),
    ]
    rows = [row | {"name": name, "chosen": chosen} for name, row, chosen in named if row]
    shown = table(caption(contest), pl.DataFrame(rows, infer_schema_length=None), cells("four_rows"), chosen="ours")
    return [shown, _differences(ours, contest.best["title"])] if ours else [shown]


def _bound(lru: dict[str, Any]) -> dict[str, Any]:
    """The clairvoyant bound as a row: what it has no number for is empty."""
    nothing = dict.fromkeys(lru)
    bound = {name: lru[f"bound_{name}"] for name in ("ms_per_token", "hit_rate", "mib_per_token")}
    return nothing | bound | {"tokens_per_second": 1000 / bound["ms_per_token"]}


def _differences(ours: dict[str, Any], best: str) -> Table:
    columns = {"LRU": "against_lru_ms", best: "against_best_ms"}
    rows = tuple(
        (name, f"{signed(ours[column])} {bounds(ours, column)}", _decided(ours, column))
        for name, column in columns.items()
    )
    closed = f"{percent(ours['gap_closed'])} {bounds(ours, 'gap_closed', percent)}".strip()
    headings = ("Against", "Difference, ms per token", "Ours is")
    return Table(f"On the same prompts, ours closes {closed} of the gap between LRU and the bound", headings, rows)


def _decided(row: Row, column: str) -> str:
    """What a paired difference in time means: its 95 % interval lies on one side of zero, or decides nothing."""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    if low is None or high is None:
        return "undecided"
    return "faster" if high < 0 else "slower" if low > 0 else "undecided"
