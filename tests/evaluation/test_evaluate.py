import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from moe_beyond import formats as importers
from moe_beyond.evaluation.evaluate import evaluate
from moe_beyond.evaluation.reliability import Reliability
from moe_beyond.evaluation.scores import score
from moe_beyond.paper.protocol import published_replay
from moe_beyond.paper.scores import PUBLISHED_FILLINGS, protocol_table, published_rows
from moe_beyond.predictor import recall
from moe_beyond.predictor.base import sigmoid
from moe_beyond.predictor.baselines import Popularity, TokenUnigram
from tests.phone_traces import shared
from tests.traces_of_chance import chance_trace

HORIZONS = ["token", "1", "2"]


def logits_of(probabilities):
    clipped = np.clip(probabilities, 1e-4, 1 - 1e-4)
    return np.log(clipped / (1 - clipped)).astype(np.float32)


class TableOfTwoHorizons:
    """A baseline's answers as logits; one layer ahead it knows everything, two layers ahead nothing more."""

    name = "predictor"

    horizon = 2

    def __init__(self, baseline):
        self.baseline = baseline

    def both_logits(self, trace):
        known = np.zeros((trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts), np.float32)
        np.put_along_axis(known, trace.experts_TLK.astype(np.int64), 1, axis=2)
        token = logits_of(self.baseline.probabilities_TLE(trace))
        return token, np.stack([logits_of(known), token])


def chance_splits(*, published=False):
    test = chance_trace(10, seed=2, name="t")
    # the published predictor names what the token before used
    test = replace(test, predicted_TLK=np.roll(test.experts_TLK, 1, axis=0)) if published else test
    return {"train": chance_trace(30, seed=1), "test_out_of_domain": test}


def evaluated(splits, resamples=20, **more):
    return evaluate(TableOfTwoHorizons(TokenUnigram.fit(splits["train"])), splits, resamples, seed=0, **more)


def protocol(splits, resamples=20):
    return protocol_table(TableOfTwoHorizons(TokenUnigram.fit(splits["train"])), splits, resamples, seed=0)


def test_every_predictor_is_scored_on_every_split_and_ours_at_every_horizon():
    splits = {"train": chance_trace(30, seed=1), "test_in_domain": chance_trace(10, seed=2, name="t")}
    rival = replace(Popularity.fit(splits["train"]), name="published network, causal")
    result = evaluated(splits, others=[rival])
    assert set(result.quality["split"]) == set(splits)
    ours = result.quality.filter(pl.col("predictor") == "predictor")
    assert ours["horizon"].unique(maintain_order=True).to_list() == HORIZONS
    baselines = {"token unigram", "popularity", "previous token", "MoE-Infinity", "one-cluster MoE-Infinity"}
    token = result.quality.filter(pl.col("horizon") == "token")
    assert set(token["predictor"]) == {"predictor", rival.name, *baselines}
    headline = result.metrics()
    expected = score(TokenUnigram.fit(splits["train"]), splits["test_in_domain"]).mean() / 2
    assert headline["recall_at_k"]["test_in_domain"]["predictor"] == pytest.approx(expected)
    assert headline["recall_at_k"]["test_in_domain"]["token_unigram"] == pytest.approx(expected)
    assert "published_network_causal" in headline["recall_at_k"]["test_in_domain"]
    assert headline["layer_recall_at_k"]["test_in_domain"] == {"ahead_1": 1, "ahead_2": pytest.approx(expected)}
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


def test_the_answer_does_not_depend_on_how_prompts_are_grouped(monkeypatch: pytest.MonkeyPatch):
    splits = chance_splits(published=True)
    whole = evaluated(splits)
    monkeypatch.setattr(recall, "_CHUNK_VALUES", 1)  # a group a prompt
    parts = evaluated(splits)
    assert_frame_equal(parts.quality, whole.quality)
    assert_frame_equal(parts.calibration, whole.calibration)


def test_without_published_predictions_the_protocols_table_has_only_its_header():
    header, *rows = protocol(chance_splits()).write_csv().splitlines()
    assert header.startswith("split,predictor,horizon,capacity_experts,hit_rate,recall_at_k,low,high,mib_per_token")
    assert not rows


def test_the_published_protocol_compares_ours_at_every_horizon_over_ten_fillings():
    splits = chance_splits(published=True)
    test = splits["test_out_of_domain"]
    table = protocol(splits, resamples=50)
    assert table.group_by("predictor", "horizon", maintain_order=True).len().rows() == [
        ("predictor", "token", 3),
        ("predictor", "1", 3),
        ("predictor", "2", 3),
        ("published predictions", "token", 3),
        ("one-cluster MoE-Infinity", "token", 3),
    ]
    assert table["capacity_experts"].unique().sort().to_list() == [4, 9, 24]
    sure = table.filter((pl.col("predictor") == "predictor") & (pl.col("horizon") == "1"))
    assert sure["recall_at_k"].to_list() == [1, 1, 1]
    assert sure["hit_rate"].to_list() == [1, 1, 1]  # a prediction is resident at once, whatever the capacity
    published = table.filter((pl.col("predictor") == "published predictions") & (pl.col("capacity_experts") == 9))
    replays = [published_replay(test, test.predicted_TLK, 9, seed) for seed in range(PUBLISHED_FILLINGS)]
    assert published["hit_rate"].item() == pytest.approx(np.mean([replay.hit_rate for replay in replays]))
    assert published["low"].item() < published["hit_rate"].item() < published["high"].item()
    tokens = (test.positions_T >= 10).sum()
    moved = np.mean([replay.loaded_bytes_P.sum() for replay in replays]) / 2**20 / tokens
    assert published["mib_per_token"].item() == pytest.approx(moved)
    assert published["gain"].item() == published["gain_low"].item() == published["mib_change_high"].item() == 0
    at_nine = sure.filter(pl.col("capacity_experts") == 9)
    assert at_nine["gain"].item() == pytest.approx(1 - published["hit_rate"].item())
    assert at_nine["gain_low"].item() <= at_nine["gain"].item() <= at_nine["gain_high"].item()
    assert at_nine["mib_change"].item() == pytest.approx(at_nine["mib_per_token"].item() - moved)


def test_prompts_within_the_warm_up_give_no_rows():
    trace = chance_trace(20, seed=4)
    short = trace.select(np.nonzero(np.diff(trace.prompt_offsets) <= 10)[0])
    assert short.num_prompts > 0
    assert published_rows(short, short.experts_TLK, resamples=10, seed=0).is_empty()


def test_the_papers_predictor_scores_what_the_paper_published():
    webglm = importers.read("moe-beyond-csv", shared("webglm.tar.xz"))
    rows = published_rows(webglm, np.asarray(webglm.predicted_TLK), resamples=200, seed=0)
    assert rows["capacity_experts"].to_list() == [166, 332, 832]
    assert (100 * rows["hit_rate"]).to_list() == pytest.approx([72.8, 81.6, 91.0], abs=0.4)
    assert (100 * rows["recall_at_k"]).to_list() == pytest.approx([72.5] * 3, abs=0.05)
    assert (rows["low"] < rows["hit_rate"]).all()
    assert (rows["hit_rate"] < rows["high"]).all()
    assert rows["gain"].null_count() == 3


def test_it_needs_no_torch():
    code = "import sys, moe_beyond.evaluation.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
