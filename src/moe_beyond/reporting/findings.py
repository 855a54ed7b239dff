"""What the tables say, in sentences, whether it flatters or not.

Every sentence is computed; none is written for a result that was expected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from moe_beyond.reporting.headline import (
    CacheRow,
    Contest,
    Score,
    ahead_of_published,
    asked_ahead_of,
    beside_published,
    by_layer,
    contest,
    hardest_split,
    recall_name,
    scores,
    split_label,
)
from moe_beyond.reporting.names import is_learned, label, sees_the_future
from moe_beyond.reporting.tables import Tables
from moe_beyond.reporting.text import interval, listed, mib, number, percent, points

Tone = Literal["good", "bad", "neutral"]
_NOTABLE_WASTE = 0.5  # more than half of the prefetched experts unused is worth a sentence of its own


@dataclass(frozen=True)
class Finding:
    """One sentence, how it bears on the predictor, and the table behind it."""

    tone: Tone
    text: str
    source: str


def findings(tables: Tables, fraction: float) -> list[Finding]:
    """All findings: prediction first, then caching, per split."""
    found: list[Finding] = []
    for split in tables.splits:
        found += prediction_findings(tables, split)
    found += generalisation_findings(tables)
    for split in tables.splits:
        result = contest(tables, split, fraction)
        if result is not None:
            found += cache_findings(tables, result)
    found += published_findings(tables)
    return found + cycle_findings(tables, fraction) + timing_findings(tables) + comparison_findings(tables)


def prediction_findings(tables: Tables, split: str) -> list[Finding]:
    """The trained predictor against the best baseline, overall and layer by layer."""
    rows = scores(tables, split)
    ours = [row for row in rows if is_learned(row.predictor)]
    baselines = [row for row in rows if not is_learned(row.predictor) and not sees_the_future(row.predictor)]
    if not ours or not baselines:
        return []
    mine, rival = ours[0], max(baselines, key=lambda row: row.recall)
    text = (
        f"On {split_label(split)} the predictor's {recall_name(tables)} is {_score(mine)}; the best baseline, "
        f"{label(rival.predictor).lower()}, has {_score(rival)} ({points(mine.recall - rival.recall)})."
    )
    apart = mine.low is None or rival.high is None or mine.low > rival.high
    if mine.recall > rival.recall and not apart:
        text += " Their intervals overlap, so this split alone does not decide it."
    tone: Tone = "bad" if mine.recall <= rival.recall else "good" if apart else "neutral"
    source = tables["quality"].path
    return [Finding(tone, text, source), *_lost_layers(tables, split, mine.predictor, source)]


def _score(score: Score) -> str:
    return " ".join(part for part in (percent(score.recall), interval(score.low, score.high)) if part)


def _lost_layers(tables: Tables, split: str, ours: str, source: str) -> list[Finding]:
    rows = by_layer(tables["quality"].rows, split)
    mine = rows.filter(pl.col("predictor") == ours).select("layer", mine="recall_at_k")
    others = rows.filter(pl.col("predictor").is_in(_causal_rivals(tables)))
    beaten = others.join(mine, on="layer").filter(pl.col("recall_at_k") >= pl.col("mine"))
    if beaten.is_empty():
        return []
    layers = [str(layer) for layer in beaten["layer"].unique().sort().to_list()]
    names = listed([label(name).lower() for name in beaten["predictor"].unique().sort().to_list()])
    where = f"{len(layers)} of {mine.height} layers ({listed(layers, 12)})"
    text = f"In {where} {names} is at least as good on {split_label(split)}."
    return [Finding("bad", text, source)]


def _causal_rivals(tables: Tables) -> list[str]:
    return [name for name in tables.predictors if not is_learned(name) and not sees_the_future(name)]


def generalisation_findings(tables: Tables) -> list[Finding]:
    """How much recall changes from training prompts to held-out ones, and from there to another domain."""
    ours = tables.learned_predictor
    if ours is None:
        return []
    names = ("train", "test_in_domain", "test_out_of_domain")
    recall = {name: next((row.recall for row in scores(tables, name) if row.predictor == ours), None) for name in names}
    steps = {
        ("train", "test_in_domain"): "From the prompts it was trained on to held-out ones",
        ("test_in_domain", "test_out_of_domain"): "From its own domain to another",
    }
    found = []
    for (before, after), words in steps.items():
        first, second = recall[before], recall[after]
        if first is not None and second is not None:
            change = f"{'loses' if second < first else 'gains'} {100 * abs(second - first):.1f} points"
            text = f"{words} the predictor {change} of {recall_name(tables)}."
            found.append(Finding("bad" if second < first else "good", text, tables["quality"].path))
    return found


def published_findings(tables: Tables) -> list[Finding]:
    """Ours against the published predictions under the paper's protocol, at its smallest cache."""
    table = tables["published_protocol"]
    if table.frame is None:
        return []
    found = []
    asked = asked_ahead_of(tables)
    for split in table.frame["split"].unique(maintain_order=True).to_list():
        for row in beside_published(tables, split).head(1).iter_rows(named=True):
            gain = row["hit_rate"] - row["hit_rate_paper"]
            text = (
                f"Under the paper's own protocol, at {number(row['capacity_experts'])} experts on "
                f"{split_label(split)}, our predictor, asked ahead of each {asked}, hits {percent(row['hit_rate'])}; "
                "the predictions that the "
                f"paper's authors published hit {percent(row['hit_rate_paper'])} ({points(gain)})."
            )
            tones: dict[int, Tone] = {1: "good", 0: "neutral", -1: "bad"}
            tone = tones[ahead_of_published(row)]
            found.append(Finding(tone, text, table.path))
    return found


