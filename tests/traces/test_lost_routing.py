"""Routing that an engine lost looks like perfect locality; routing that a router chose is let through."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.traces import schema
from moe_beyond.traces.schema import RoutedPrompt, validate
from tests.traces.random_traces import random_experts, trace_of
from tests.traces.refusals import refused

TOKENS, LAYERS, EXPERTS = 80, 4, 8


def routed(top_k):
    return random_experts((TOKENS, LAYERS), EXPERTS, top_k)


def lost(value, top_k, first=TOKENS):
    experts_TLK = routed(top_k)
    experts_TLK[:first] = value
    return experts_TLK


def changed(experts_TLK, where, value):
    experts_TLK[where] = value
    return experts_TLK


LOST = [
    (lost(0, 1), "all 80 tokens have zeros for experts: the engine's buffer was never filled"),
    (lost(0, 2), "all 80 tokens have zeros for experts"),
    (lost(5, 1), "all 80 tokens have 5 for every expert: a placeholder"),
    (lost([5, 3], 2), "all 80 tokens have one and the same routing, as an engine's warm-up or profile pass"),
    (lost([5, 3], 2, 40), "the first 40 tokens have one and the same routing"),
    (lost(0, 2, 3), "position 0: zeros for experts: the engine's buffer was never filled"),
    (
        changed(routed(2), np.s_[3, 1], 0),
        r"position 3, layer 2: an expert is listed twice in \[0, 0\].* routing is lost",
    ),
    (changed(routed(3), np.s_[:, :, 1], EXPERTS), "slot 1 of 3 never changes, in no layer and for no token"),
    (changed(routed(1), np.s_[:, 2], 0), "layer 3: every token has experts .0.: a dense layer's empty place"),
]


@pytest.mark.parametrize(("experts_TLK", "message"), LOST)
def test_lost_routing_is_refused_and_its_cause_named(experts_TLK, message):
    refused(message, trace_of, experts_TLK, [TOKENS], EXPERTS + 1)


def test_a_placeholder_that_is_a_valid_id_is_found_in_a_single_token():
    experts_TLK = random_experts((20, 40), 256, 1)
    trace_of(experts_TLK, [20], 256)
    experts_TLK[7] = 255
    refused("prompt 'p1', position 2: 255 for every expert: a placeholder", trace_of, experts_TLK, [5, 15], 256)


def test_a_prefix_from_the_engines_cache_is_found_in_a_top_1_model():
    experts_TLK = routed(1)
    experts_TLK[10:15] = 0
    refused("prompt 'p1', position 0: zeros for experts", trace_of, experts_TLK, [10, 70], EXPERTS)


def test_one_lost_prompt_among_others_is_named():
    experts_TLK = routed(2)
    experts_TLK[30:60] = 1, 2
    refused("prompt 'p1': all 30 tokens have one and the same", trace_of, experts_TLK, [30, 30, 20], EXPERTS)


def test_what_a_router_may_do_is_let_through():
    run, popular, whole = routed(2), routed(1), np.broadcast_to(np.arange(EXPERTS), (TOKENS, LAYERS, EXPERTS))
    run[20:60] = run[20]  # a text that repeats one token
    trace_of(run, [TOKENS], EXPERTS)
    same = RoutedPrompt("p", "d", TOKENS, lost([5, 3], 2), token_ids_T=np.full(TOKENS, 7))
    validate(schema.trace_of(trace_of(run, [TOKENS], EXPERTS).metadata, [same]), "one token over and over")
    popular[:60, 1] = 3  # a favourite expert
    trace_of(popular, [TOKENS], EXPERTS)
    trace_of(whole, [TOKENS], EXPERTS)  # every expert, always
    last = routed(2)
    last[:, -1] = last[-1, -1]  # a prefill's last layer, for its last token alone
    trace_of(last, [TOKENS], EXPERTS)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=20), top_k=st.integers(1, 4), seed=st.integers(0, 99))
def test_chance_is_never_taken_for_lost_routing(lengths, top_k, seed):
    experts_TLK = random_experts((sum(lengths), 2), 4, top_k, seed)
    assert trace_of(experts_TLK, lengths, 4).num_prompts == len(lengths)
