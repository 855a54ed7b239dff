import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import BinaryAccuracy, BinaryF1Score

from moe_beyond.evaluation.scores import Quality, quality_rows, score
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.predictor.recall import groups, hits_at_k
from tests.traces_of_chance import chance_trace


@given(st.integers(0, 10_000))
def test_hits_equal_a_plain_ranking_with_ties_by_id(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (5, 2, 7)).astype(np.float32)
    experts = rng.permuted(np.tile(np.arange(7, dtype=np.uint8), (5, 2, 1)), axis=2)[..., :3]
    named = np.argsort(-scores, axis=-1, kind="stable")[..., :3]
    expected = [[len(set(named[t, l]) & set(experts[t, l].tolist())) for l in range(2)] for t in range(5)]  # noqa: E741
    assert hits_at_k(scores, experts).tolist() == expected


def test_accuracy_and_f1_equal_torchmetrics_on_the_same_decisions():
    trace = chance_trace(lexical=0.3)
    rng = np.random.default_rng(1)
    scores = rng.random((trace.num_tokens, 3, 16)).astype(np.float32)
    named = np.argsort(-scores, axis=-1, kind="stable")[..., :2]
    decided, wanted = (np.zeros(scores.shape, int) for _ in range(2))
    np.put_along_axis(decided, named, 1, -1)
    np.put_along_axis(wanted, trace.experts_TLK.astype(int), 1, -1)
    hits = int(hits_at_k(scores, trace.experts_TLK).sum())
    quality = Quality(hits, trace.num_tokens * 3 * 2, 16, 2)

    def measured(metric, invert=False):
        pair = (1 - decided, 1 - wanted) if invert else (decided, wanted)
        return float(metric()(*(torch.from_numpy(x.reshape(-1)) for x in pair)))

    assert quality.f1_active == pytest.approx(measured(BinaryF1Score), abs=1e-6)
    assert quality.accuracy == pytest.approx(measured(BinaryAccuracy), abs=1e-6)
    both = (measured(BinaryF1Score) + measured(BinaryF1Score, invert=True)) / 2
    assert quality.f1_macro == pytest.approx(both, abs=1e-6)


def test_all_tokens_are_the_sum_of_prefill_and_decode_and_layers_average_to_the_whole():
    trace = chance_trace()
    table = quality_rows(trace, score(Popularity.fit(trace), trace), resamples=100, seed=0)
    rows = {row["phase"]: row for row in table.filter(layer="all").iter_rows(named=True)}
    tokens, recall = ({phase: row[name] for phase, row in rows.items()} for name in ("tokens", "recall_at_k"))
    assert tokens["all"] == tokens["prefill"] + tokens["decode"] == trace.num_tokens
    parts = recall["prefill"] * tokens["prefill"] + recall["decode"] * tokens["decode"]
    assert recall["all"] == pytest.approx(parts / tokens["all"])
    layers = table.filter(pl.col("layer") != "all", phase="all")
    assert layers["layer"].to_list() == ["1", "2", "3"]
    assert layers["recall_at_k"].mean() == pytest.approx(recall["all"])


def test_groups_cover_every_prompt_once(monkeypatch):
    monkeypatch.setattr("moe_beyond.predictor.recall._CHUNK_VALUES", 48 * 50)  # 50 tokens
    trace = chance_trace(30)
    parts = list(groups(trace))
    assert len(parts) > 5
    assert [name for part in parts for name in part.prompt_ids] == list(trace.prompt_ids)
