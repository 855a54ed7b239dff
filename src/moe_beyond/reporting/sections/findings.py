"""Findings for and against the predictor, each sentence from rows of the tables."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from moe_beyond.reporting.blocks import Block, Text
from moe_beyond.reporting.names import LEAKY, LRU, PAPER_LRU, label
from moe_beyond.reporting.read import TOKEN, Run
from moe_beyond.reporting.text import Row, bounds, listed, number, percent, points, signed, texts

Finding = tuple[str, str]
"""Its tone, a key of `headings` in texts.yaml, and the sentence."""
_MOST_LATE, _MOST_USELESS = 0.25, 0.25  # shares of the prefetches


def findings(run: Run) -> list[Block]:
    """All sentences, by what they mean for the predictor."""
    found = [*_times(run), *_prefetches(run), *_recall(run), *_paper(run)]
    by_tone = {tone: tuple(sentence for kind, sentence in found if kind == tone) for tone in ("good", "bad", "open")}
    return [Text("", sentences, texts()["headings"][tone], tone) for tone, sentences in by_tone.items() if sentences]


def _tone(low: float | None, high: float | None) -> str:
    """Of a difference that is good below zero; without an interval it is open."""
    if low is None or high is None:
        return "open"
    return "good" if high < 0 else "bad" if low > 0 else "open"


def _times(run: Run) -> Iterator[Finding]:
    """By device ours against the best policy without the predictor; on the headline's, what is slower than LRU."""
    for device in run.devices:
        contest = run.contest(run.split, device)
        if (ours := contest.ours) is not None:
            said = f"{signed(ours['against_best_ms'])} ms {bounds(ours, 'against_best_ms')} a token"
            tone = _tone(ours["against_best_ms_low"], ours["against_best_ms_high"])
            yield tone, f"{label(device)}: {said} against the best policy without the predictor."
    device = run.devices[0]
    lossless = run.at(run.split, device).filter(~pl.col("bound") & ~pl.col("lossy") & (pl.col("policy") != LRU))
    slower = lossless.filter(pl.col("against_lru_ms_low") > 0)
    own = slower.filter(predictor=run.predictor)["title"].to_list()
    if slower.height:
        said = f"{slower.height} of {lossless.height} lossless policies are slower than LRU"
        yield (
            "bad" if own else "open",
            f"{label(device)}: {said}, {f'of ours {listed(own)}' if own else 'none of ours'}.",
        )


def _prefetches(run: Run) -> Iterator[Finding]:
    """The outcome of our prefetches on the headline's device, and what it moved."""
    contest = run.contest(run.split, run.devices[0])
    ours, lru, place = contest.ours, contest.lru, label(run.devices[0])
    if ours is None:
        return
    if ours["prefetches"]:
        late, useless = ours["late_share"], ours["useless_share"]
        tone = "bad" if late > _MOST_LATE or useless > _MOST_USELESS else "good"
        yield tone, f"{place}: {percent(late)} of its prefetches come late, {percent(useless)} are wasted."
    moved = f"it moves {number(ours['mib_per_token'])} MiB a token, LRU {number(lru['mib_per_token'])}"
    yield _tone(*_apart(ours, lru, "mib_per_token")), f"{place}: {moved}."
    cycle = run.card["token_cycle_experts"]
    if ours["capacity_experts"] < cycle:
        below = f"The capacity is below the {cycle} experts of one token"
        yield "open", f"{below}: LRU cannot hit, and a lead means little."


def _apart(one: Row, other: Row, column: str) -> tuple[float | None, float | None]:
    """The least and the greatest difference of two numbers by their intervals, where they have some."""
    if None in (one[f"{column}_low"], other[f"{column}_low"]):
        return None, None
    return one[f"{column}_low"] - other[f"{column}_high"], one[f"{column}_high"] - other[f"{column}_low"]


def _recall(run: Run) -> Iterator[Finding]:
    """Ours against the best baseline on each test split, and from training prompts to these."""
    whole = run.tables["quality"].filter(horizon=TOKEN, phase="all", layer="all")
    ours = pl.col("predictor") == run.predictor
    for split in run.splits:
        part = whole.filter(split=split)
        own, others = part.row(by_predicate=ours, named=True), part.filter(~ours & (pl.col("predictor") != LEAKY))
        rival = others.sort("recall_at_k", "predictor").row(-1, named=True)
        said = f"{percent(own['recall_at_k'])}, {label(rival['predictor'])} {percent(rival['recall_at_k'])}"
        tone = _tone(*_apart(rival, own, "recall"))
        yield tone, f"{label(split)}: recall@{run.card['top_k']} of {said}."
    recalls = dict(whole.filter(ours).select("split", "recall_at_k").iter_rows())
    change = recalls[run.split] - recalls["train"]
    said = f"recall@{run.card['top_k']} changes by {points(change)}"
    yield "bad" if change < 0 else "good", f"From its training prompts to {label(run.split).lower()} {said}."


def _paper(run: Run) -> Iterator[Finding]:
    """Ours against the published predictions in the paper's own replay."""
    for row in run.tables["paper_replay"].filter(split=run.split, cache=PAPER_LRU).iter_rows(named=True):
        said = f"{points(row['difference_hit_rate'])} of hit rate against the published predictions"
        tone = _tone(
            *(
                None if row[end] is None else -row[end]
                for end in ("difference_hit_rate_high", "difference_hit_rate_low")
            )
        )
        yield tone, f"The paper's replay, {number(row['capacity_experts'])} experts: {said}."
