"""The dozen numbers of metrics.json are those of the tables."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from moe_beyond.simulator.study.headline import headline
from moe_beyond.simulator.study.study import Charged, replay_splits
from tests.simulator.strategies import make_trace, truth_TLE
from tests.simulator.study.cases import HEADLINE, SETTINGS, PartlyRight, drawn


def recall(probabilities_TLE, trace):
    """The share of the router's choices among the k largest, ties by lower id."""
    named_TLK = np.argsort(-probabilities_TLE, axis=2, kind="stable")[..., : trace.metadata.top_k]
    return np.take_along_axis(truth_TLE(trace), named_TLK, axis=2).mean()


def test_it_equals_the_tables_of_the_last_split(replays, tables):
    metrics = headline(replays, seed=7)
    json.dumps(metrics, allow_nan=False)
    split = replays[-1]
    table = tables["on_device"].filter(split=split.split, device=HEADLINE[0], capacity_experts=HEADLINE[1])
    (own,), (best,), (lru,) = (
        table.filter(which).rows(named=True) for which in ("ours", "best_without_predictor", pl.col("policy") == "lru")
    )

    def of(row, name):
        return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}

    expected = {
        **{name: of(own, name) for name in ("ms_per_token", "hit_rate", "mib_per_token")},
        **{name: {"value": own[name]} for name in ("bound_ms_per_token", "token_step_ms", "layer_step_ms")},
        "ms_against_lru": of(own, "against_lru_ms"),
        "ms_against_best_without_predictor": of(own, "against_best_ms"),
        "lru_ms_per_token": of(lru, "ms_per_token"),
        "best_without_predictor_ms_per_token": of(best, "ms_per_token"),
    }
    assert {name: metrics[name] for name in expected} == expected
    values = {name: own[name] for name in ("tokens_per_second", "stall_ms_per_token", "gap_closed")}
    values["recall_at_k"] = recall(PartlyRight(0.5).probabilities_TLE(split.trace), split.trace)
    ahead = PartlyRight(0.5, ahead_right=0.7).layer_probabilities_HTLE(split.trace)[0]
    values["layer_recall_at_k"] = recall(ahead, split.trace)
    assert set(metrics) == {*expected, *values}
    for name, value in values.items():
        assert metrics[name]["value"] == pytest.approx(value), name
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    # a time's percentiles, turned over
    assert metrics["tokens_per_second"]["low"] == pytest.approx(1000 / own["ms_per_token_high"], rel=0.02)


@pytest.mark.parametrize("devices", [(), ("laptop_nvme",)])
def test_what_does_not_apply_is_missing(devices):
    settings = SETTINGS.model_copy(update={"devices": devices})
    without = headline(replay_splits({"test": drawn(1)}, drawn(3), drawn(4), [], settings), seed=7)
    timed = {"lru_ms_per_token", "bound_ms_per_token", "best_without_predictor_ms_per_token"}
    assert set(without) == (timed if devices else set())


def test_where_lru_reaches_the_bound_there_is_no_gap_to_close():
    trace = make_trace(1, num_layers=2, num_experts=4, lengths=(8, 8), prefill=(4, 4))
    # the prefill uses all of a model that lies in the cache, so nothing is loaded for a decoded token
    experts_TLK = np.tile(np.array([[0, 1], [2, 3]], np.uint8)[:, None], (8, 2, 1))
    trace = replace(trace, experts_TLK=experts_TLK)
    settings = SETTINGS.model_copy(update={"capacities": (1.0,), "timed_capacities": None, "headline_capacity": 1.0})
    predictors = [Charged(PartlyRight(1.0), 0.1, 0.1)]
    metrics = headline(replay_splits({"test": trace}, trace, trace, predictors, settings), seed=7)
    assert metrics["lru_ms_per_token"]["value"] == pytest.approx(metrics["bound_ms_per_token"]["value"])
    assert "ms_per_token" in metrics
    assert "gap_closed" not in metrics
