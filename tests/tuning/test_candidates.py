from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.training.settings import TrainSettings
from moe_beyond.tuning.candidates import charged, draw
from moe_beyond.tuning.settings import SearchSpace, TuneSettings
from tests.traces.refusals import refused
from tests.traces_of_chance import chance_trace

TRACED = chance_trace(2).metadata
SPACE = SearchSpace(width=(8, 16, 32), depth=(1, 2), heads=(1, 2), train={"window": (8, 16), "dropout": (0.0, 0.5)})
TRAIN = TrainSettings()


def sample(seed=1, **settings):
    return draw(TuneSettings(space=SPACE, **settings), TRAIN, TRACED, seed)


def keys(drawn):
    return [tuple(candidate.items()) for candidate in drawn.candidates]


LIMITS = sorted({latency.token_step_ms for latency in sample(trials=48).latencies})


@given(st.integers(1, 60), st.sampled_from(LIMITS), st.integers(0, 99))
def test_candidates_are_distinct_feasible_and_the_same_each_time(trials, limit, seed):
    drawn = sample(seed, trials=trials, max_latency_ms=limit)
    assert drawn == sample(seed, trials=trials, max_latency_ms=limit)
    assert len(set(keys(drawn))) == len(drawn.candidates) == min(trials, 48 - drawn.infeasible)
    assert [charged(candidate, TRAIN, TRACED) for candidate in drawn.candidates] == list(drawn.latencies)
    assert all(latency.token_step_ms <= limit for latency in drawn.latencies)


def test_a_sample_fills_the_space_and_follows_the_seed():
    samples = [sample(seed, trials=6) for seed in range(9)]
    for drawn in samples:
        assert Counter(candidate["width"] for candidate in drawn.candidates) == {8: 2, 16: 2, 32: 2}
    assert len({tuple(keys(drawn)) for drawn in samples}) > 5


def test_a_limit_that_no_candidate_meets_names_the_parameter():
    message = r"tune.max_latency_ms: 0.001 ms, but the fastest candidate is charged 0.\d+"
    refused(message, sample, max_latency_ms=0.001)


def test_candidates_of_an_earlier_search_come_first_and_the_fastest_of_them_before(tmp_path):
    path = tmp_path / "trials.csv"
    rows = [(16, 2, 2, 16, 0.5, 9.0), (8, 1, 1, 8, 0.0, None), (8, 1, 2, 8, 0.5, 5.0), (7, 1, 1, 8, 0.0, 4.0)]
    names = ["width", "depth", "heads", "window", "dropout", "ms_per_token"]
    pl.DataFrame(rows, schema=names, orient="row").write_csv(path)
    drawn = sample(trials=5, warm_start=str(path))
    expected = [(8, 1, 2, 8, 0.5), (16, 2, 2, 16, 0.5), (8, 1, 1, 8, 0.0)]
    assert [tuple(candidate.values()) for candidate in drawn.candidates[:3]] == expected
    assert len(set(keys(drawn))) == 5
    assert keys(sample(trials=1, warm_start=str(path))) == keys(drawn)[:1]


NO_WARM_START = [
    (None, "trials.csv: No such file.*; give a copy of an earlier trials.csv"),
    ("width,depth,heads\n8,1,1\n", "ms_per_token.*; give a copy of an earlier trials.csv"),
    ("width,depth,heads,ms_per_token\n7,1,1,3\n", "holds no feasible candidate of tune.space"),
]


@pytest.mark.parametrize(("text", "message"), NO_WARM_START)
def test_a_warm_start_that_holds_nothing_is_refused(tmp_path, text, message):
    path = tmp_path / "trials.csv"
    if text is not None:
        path.write_text(text)
    refused(message, sample, warm_start=str(path))


NO_SPACE = [
    ({"train": {"winow": (8,)}}, "train.winow is not a parameter of train that can be searched"),
    ({"train": {"window": (4,)}}, "train.window: Input should be greater than or equal to 8 .found 4."),
    ({"train": {"window": ()}}, "train.window: no value to try"),
    ({"width": (0,)}, "must be at least 1"),
    ({"width": (9,)}, "width 9 is not divisible by 4 heads"),
]


@pytest.mark.parametrize(("space", "message"), NO_SPACE)
def test_an_impossible_space_is_refused(space, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(**space)
