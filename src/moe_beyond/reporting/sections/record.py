"""The record: data and splits, method and limits, the parameters of the replay."""

from __future__ import annotations

import polars as pl

from moe_beyond.reporting.blocks import Block, Section, Table, Text, folded, section, table, texts
from moe_beyond.reporting.names import label
from moe_beyond.reporting.read import Run
from moe_beyond.reporting.text import Cell, number, of, plain, words
from moe_beyond.settings import flatten

_COUNTS = {
    "split": "What splitting found",
    "extract": "What was recorded",
    "reference": "The traced model, trained here",
}


def data_section(run: Run) -> Section:
    """Where prompts come from, how they were split, and the contamination that was found."""
    counts = run.prompts.group_by("split", "domain", maintain_order=True).agg(
        prompts=pl.len(), distinct=pl.col("fingerprint").n_unique()
    )
    cells: dict[str, Cell] = {
        "Split": lambda row: label(row["split"]),
        "Domain": words("domain"),
        "Prompts": of("prompts"),
        "Distinct": of("distinct"),
    }
    shown = table("Prompts by split and domain", counts.sort("split", "domain"), cells)
    facts = [_facts(caption, flatten(run.metrics[stage])) for stage, caption in _COUNTS.items() if run.metrics[stage]]
    blocks: list[Block] = [shown, Text(_shared(run)), *folded("Counts", facts)]
    return section("data", blocks, source=run.card["source"], licence=run.card["licence"])


def _shared(run: Run) -> str:
    """Whether a test prompt is also a training prompt."""
    trained = run.prompts.filter(split="train")["fingerprint"].implode()
    both = run.prompts.filter(pl.col("split").is_in(run.splits) & pl.col("fingerprint").is_in(trained)).height
    if both:
        return f"{number(both)} test prompts are training prompts too: figures of these splits are contaminated."
    return "No test prompt is also a training prompt."


def _facts(caption: str, facts: dict[str, object]) -> Table:
    rows = tuple((label(key.replace(".", ", ")), plain(key, value)) for key, value in facts.items())
    return Table(caption, ("Name", "Value"), rows)


def method_section(run: Run) -> Section:
    """What the numbers mean, what they cannot say, and the parameters behind them."""
    fixed, settings = texts(), run.settings
    points = {
        "Method": [fixed["prefill"][settings.prefill], *fixed["method_points"], *_assumed(run)],
        "Limits": [
            *fixed["limits"],
            *(fixed["limits_reference"] if run.source == "reference" else []),
            *(fixed["limits_one_split"] if len(run.splits) == 1 else []),
        ],
        "Words": fixed["words"],
    }
    blocks: list[Block] = [Text("", tuple(said), title) for title, said in points.items()]
    return section("method", [*blocks, *folded("Parameters", [_facts("Parameters", run.parameters)])])


def _assumed(run: Run) -> list[str]:
    size = run.settings.timed_expert_mib
    said = [f"Prefetches are under way for at most {run.settings.lookahead_layers} layers beyond the present one."]
    return (
        said if size is None else [*said, f"Every expert is timed as if it had {number(size)} MiB, whatever its size."]
    )