def cache_findings(tables: Tables, result: Contest) -> list[Finding]:
    """Hit rate and bytes of ours against the best other policy, and at how many capacities that holds."""
    ours, rival, source = result.ours, result.rival, tables["replay"].path
    where = f"at {percent(ours.capacity_fraction, 0)} capacity on {split_label(result.split)}"
    gain = ours.hit_rate - rival.hit_rate
    text = (
        f"Prefetching by the predictor hits {percent(ours.hit_rate)} {where}; {label(rival.policy)} hits "
        f"{percent(rival.hit_rate)} ({points(gain)})."
    )
    found = [Finding("good" if gain > 0 else "bad", text, source)]
    if result.demand is not None:
        found.append(_bytes_finding(result, result.demand, where, source))
    if ours.prefetches and ours.useless > _NOTABLE_WASTE * ours.prefetches:
        waste = percent(ours.useless / ours.prefetches, 0)
        found.append(
            Finding("bad", f"{waste} of the experts it prefetched were not used before they left {where}.", source)
        )
    return found + _lost_capacities(tables, result)


def _bytes_finding(result: Contest, demand: CacheRow, where: str, source: str) -> Finding:
    ours = result.ours
    rival = f"{mib(demand.mib_per_token)} with {label(demand.policy)}, the best policy without prefetch"
    if ours.mib_per_token > demand.mib_per_token:
        text = (
            f"Prefetch moves more bytes than it saves {where}: {mib(ours.mib_per_token)} per token against {rival}. "
            "It can pay in time only where the link would otherwise idle."
        )
    else:
        text = f"It also moves no more bytes {where}: {mib(ours.mib_per_token)} per token against {rival}."
    if ours.loads_avoided is not None and result.bound is not None and result.bound.loads_avoided:
        share = ours.loads_avoided / result.bound.loads_avoided
        avoided = f"avoids {percent(share, 0)} of the loads that perfect foresight avoids"
        said = avoided if share > 0 else "loads more than a cache that never hits"
        text += f" Counting every load, prefetched ones too, it {said}."
    return Finding("bad" if ours.mib_per_token > demand.mib_per_token else "good", text, source)


def _lost_capacities(tables: Tables, result: Contest) -> list[Finding]:
    rows = tables["replay"].rows.filter(pl.col("split") == result.split)
    mine = rows.filter(pl.col("policy") == result.ours.policy).select("capacity_experts", mine="hit_rate")
    rivals = [name for name in tables.policies if tables.can_win(name) and not is_learned(name)]
    best = rows.filter(pl.col("policy").is_in(rivals)).group_by("capacity_experts").agg(pl.col("hit_rate").max())
    lost = best.join(mine, on="capacity_experts").filter(pl.col("hit_rate") > pl.col("mine")).sort("capacity_experts")
    if lost.is_empty():
        return []
    sizes = listed([number(size) for size in lost["capacity_experts"].to_list()])
    text = (
        f"At {lost.height} of {mine.height} capacities ({sizes} experts) a policy without the trained predictor hits "
        f"more on {split_label(result.split)}."
    )
    return [Finding("bad", text, tables["replay"].path)]


def cycle_findings(tables: Tables, fraction: float) -> list[Finding]:
    """A warning where the headline capacity cannot hold one token's experts, so that any policy beats LRU."""
    cycle, total = tables.token_cycle, tables.model_experts
    if cycle is None or total is None or fraction * total >= cycle:
        return []
    text = (
        f"The headline capacity, {number(round(fraction * total))} experts, is below one token cycle "
        f"({number(cycle)}): there a global LRU cannot hit while layers come in a fixed order, so a lead over LRU "
        "says little."
    )
    return [Finding("bad", text, "reports/assess/card.json")]


def timing_findings(tables: Tables) -> list[Finding]:
    """Per device: at how many capacities a policy that the predictor drives is faster than all others."""
    frame, split = tables.times, hardest_split(tables)
    if frame is None or split is None or tables.learned_policy is None:
        return []
    found = []
    names = frame["policy"].unique().to_list()
    buildable = [name for name in names if tables.can_win(name)]
    ours = pl.col("policy").is_in([name for name in buildable if is_learned(name)])
    rows = frame.filter((pl.col("split") == split) & pl.col("policy").is_in(buildable))
    for (device,), part in rows.group_by("device", maintain_order=True):
        mine = part.filter(ours).group_by("capacity_experts").agg(mine=pl.col("ms_per_token").min())
        others = part.filter(~ours).group_by("capacity_experts").agg(pl.col("ms_per_token").min())
        both = others.join(mine, on="capacity_experts")
        won = both.filter(pl.col("mine") < pl.col("ms_per_token")).height
        tone: Tone = "good" if won == both.height else "bad" if won == 0 else "neutral"
        where = f"{won} of {both.height} capacities ({split_label(split)})"
        text = f"{label(str(device))}: the predictor gives the fastest tokens at {where}."
        found.append(Finding(tone, text, tables["timing"].path))
    return found


def comparison_findings(tables: Tables) -> list[Finding]:
    """How many of ours' paired comparisons, at all capacities, do not decide anything."""
    frame, ours = tables["comparisons"].frame, tables.learned_policy
    if frame is None or ours is None:
        return []
    mine = frame.filter((pl.col("a") == ours) | (pl.col("b") == ours))
    undecided = mine.filter((pl.col("low") <= 0) & (pl.col("high") >= 0)).height
    if not undecided:
        return []
    text = (
        f"In {undecided} of {mine.height} paired comparisons of {label(ours)} with another policy the interval of the "
        "difference in hit rate includes zero: no winner there."
    )
    return [Finding("neutral", text, tables["comparisons"].path)]
