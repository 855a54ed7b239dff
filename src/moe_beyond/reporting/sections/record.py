"""Sections about the record: data and splits, method and limits, what was run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Absent, Block, DataTable, Passage, Section
from moe_beyond.reporting.names import label
from moe_beyond.reporting.negative import negative_results
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import number, percent

SPLIT_METRICS = "reports/split/metrics.json"


def data_section(tables: Tables) -> Section:
    """Prompts by split and domain, and the contamination that splitting found."""
    lead = (
        "Prompts are split by distinct content: near duplicates and prompts with a common beginning land on one "
        "side, because a causal model routes a shared beginning identically. Every number of this page that speaks "
        "of quality comes from test splits that training and the size search never read."
    )
    return Section(
        "data",
        "Data",
        "Data and contamination",
        lead,
        (*_prompts(tables), *_split_metrics(tables), *_trained_model(tables)),
    )


def _prompts(tables: Tables) -> list[Block]:
    table = tables["prompts"]
    if table.frame is None:
        return [Absent("Prompts by split", table.absent)]
    counts = table.frame.group_by("split", "domain", maintain_order=True).agg(
        pl.len().alias("prompts"), pl.col("fingerprint").n_unique().alias("distinct")
    )
    counts = counts.sort("split", "domain")
    total = table.frame.height
    rows = tuple(
        (
            label(row["split"]),
            row["domain"],
            number(row["prompts"]),
            number(row["distinct"]),
            percent(row["prompts"] / total),
        )
        for row in counts.iter_rows(named=True)
    )
    headings = ("Split", "Domain", "Prompts", "Distinct", "Share")
    shared = _shared_fingerprints(table.frame)
    text = (
        "No prompt's fingerprint occurs both in training and in a test split."
        if shared == 0
        else f"{number(shared)} fingerprints occur both in training and in a test split: its numbers are contaminated."
    )
    return [DataTable("Prompts by split and domain", headings, rows, table.path), Passage(text)]


def _shared_fingerprints(prompts: pl.DataFrame) -> int:
    train = prompts.filter(pl.col("split") == "train")["fingerprint"].unique()
    test = prompts.filter(pl.col("split").str.starts_with("test"))["fingerprint"].unique()
    return int(test.is_in(train.to_list()).cast(pl.Int64).sum())


def _split_metrics(tables: Tables) -> list[Block]:
    metrics = tables.metrics.get("split")
    if not metrics:
        return [Absent("What splitting found", f"{SPLIT_METRICS} was not written")]
    rows = tuple((_words(key), number(value)) for key, value in metrics.items() if isinstance(value, int | float))
    return [DataTable("What splitting found", ("Measure", "Count"), rows, SPLIT_METRICS)]


def _trained_model(tables: Tables) -> list[Block]:
    """How well the stand-in learned, where the pipeline trained the traced model itself."""
    metrics = tables.metrics.get("reference", {})
    rows = tuple((_words(key), number(value)) for key, value in metrics.items() if isinstance(value, int | float))
    if not rows:
        return []
    return [DataTable("The traced model, trained here", ("Measure", "Value"), rows, "reports/reference/metrics.json")]


def _words(key: str) -> str:
    return label(key.replace(".", ", ").replace("/", ", "))


def method_section(tables: Tables, fraction: float, *, stand_in: bool, one_by_one: bool) -> Section:
    """The contract behind the numbers, and what they cannot say.

    Args:
        tables: The pipeline's tables.
        fraction: The headline capacity, of which the negative results speak.
        stand_in: The traced model is the small one that the pipeline trains for itself.
        one_by_one: Prefill was replayed as if its tokens had been decoded.
    """
    steps = (
        "Every token is one step, those of the prefill too, as if they had been decoded: such traces hold little else."
        if one_by_one
        else "A prompt's prefill is one step and each decoded token is one step."
    )
    contract = Passage(
        title="Replay",
        points=(
            f"{steps} In each step and layer, the experts that all tokens of the step want form one event.",
            "Hits are judged on what is resident when the event starts. Eviction follows after its end and never "
            "touches what the event itself used.",
            "A prefetched expert counts as resident for its event whether or not a link could have brought it in "
            "time: hit rates with prefetch are what an unlimited link would give. Bytes, and times where they are "
            "modelled, tell the rest.",
            "Bytes count demand loads and prefetches alike, useful or not.",
            "The predictor is causal: it sees this and earlier tokens of the prompt and the routing of earlier "
            "tokens, never the routing that it is asked for.",
        ),
    )
    limits = [
        "Hit rate is not speed. A prefetch that saturates the link can slow a device down while its hit rate rises.",
        "Recall and hit rate are of this model's routing on these prompts; another model, tokenizer or quantisation "
        "routes otherwise.",
        "Intervals come from resampling prompts. They cover the choice of prompts, not the choice of seed: the "
        "predictor was trained once.",
    ]
    if tables.times is None:
        limits.append(
            "Times per token are not modelled in this run, so nothing here says how many tokens per second are gained."
        )
    if len(tables.splits) == 1:
        limits.append("There is one test split only, so nothing here says how the predictor fares on another domain.")
    if stand_in:
        limits.append(
            "The traced model is a small stand-in trained in minutes. Its routing is largely lexical; it shows that "
            "the pipeline works, not what a production model would give."
        )
    if tables.lossy:
        limits.append(
            "What lossy policies do to the model's answers is not measured: only the router's weight that they give up."
        )
    negative = negative_results(tables, fraction)
    blocks: list[Block] = [contract]
    if negative:
        blocks.append(Passage(title="Negative results", points=negative))
    return Section(
        "method", "Method", "Method and limits", blocks=(*blocks, Passage(title="Limits", points=tuple(limits)))
    )


def run_section(tables: Tables, summary: Mapping[str, Any]) -> Section:
    """Model, parameters, versions, commit and the MLflow runs behind the files.

    Args:
        tables: The pipeline's tables, with the receipts of its stages.
        summary: Groups of facts by heading; a value is a mapping of names to scalars, or one scalar.
    """
    blocks: list[Block] = []
    scalars = {key: value for key, value in summary.items() if not isinstance(value, Mapping)}
    for heading, facts in (
        {"This run": scalars} | {k: v for k, v in summary.items() if isinstance(v, Mapping)}
    ).items():
        rows = tuple((str(key), _plain(value)) for key, value in facts.items())
        if rows:
            blocks.append(DataTable(heading, ("Name", "Value"), rows))
    if tables.receipts:
        runs = tuple(
            (stage, str(receipt.get("run_id", "")), f"reports/{stage}/run.json")
            for stage, receipt in tables.receipts.items()
        )
        blocks.append(DataTable("MLflow run behind each stage's files", ("Stage", "Run", "Receipt"), runs))
    else:
        blocks.append(Absent("MLflow runs", "no stage has left a receipt (reports/*/run.json)"))
    return Section("run", "What was run", "What was run", blocks=tuple(blocks))


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return "none" if value is None else str(value)
