"""The dozen numbers that decide between two states of the pipeline: the simulate stage's metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from moe_beyond.devices.device import MILLISECONDS
from moe_beyond.intervals import Resamples
from moe_beyond.predictor.recall import recall_by_prompt
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.study.study import SplitReplays
from moe_beyond.simulator.study.tables import gap_closed, headline_device

Metrics = dict[str, dict[str, float]]


def headline(splits: Sequence[SplitReplays], seed: int) -> Metrics:
    """Numbers of the last test split, which is the other domain where there is one, each with its 95 % interval.

    On the headline device at the headline capacity, of ours as it was chosen on validation prompts: ms_per_token,
    tokens_per_second, stall_ms_per_token, hit_rate, mib_per_token, ms_against_lru and ms_against_best_without_predictor
    (paired by prompt; below zero: faster), gap_closed (of the way from LRU to the clairvoyant bound), token_step_ms and
    layer_step_ms as charged there; recall_at_k ahead of the token and layer_recall_at_k one layer ahead; and of LRU,
    the best policy without the predictor and the bound the ms_per_token. What does not apply is missing.
    """
    split = splits[-1]
    draws = split.draws(seed)
    return _recall(split, draws) | _on_device(split, draws)


def _on_device(split: SplitReplays, draws: Resamples) -> Metrics:
    if not split.case.devices:
        return {}
    place = (headline_device(split), split.case.headline_slots)
    timed, best = split.timed_at(place), split.best_without_predictor(place)
    if not timed:
        return {}
    lru, bound = timed[Lru.name], split.bounds[place].ms_per_token
    found: Metrics = {
        "lru_ms_per_token": asdict(draws.ratio(lru.time)),
        "bound_ms_per_token": {"value": bound},
    }
    if best is not None:
        found["best_without_predictor_ms_per_token"] = asdict(draws.ratio(best.time))
    if place not in split.chosen:
        return found
    own = timed[split.chosen[place]]
    found |= {
        "ms_per_token": asdict(draws.ratio(own.time)),
        "tokens_per_second": asdict(draws.of(lambda ms: MILLISECONDS / ms, own.time)),
        "stall_ms_per_token": asdict(draws.ratio(own.stall)),
        "hit_rate": asdict(draws.ratio(own.hits)),
        "mib_per_token": asdict(draws.ratio(own.moved)),
        "ms_against_lru": asdict(draws.difference(own.time, lru.time)),
        "token_step_ms": {"value": own.token_step_ms},
        "layer_step_ms": {"value": own.layer_step_ms},
    }
    if lru.ms_per_token > bound:
        found["gap_closed"] = asdict(gap_closed(own, lru, bound, draws))
    if best is not None:
        found["ms_against_best_without_predictor"] = asdict(draws.difference(own.time, best.time))
    return found


def _recall(split: SplitReplays, draws: Resamples) -> Metrics:
    if not split.predictions:
        return {}
    ours, trace = split.predictions[0], split.trace
    found = {"recall_at_k": asdict(draws.ratio(recall_by_prompt(trace, ours.probabilities_TLE)))}
    if ours.layer_probabilities_HTLE is not None:
        one_ahead = recall_by_prompt(trace, ours.layer_probabilities_HTLE[0])
        found["layer_recall_at_k"] = asdict(draws.ratio(one_ahead))
    return found
