"""Which policies are decoded live, and what their loads take on the device."""

import numpy as np
import polars as pl
import pytest

from moe_beyond.live.lossy import LOSSY, all_cases
from moe_beyond.live.quality import measure
from moe_beyond.live.verify import best_that_runs, ours, replayed
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.simulator.policies.predictions import Predictions
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import events_of
from tests.live.live_case import LiveCase
from tests.traces_of_chance import chance_trace

ROWS = pl.DataFrame(
    [
        ("belady", 1.0, False, True, None),
        ("mote", 2.0, True, False, None),
        ("token_unigram_prefetch_lru", 3.0, False, False, "token_unigram"),
        ("moe_infinity", 4.0, False, False, None),
        ("layer_lfu", 5.0, False, False, None),
        ("lru", 6.0, False, False, None),
    ],
    {"policy": pl.String, "ms_per_token": pl.Float64, "lossy": pl.Boolean, "bound": pl.Boolean, "predictor": pl.String},
    orient="row",
)


def test_the_best_is_the_fastest_that_is_no_bound_lossless_without_a_predictor_and_runs():
    training, settings = chance_trace(), PolicySettings()
    assert best_that_runs(ROWS, training, settings).name == "layer_lfu"
    assert best_that_runs(ROWS.head(4), training, settings) is None


def test_rows_are_those_of_one_place_the_fastest_first():
    place = {"split": "test", "device": "laptop", "capacity_experts": 9}
    table = ROWS.reverse().with_columns(**{name: pl.lit(value) for name, value in place.items()})
    others = [table.with_columns(**{name: pl.lit(value)}) for name, value in (("split", "b"), ("capacity_experts", 8))]
    found = replayed(pl.concat([*others, table]), "test", "laptop", 9)
    assert found["policy"].to_list() == ROWS["policy"].to_list()


def test_ours_is_found_by_every_name_that_the_replay_gives_it(exported):
    trace, predictor = chance_trace(), OnnxPredictor(exported[0])
    popularity_LE = np.ones((3, 16), np.float32)
    predictions = Predictions(predictor, trace, events_of(trace), 0.0, 0.0, popularity_LE)
    names = [policy.name for policy in predictions.policies(2, 0.0)]
    assert len(names) > 3
    for name in names:
        policy, online = ours(predictions, predictor, name, 2, 0.0)
        assert policy.name == name
        assert (online.width > 0) == ("prefetch" in name)
        assert online.layers == ("layer" in name)
    with pytest.raises(AssertionError, match="no way of using the predictor"):
        ours(predictions, predictor, "someone_s", 2, 0.0)


def test_every_lossy_policy_is_measured_on_a_real_model(tmp_path):
    case = LiveCase.of("olmoe", tmp_path)
    cases = all_cases(case.model, case.store, case.trace, settings=PolicySettings(), seed=1)
    table = measure(
        case.model, case.tokenizer, case.store, cases, case.prompts, num_prefill=1, capacity_experts=9, seed=1
    )
    assert table["policy"].to_list() == ["layer_lru", "hobbit", "hobbit_int4", *LOSSY[1:]]
    assert table.height - 1 >= 10
    lossless, *lossy = table.iter_rows(named=True)
    assert lossless["kl"] < 1e-9 and lossless["weight_given_up"] == 0
    unchanged = [row["policy"] for row in lossy if row["kl"] < 1e-9]
    assert unchanged == []
    assert all(row["kl_low"] <= row["kl"] <= row["kl_high"] for row in lossy)
    # fewer bits cost more
    by_name = {row["policy"]: row for row in lossy}
    assert by_name["mote"]["kl"] > by_name["hobbit"]["kl"]
    assert by_name["mote"]["mib_per_token"] < lossless["mib_per_token"]
