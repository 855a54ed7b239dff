import numpy as np
import polars as pl
import pytest

from moe_beyond.evaluation import evaluate
from moe_beyond.metrics import score
from moe_beyond.predictor.baselines import TokenUnigram
from tests.traces_of_chance import chance_trace


def test_every_predictor_is_scored_on_every_split_and_the_headline_is_the_tables():
    splits = {"train": chance_trace(30, seed=1), "test_in_domain": chance_trace(10, seed=2, name="t")}
    perfect = TokenUnigram.fit(splits["test_in_domain"])
    result = evaluate(perfect, splits, resamples=100, seed=0)
    names = {"token unigram", "popularity", "previous token"}
    assert set(result.table["predictor"]) == names
    assert set(result.table["split"]) == set(splits)
    headline = result.metrics()["recall_at_k"]
    baseline = TokenUnigram.fit(splits["train"])
    expected = score(baseline, splits["test_in_domain"]).mean() / 2
    assert headline["test_in_domain"]["token_unigram"] == pytest.approx(expected)
    rows = result.table.filter((pl.col("phase") == "all") & (pl.col("layer") == "all"))
    assert np.isfinite(rows["recall_at_k"].to_numpy()).all()
