"""The paper's protocol as a table: hit rates, bytes, and the difference from the published predictions."""

import numpy as np
import polars as pl
import pytest

from moe_beyond.paper.protocol import published_replay
from moe_beyond.paper.scores import PUBLISHED_FILLINGS, protocol_table, published_rows
from moe_beyond.predictor.baselines import TokenUnigram
from tests.evaluation.test_evaluate import TableOfTwoHorizons, chance_splits
from tests.traces_of_chance import chance_trace


def protocol(splits, resamples=20):
    return protocol_table(TableOfTwoHorizons(TokenUnigram.fit(splits["train"])), splits, resamples, seed=0)


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
