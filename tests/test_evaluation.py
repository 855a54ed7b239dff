import subprocess
import sys
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from moe_beyond import metrics
from moe_beyond.evaluation import PUBLISHED_FILLINGS, evaluate, published_rows
from moe_beyond.metrics import score
from moe_beyond.predictor.baselines import TokenUnigram
from moe_beyond.simulator.published_protocol import published_replay
from moe_beyond.traces import importers
from tests.simulator.phone_traces import shared
from tests.traces_of_chance import chance_trace


class Sure:
    """Puts its whole trust in the true experts."""

    name = "predictor"

    def probabilities_TLE(self, trace):
        answer_TLE = np.zeros((trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts), np.float32)
        np.put_along_axis(answer_TLE, trace.experts_TLK.astype(np.int64), 1, axis=2)
        return answer_TLE


def chance_splits(*, published=False):
    test = chance_trace(10, seed=2, name="t")
    # the published predictor names what the token before used
    test = replace(test, predicted_TLK=np.roll(test.experts_TLK, 1, axis=0)) if published else test
    return {"train": chance_trace(30, seed=1), "test_out_of_domain": test}


def test_every_predictor_is_scored_on_every_split_and_the_headline_is_the_tables():
    splits = {"train": chance_trace(30, seed=1), "test_in_domain": chance_trace(10, seed=2, name="t")}
    result = evaluate(Sure(), splits, resamples=100, seed=0)
    names = {
        "predictor",
        "token unigram",
        "popularity",
        "previous token",
        "MoE-Infinity",
        "crippled MoE-Infinity",
    }
    assert set(result.quality["predictor"]) == names
    assert set(result.quality["split"]) == set(splits)
    headline = result.metrics()["recall_at_k"]
    assert headline["test_in_domain"]["predictor"] == 1
    baseline = TokenUnigram.fit(splits["train"])
    expected = score(baseline, splits["test_in_domain"]).mean() / 2
    assert headline["test_in_domain"]["token_unigram"] == pytest.approx(expected)
    rows = result.quality.filter((pl.col("phase") == "all") & (pl.col("layer") == "all"))
    assert np.isfinite(rows["recall_at_k"].to_numpy()).all()


def test_calibration_and_width_are_of_test_splits_alone_and_agree_with_the_quality():
    splits = chance_splits()
    ours = TokenUnigram.fit(splits["train"])
    result = evaluate(ours, splits, resamples=20, seed=0)
    assert set(result.calibration["split"]) == set(result.width["split"]) == {"test_out_of_domain"}
    test = splits["test_out_of_domain"]
    assert result.calibration["count"].sum() == test.num_tokens * 3 * 16
    # every token and layer has top-k true experts among its statements
    true = (result.calibration["observed_share"] * result.calibration["count"]).sum()
    assert true == pytest.approx(test.num_tokens * 3 * 2)
    assert result.width["width"].to_list() == list(range(1, 9))
    at_k = result.width.filter(pl.col("width") == 2)["recall"].item()
    assert at_k == pytest.approx(result.metrics()["recall_at_k"]["test_out_of_domain"]["token_unigram"])
    gap = (result.calibration["mean_probability"] - result.calibration["observed_share"]).abs()
    error = np.average(gap.to_numpy(), weights=result.calibration["count"].to_numpy())
    assert result.metrics()["calibration_error"] == {"test_out_of_domain": pytest.approx(error)}


def test_the_answer_does_not_depend_on_how_prompts_are_grouped(monkeypatch: pytest.MonkeyPatch):
    splits = chance_splits(published=True)
    ours = TokenUnigram.fit(splits["train"])
    whole = evaluate(ours, splits, resamples=20, seed=0)
    monkeypatch.setattr(metrics, "_CHUNK_VALUES", 1)  # a group a prompt
    parts = evaluate(ours, splits, resamples=20, seed=0)
    for name, table in whole.tables().items():
        assert_frame_equal(parts.tables()[name], table)


def test_without_published_predictions_the_protocols_table_has_only_its_header():
    result = evaluate(Sure(), chance_splits(), resamples=20, seed=0)
    assert result.published_protocol.write_csv() == "split,predictor,capacity_experts,hit_rate,recall_at_k,low,high\n"


def test_the_published_protocol_compares_three_predictors_over_ten_fillings():
    splits = chance_splits(published=True)
    test = splits["test_out_of_domain"]
    table = evaluate(Sure(), splits, resamples=50, seed=3).published_protocol
    assert table.group_by("predictor", maintain_order=True).len().rows() == [
        ("predictor", 3),
        ("published predictions", 3),
        ("crippled MoE-Infinity", 3),
    ]
    assert table["capacity_experts"].unique().sort().to_list() == [4, 9, 24]
    ours = table.filter(pl.col("predictor") == "predictor")
    assert ours["recall_at_k"].to_list() == [1, 1, 1]
    assert ours["hit_rate"].to_list() == [1, 1, 1]  # a prediction is resident at once, whatever the capacity
    published = table.filter((pl.col("predictor") == "published predictions") & (pl.col("capacity_experts") == 9))
    rates = [published_replay(test, test.predicted_TLK, 9, seed).hit_rate for seed in range(3, 3 + PUBLISHED_FILLINGS)]
    assert published["hit_rate"].item() == pytest.approx(np.mean(rates))
    assert published["low"].item() < published["hit_rate"].item() < published["high"].item()


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


def test_it_needs_no_torch():
    code = "import sys, moe_beyond.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
