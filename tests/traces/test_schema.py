"""The rules of a trace, and cutting and joining that keep them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moe_beyond.traces.schema import TokenTexts, TraceMetadata, concatenate, locate, validate
from tests.traces.random_traces import random_trace
from tests.traces.refusals import refused
from tests.traces.test_store import assert_same, full_trace


@given(st.sampled_from([2, 6, 8, 9, 12]), st.integers(0, 99), st.tuples(st.integers(0, 4), st.integers(0, 2)))
def test_an_expert_listed_twice_is_found_wherever_it_is(top_k, seed, place):
    trace = random_trace([2, 3], layers=3, experts=16, top_k=top_k, seed=seed)
    assert validate(trace, "here") is trace
    first, second = np.random.default_rng(seed).permutation(top_k)[:2]
    trace.experts_TLK[place][second] = trace.experts_TLK[place][first]
    refused(f"here: {locate(trace, *place)}: an expert is listed twice", validate, trace, "here")


BROKEN = [
    ({"prompt_ids": ("a", "a")}, "prompt 'a' stands there twice"),
    ({"prompt_offsets": np.array([0, 5, 5])}, "prompt 'p1' has no tokens"),
    ({"num_prefill_P": np.array([3, 0], np.int32)}, "prompt 'p0': num_prefill is 3, expected 0 to"),
    ({"experts_TLK": np.zeros((5, 3, 3), np.uint8)}, "experts_TLK has shape"),
    ({"predicted_TLK": np.full((5, 3, 2), 16, np.uint8)}, "expert id 16 in predicted_TLK is out of range"),
    ({"token_ids_T": np.zeros(4, np.int32)}, "4 token_ids for 5 tokens"),
    ({"token_texts": TokenTexts.encode(["a"])}, "1 token_texts for 5 tokens"),
    ({"token_texts": TokenTexts.encode(["a", "\ud800", "b", "c", "d"])}, "is no valid Unicode"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_a_broken_rule_is_named(changes, message):
    refused(message, validate, replace(full_trace([2, 3]), **changes), "here")


NO_SHAPE = [
    ({"layer_numbers": (1, 1)}, "must rise"),
    ({"expert_bytes": (1,)}, "one number for each MoE layer"),
    ({"expert_bytes": (1, 0)}, "should be greater than 0"),
    ({"dense_bytes": (1,)}, "dense_bytes needs one number for each MoE layer"),
    ({"top_k": 9}, "exceeds num_experts"),
]


@pytest.mark.parametrize(("changes", "message"), NO_SHAPE)
def test_metadata_must_be_a_model_s_shape(changes, message):
    good = random_trace([2], experts=8).metadata.model_dump()
    with pytest.raises(ValidationError, match=message):
        TraceMetadata.model_validate(good | changes)


def test_dense_bytes_are_written_where_they_are_known():
    plain = random_trace([2], experts=8).metadata
    assert "dense_bytes" not in plain.model_dump()
    dense = plain.model_copy(update={"dense_bytes": (5,) * plain.num_layers})
    assert TraceMetadata.model_validate_json(dense.model_dump_json()) == dense


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), data=st.data())
def test_a_selection_is_the_prompts_in_that_order(lengths, data):
    trace = full_trace(lengths)
    prompts = data.draw(st.lists(st.sampled_from(range(len(lengths))), unique=True, min_size=1))
    chosen = validate(trace.select(np.array(prompts)), "here")
    assert chosen.prompt_ids == tuple(f"p{p}" for p in prompts)
    parts = np.split(trace.experts_TLK, trace.prompt_offsets[1:-1])
    np.testing.assert_array_equal(chosen.experts_TLK, np.concatenate([parts[p] for p in prompts]))
    assert_same(concatenate([trace.select(np.array([p])) for p in prompts]), chosen)


def test_positions_and_phases_follow_the_prompts():
    trace = replace(random_trace([3, 2]), num_prefill_P=np.array([2, 0], np.int32))
    assert trace.positions_T.tolist() == [0, 1, 2, 0, 1]
    assert trace.is_prefill_T.tolist() == [True, True, False, False, False]
    decoded = validate(trace.decode_only(), "here")
    np.testing.assert_array_equal(decoded.experts_TLK, trace.experts_TLK[2:])
    assert (decoded.prompt_offsets.tolist(), decoded.num_prefill_P.tolist()) == ([0, 1, 3], [0, 0])
    assert locate(trace, 4, 1) == "prompt 'p1', position 1, layer 2"


def test_a_column_survives_joining_only_where_all_have_it():
    first, second = full_trace([2]), full_trace([3], seed=1, name="q")
    assert concatenate([first, second]).weights_TLK is not None
    joined = concatenate([first, replace(second, weights_TLK=None, token_texts=None)])
    assert (joined.weights_TLK, joined.token_texts) == (None, None)
    assert joined.token_ids_T is not None
    refused("the list is empty", concatenate, [])
