"""Measured live: the model itself decoded beside the replay's times, and what lossy policies do to its output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from moe_beyond.reporting.blocks import Block, Figure, Section, Text, section, table
from moe_beyond.reporting.columns import cells
from moe_beyond.reporting.figures.charts import frontier
from moe_beyond.reporting.names import LRU, label
from moe_beyond.reporting.read import Run
from moe_beyond.reporting.text import Row, number, percent, points, texts

_ROUNDING = 1e-9  # nats: what float32 kernels differ by; below it a policy changes nothing
_FOUND = "What was found"


def live_section(run: Run) -> Section:
    """Measured beside modelled, then the quality that lossy policies give up for time; or why there is neither."""
    if "measured" not in run.live:
        reasons = run.live["not_verified"]["reason"] if run.live else [texts()["live"]["not_run"]]
        return section("live", [], reason=reasons[0])
    (link,), measured, quality = run.live["link"].to_dicts(), run.live["measured"], judged(run)
    place = f"{label(link['device'])}, {number(link['capacity'])} experts, {label(link['split']).lower()}"
    blocks: list[Block] = [
        table(f"Measured and modelled: {place}", with_error(measured), cells("measured")),
        Text("", tuple(_measured(run, measured, link)), _FOUND),
        Text(texts()["live"]["quality"]),
        table(f"What lossy policies change: {place}", quality, cells("lossy")),
        table(f"What they save: {place}", quality, cells("saved")),
        *_frontier(quality, place),
        Text("", tuple(_lossy(quality)), _FOUND),
    ]
    named = {"device": label(link["device"]), "gb_per_s": number(link["gb_per_s"])}
    return section("live", blocks, capacity=number(link["capacity"]), split=label(link["split"]).lower(), **named)


def with_error(measured: pl.DataFrame) -> pl.DataFrame:
    """With `time_error`, the modelled time over the measured one, less 1."""
    return measured.with_columns(time_error=pl.col("modelled_ms_per_token") / pl.col("ms_per_token") - 1)


def _measured(run: Run, measured: pl.DataFrame, link: dict[str, Any]) -> Iterator[str]:
    """Whether the replay is right about events, outputs, times and hit rates, and about ours against LRU."""
    lossless, compared = measured.filter(~pl.col("lossy")), measured.filter(pl.col("events_that_differ").is_not_null())
    differ, events = (sum(compared[name].to_list()) for name in ("events_that_differ", "events"))
    yield f"{number(differ)} of {number(events)} events on demand have other hits than the replay says."
    most = max(lossless["greatest_logit_difference"].to_list())
    yield f"Under lossless policies no logit is further than {number(most)} from the full model's."
    rows = {row["policy"]: row for row in with_error(measured).iter_rows(named=True)}
    for row in rows.values():
        if row["policy"] != LRU:
            hits = points(row["modelled_hit_rate"] - row["hit_rate"])
            time = _than(row["time_error"], "too long", "too short")
            yield f"{row['title']}: the modelled time is {time}, the modelled hit rate differs by {hits}."
    chosen = run.timed.filter("ours", split=link["split"], device=link["device"], capacity_experts=link["capacity"])
    for own in (rows[name] for name in chosen["policy"] if name in rows):
        changes = (own[name] / rows[LRU][name] - 1 for name in ("ms_per_token", "modelled_ms_per_token"))
        measured_ms, modelled_ms = (_than(change, "slower", "faster") for change in changes)
        yield f"Ours is {measured_ms} than LRU as measured, {modelled_ms} as modelled."


def _than(share: float, more: str, less: str) -> str:
    return f"{percent(abs(share))} {more if share > 0 else less}"


def judged(run: Run) -> pl.DataFrame:
    """The table of quality, least time first.

    Adds `title`; `lossless` where nothing is changed beyond rounding; `change` of time from the fastest such row, of
    which `live.lossy.all_cases` has one; `better`, the title of the fastest row that is faster and nearer, null on the
    frontier.
    """
    titles = dict(run.tables["unlimited_link"].select("policy", "title").unique(maintain_order=True).iter_rows())
    rows = run.live["quality"].sort("ms_per_token", "kl", maintain_order=True).to_dicts()
    for row in rows:
        row |= {"title": titles.get(row["policy"], label(row["policy"])), "lossless": row["kl"] < _ROUNDING}
    base = next(row["ms_per_token"] for row in rows if row["lossless"])
    for row in rows:
        row["better"] = next((one["title"] for one in rows if _beats(one, row)), None)
        row["change"] = row["ms_per_token"] / base - 1
    return pl.DataFrame(rows, infer_schema_length=None, schema_overrides={"better": pl.String})


def _beats(one: Row, other: Row) -> bool:
    return bool(one["ms_per_token"] < other["ms_per_token"] and one["kl"] < other["kl"])


def _frontier(quality: pl.DataFrame, place: str) -> list[Figure]:
    lossy = quality.filter(~pl.col("lossless"))
    if lossy.is_empty():
        return []
    ends = [f"{row['title']} {number(row['ms_per_token'])} ms at {number(row['kl'])}" for row in _front(lossy)]
    title = f"Quality given up for time: {place}"
    alt = f"Scatter chart of ms per token over the divergence from the full model. Frontier: {'; '.join(ends)}."
    chart = frontier(lossy.with_columns(on_front=pl.col("better").is_null()), quality.filter("lossless").head(1))
    return [Figure("frontier", title, alt, chart, table(title, quality, cells("saved")), {}, wide=True)]


def _front(rows: pl.DataFrame) -> list[dict[str, Any]]:
    return rows.filter(pl.col("better").is_null()).sort("kl").to_dicts()


def _lossy(quality: pl.DataFrame) -> Iterator[str]:
    """The fastest within each bound on the divergence; then a sentence a policy."""
    lossy = quality.filter(~pl.col("lossless"))
    best = [
        f"up to {number(row['kl'])} nats {row['title']} ({number(row['ms_per_token'])} ms)" for row in _front(lossy)
    ]
    if best:
        yield f"The fastest, by the divergence that is accepted: {'; '.join(best)}."
        moved = lossy.select((pl.col("perplexity") / pl.col("perplexity_full") - 1).abs().max()).item()
        yield f"No policy moves the perplexity by more than {percent(moved)}."
    for row in lossy.iter_rows(named=True):
        time, changed = _than(row["change"], "slower", "faster"), percent(1 - row["top1_agreement"])
        yield f"{row['title']}: {time} than without loss, another first choice for {changed} of tokens; {_worth(row)}."


def _worth(row: Row) -> str:
    if row["change"] > 0:
        return "it changes the output and saves nothing"
    return f"{row['better']} is faster and changes less" if row["better"] else "none is both faster and nearer"
