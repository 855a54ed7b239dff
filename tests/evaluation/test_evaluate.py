from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from moe_beyond.evaluation.evaluate import evaluate
from moe_beyond.evaluation.reliability import Reliability
from moe_beyond.evaluation.scores import score
from moe_beyond.predictor import recall
from moe_beyond.predictor.base import sigmoid
from moe_beyond.predictor.baselines import Popularity, TokenUnigram
from tests.simulator.strategies import truth_TLE
from tests.traces_of_chance import chance_trace

HORIZONS = ["token", "1", "2"]


def logits_of(probabilities):
    clipped = np.clip(probabilities, 1e-4, 1 - 1e-4)
    return np.log(clipped / (1 - clipped)).astype(np.float32)


@dataclass
class TableOfTwoHorizons:
    """A baseline's predictions as logits; one layer ahead they are the truth, two layers ahead the same as those."""

    baseline: Any
    name: str = "predictor"
    horizon: int = 2

    def both_logits(self, trace):
        token = logits_of(self.baseline.probabilities_TLE(trace))
        return token, np.stack([logits_of(truth_TLE(trace)), token])


def chance_splits(*, published=False):
    test = chance_trace(10, seed=2, name="t")
    # the published predictor names what the token before used
    test = replace(test, predicted_TLK=np.roll(test.experts_TLK, 1, axis=0)) if published else test
    return {"train": chance_trace(30, seed=1), "test_out_of_domain": test}


def evaluated(splits, resamples=20, **more):
    return evaluate(TableOfTwoHorizons(TokenUnigram.fit(splits["train"])), splits, resamples, seed=0, **more)


def test_every_predictor_is_scored_on_every_split_and_ours_at_every_horizon():
    splits = chance_splits()
    rival = replace(Popularity.fit(splits["train"]), name="published network, causal")
    result = evaluated(splits, others=[rival])
    assert set(result.quality["split"]) == set(splits)
    ours = result.quality.filter(pl.col("predictor") == "predictor")
    assert ours["horizon"].unique(maintain_order=True).to_list() == HORIZONS
    baselines = {"token unigram", "popularity", "previous token", "MoE-Infinity", "one-cluster MoE-Infinity"}
    token = result.quality.filter(pl.col("horizon") == "token")
    assert set(token["predictor"]) == {"predictor", rival.name, *baselines}
    metrics = result.metrics()
    found, ahead = (metrics[name]["test_out_of_domain"] for name in ("recall_at_k", "layer_recall_at_k"))
    expected = score(TokenUnigram.fit(splits["train"]), splits["test_out_of_domain"]).mean() / 2
    assert found["predictor"] == found["token_unigram"] == pytest.approx(expected)
    assert "published_network_causal" in found
    assert ahead == {"ahead_1": 1, "ahead_2": pytest.approx(expected)}
    by_layer = ours.filter((pl.col("horizon") == "1") & (pl.col("layer") != "all"))
    assert by_layer["layer"].unique(maintain_order=True).to_list() == ["1", "2", "3"]


def test_calibration_of_test_splits_agrees_with_the_counts():
    splits = chance_splits()
    test = splits["test_out_of_domain"]
    result = evaluated(splits)
    logits, _ = TableOfTwoHorizons(TokenUnigram.fit(splits["train"])).both_logits(test)
    counted = Reliability.of(sigmoid(logits), test.experts_TLK)
    assert set(result.calibration["split"]) == {"test_out_of_domain"}
    assert_frame_equal(result.calibration.drop("split"), counted.bins())
    error = {"test_out_of_domain": pytest.approx(counted.calibration_error)}
    assert result.metrics()["calibration_error"] == error


def test_the_scores_do_not_depend_on_how_prompts_are_grouped(monkeypatch):
    splits = chance_splits(published=True)
    whole = evaluated(splits)
    monkeypatch.setattr(recall, "_CHUNK_VALUES", 1)  # a group a prompt
    parts = evaluated(splits)
    assert_frame_equal(parts.quality, whole.quality)
    assert_frame_equal(parts.calibration, whole.calibration)
