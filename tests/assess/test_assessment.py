"""The assessment of a trace: tables that agree with each other, and verdicts that differ as they should."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from moe_beyond.assess.assessment import assess, cards_table, every_nth_prompt, in_domain, other_cards
from moe_beyond.assess.settings import AssessSettings, OtherTrace
from moe_beyond.formats import importers
from moe_beyond.traces import store
from moe_beyond.traces.schema import concatenate
from tests.phone_traces import shared
from tests.traces.random_traces import random_trace, trace_of
from tests.traces.refusals import refused
from tests.traces_of_chance import chance_trace

SETTINGS = AssessSettings()


def test_routing_at_random_is_not_worth_offloading_and_routing_that_lasts_is():
    assessment = assess(random_trace([500, 500, 500], layers=4, experts=16, top_k=2), SETTINGS)
    assert (assessment.card["verdict"], assessment.metrics()["verdict_level"]) == ("do not", 0)
    choices = np.repeat(np.random.default_rng(0).integers(0, 16, (60, 4, 1)), 25, axis=0)
    # prompts that begin between two changes
    card = assess(trace_of(np.roll(choices, 10, axis=0), [500, 500, 500], 16), SETTINGS).card
    assert card["verdict"] == "go"
    assert card["shares"]["temporal_locality"] > 0.5


def test_tables_are_complete_and_agree():
    trace = random_trace([60, 80], layers=3, experts=16, top_k=2)
    assessment = assess(trace, SETTINGS)
    tables = assessment.tables
    assert tables["layers"]["layer"].to_list() == [1, 2, 3]
    shares = tables["popularity"].group_by("layer").agg(pl.len(), pl.col("share").sum())
    assert (shares["len"].to_list(), shares["share"].to_list()) == ([16] * 3, pytest.approx([1] * 3))
    wide = tables["hit_curves"].pivot("policy", index="capacity_experts", values="hit_rate").sort("capacity_experts")
    assert wide["capacity_experts"].to_list() == list(range(1, 49))
    assert (wide["belady"] >= wide["lru"]).all()
    # between two tokens of a layer, the other two layers use 2 experts each
    assert [rate > 0 for rate in wide["lru"][:5]] == [False] * 4 + [True]
    shares = tables["reuse_distances"]["cumulative_share"]
    assert shares.is_sorted()
    assert shares[-1] == pytest.approx(1 - assessment.card["headline"]["first_use_share"])
    json.dumps(assessment.card, allow_nan=False)
    # a long curve is thinned and keeps the token cycle
    thinned = assess(trace, AssessSettings(curve_points=10)).tables["hit_curves"].filter(policy="lru")
    assert {1, 5, 6, 48} <= set(thinned["capacity_experts"].to_list())
    assert thinned.height <= 12


def test_one_token_is_enough_to_get_a_card():
    card = assess(random_trace([1]), SETTINGS).card
    assert (card["verdict"], card["headline"]["previous_token_overlap"]) == ("do not", None)
    json.dumps(card, allow_nan=False)


def test_decode_alone_is_assessed_without_the_prompt():
    trace = random_trace([10, 20, 5])
    trace = replace(trace, num_prefill_P=np.array([4, 20, 0], np.int32))
    card = assess(trace, AssessSettings(tokens="decode")).card
    assert (card["prompts"], card["tokens"]) == (2, 6 + 5)
    message = r"assess\.tokens is 'decode', but the trace holds prefill only"
    refused(message, assess, random_trace([3]), AssessSettings(tokens="decode"))


def test_sampling_takes_whole_prompts_from_the_whole_trace():
    trace = random_trace([10] * 9)
    assert every_nth_prompt(trace, 1000) is trace
    assert every_nth_prompt(trace, 45).prompt_ids == ("p0", "p2", "p4", "p6", "p8")


def test_cards_of_real_models_differ_as_they_should():
    names = {"esft": "esft.tar.xz", "bigmoe-route": "bigmoe-on-edge/qwen.route.csv.gz"}
    deepseek, qwen = (assess(importers.read(name, shared(path)), SETTINGS).card for name, path in names.items())
    # DeepSeek-V2-Lite balances its experts, Qwen3-30B-A3B on one prompt does not
    assert deepseek["headline"]["entropy_ratio"] > 0.95 > qwen["headline"]["entropy_ratio"]
    assert (deepseek["verdict"], qwen["verdict"]) == ("go with a bigger cache", "go")
    assert ["trace is short" in str(card["reasons"]) for card in (deepseek, qwen)] == [False, True]


def test_cards_of_other_models_stand_beside_this_ones_each_model_once(tmp_path):
    ours = chance_trace(20)
    other = replace(ours, metadata=ours.metadata.model_copy(update={"model_id": "other"}))
    for name, trace in (("other", other), ("ours", ours)):
        store.write_parquet(trace, tmp_path / f"{name}.parquet")
    others = tuple(OtherTrace(format="parquet", path=str(tmp_path / f"{name}.parquet")) for name in ("ours", "other"))
    table = cards_table([assess(ours, SETTINGS).card, *other_cards(AssessSettings(others=others))])
    assert table["model"].to_list() == ["chance", "other"]
    other_window = cards_table([assess(ours, AssessSettings(windows=(4,))).card])
    assert other_window["working_set_64_fraction"].to_list() == [None]
    refused("unknown trace format", other_cards, AssessSettings(others=(OtherTrace(format="unheard-of", path="x"),)))


def test_a_verdict_looks_at_held_out_prompts_only_if_there_are_no_others():
    held_out, ours = chance_trace(3, held_out=True), chance_trace(4, name="q")
    assert in_domain(concatenate([held_out, ours])).prompt_ids == ours.prompt_ids
    assert in_domain(held_out).prompt_ids == held_out.prompt_ids
