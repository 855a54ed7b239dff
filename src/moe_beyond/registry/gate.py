"""The gate: does the challenger replace the champion, and why.

Shape suffixes: P prompts, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import polars as pl

from moe_beyond.errors import InputError
from moe_beyond.intervals import Interval, Resamples
from moe_beyond.registry.gate_replays import LOWER_IS_BETTER, METRICS, Score
from moe_beyond.registry.settings import PublishSettings

Outcome = Literal["first", "promoted", "refused", "unchanged", "incomparable", "pending"]
"""`first`: there was no champion. `unchanged`: this very bundle is the champion. `incomparable`: the champion cannot be
replayed on these traces, and stays. `pending`: MLflow was away, the gate has not judged yet."""


@dataclass(frozen=True)
class Check:
    """One rule of the gate.

    Attributes:
        rule: In words, with its limit.
        value: What was measured; None where one prompt shows no interval.
        limit: What it was compared with.
        passed: Whether it holds.
    """

    rule: str
    value: float | None
    limit: float
    passed: bool


@dataclass(frozen=True)
class Verdict:
    """What the gate decided.

    Attributes:
        outcome: See `Outcome`.
        reasons: Sentences for people.
        checks: The rules that were applied.
        improvement: By which share of the champion's value the challenger is better, with its paired interval.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    improvement: Interval | None = None

    @property
    def moves_champion(self) -> bool:
        """Whether the alias `champion` goes to the challenger."""
        return self.outcome in ("first", "promoted")

    def document(self) -> dict[str, Any]:
        """For verdict.json."""
        return {"moves_champion": self.moves_champion, **asdict(self)}


def judge(challenger: Score, champion: Score | None, settings: PublishSettings, seed: int) -> Verdict:
    """Apply the rules of the section `publish`.

    Args:
        challenger: The predictor just made.
        champion: On the same traces; None where there is no champion yet.
        settings: Metric, margin and limits.
        seed: Of the resamples.
    """
    charged = challenger.latency.token_step_ms
    rule = f"a token step takes at most {settings.max_latency_ms:g} ms"
    latency = Check(rule, charged, settings.max_latency_ms, charged <= settings.max_latency_ms)
    if champion is None:
        if latency.passed:
            return Verdict("first", ("there was no champion: the first predictor becomes it",), (latency,))
        return Verdict("refused", (_failed(latency), "there is no champion still"), (latency,))
    gain = improvement(challenger, champion, settings, seed)
    rule = f"{settings.metric} improves by more than {settings.margin:.2%}, lower end of the 95 % interval"
    better = Check(rule, gain.low, settings.margin, gain.above(settings.margin))
    checks = (better, _worst_domain(challenger, champion, settings), latency)
    mine, theirs = (score.pooled(settings.metric).value for score in (challenger, champion))
    measured = (
        f"{settings.metric}: challenger {mine:.4g}, champion {theirs:.4g}, improvement {gain.value:+.2%} "
        f"({_spread(gain)})"
    )
    failed = [_failed(check) for check in checks if not check.passed]
    return Verdict("refused" if failed else "promoted", (measured, *failed), checks, gain)


def improvement(challenger: Score, champion: Score, settings: PublishSettings, seed: int) -> Interval:
    """By which share of the champion's value the challenger is better on the same prompts; positive is better.

    Raises:
        InputError: The champion's value is 0.
    """
    mine, theirs = challenger.pooled(settings.metric), champion.pooled(settings.metric)
    if theirs.value == 0:
        raise InputError(
            f"publish.metric: the champion's {settings.metric} is 0 on these traces, no share of it can be gained; "
            "raise publish.capacity or choose another metric"
        )
    sign = -1 if settings.metric in LOWER_IS_BETTER else 1
    draws = Resamples.draw(len(mine.numerator_P), settings.bootstrap_samples, seed)
    return draws.of(lambda own, other: sign * (own / other - 1), mine, theirs)


def table(scores: Sequence[Score], settings: PublishSettings, seed: int) -> pl.DataFrame:
    """A row a contestant, split (and `all`) and metric: columns contestant, version, split, metric, value, low, high.

    Intervals are each contestant's own; the improvement's, in the verdict, is paired and narrower.
    """
    columns = ("contestant", "version", "split", "metric", "value", "low", "high")
    rows: list[tuple[Any, ...]] = []
    for score in scores:
        parts = {**score.splits, "all": {metric: score.pooled(metric) for metric in METRICS}}
        for split, metrics in parts.items():
            for metric, ratio in metrics.items():
                if ratio.counts:
                    found = Resamples.draw(len(ratio.numerator_P), settings.bootstrap_samples, seed).ratio(ratio)
                    rows.append((score.name, score.version, split, metric, found.value, found.low, found.high))
        rows += [(score.name, score.version, "all", name, ms, None, None) for name, ms in _latency(score).items()]
    types = dict.fromkeys(columns, pl.String()) | dict.fromkeys(columns[4:], pl.Float64())
    return pl.DataFrame(rows, schema=types, orient="row")


def metrics(verdict: Verdict, scores: Sequence[Score]) -> dict[str, Any]:
    """Nested numbers for metrics.json: whether the champion moved, the improvement, each contestant's scores."""
    found: dict[str, Any] = {"moves_champion": int(verdict.moves_champion)}
    if verdict.improvement is not None:
        found["improvement"] = asdict(verdict.improvement)
    for score in scores:
        pooled = {metric: score.pooled(metric) for metric in METRICS}
        found[score.name] = {
            **{metric: ratio.value for metric, ratio in pooled.items() if ratio.counts},
            "worst_domain_hit_rate": score.worst_domain[1],
            **_latency(score),
        }
    return found


def _worst_domain(challenger: Score, champion: Score, settings: PublishSettings) -> Check:
    (domain, mine), (_, theirs) = challenger.worst_domain, champion.worst_domain
    limit = theirs - settings.max_worst_domain_loss
    rule = f"the hit rate on the worst domain ({domain}) loses at most {settings.max_worst_domain_loss:.1%}"
    return Check(rule, mine, limit, mine >= limit)


def _latency(score: Score) -> dict[str, float]:
    return {"token_step_ms": score.latency.token_step_ms, "layer_step_ms": score.latency.layer_step_ms}


def _spread(gain: Interval) -> str:
    if gain.low is None or gain.high is None:
        return "one prompt, no interval"
    return f"95 % interval {gain.low:+.2%} to {gain.high:+.2%}, paired by prompt"


def _failed(check: Check) -> str:
    found = "no interval, of one prompt" if check.value is None else f"{check.value:.4g}"
    return f"fails: {check.rule} (found {found}, limit {check.limit:.4g})"
