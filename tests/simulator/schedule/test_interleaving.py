from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.strategies import make_trace, members, traces

PREFILLS = st.sampled_from(["batched", "token_by_token"])


def slow_steps(trace, prefill, batch, waves):
    """Every step in plain Python: whether it decodes, its tokens in no order, and its session."""
    waiting = [[*range(*ends)] for ends in pairwise(trace.prompt_offsets.tolist())]
    prefills = trace.num_prefill_P.tolist() if prefill == "batched" else [0] * trace.num_prompts
    running, steps, session, joined = [], [], 0, 0
    while waiting or running:
        if waves and not running and joined:
            session, joined = session + 1, 0
        while waiting and (joined < batch if waves else len(running) < batch):
            if waves and running and steps and steps[-1][0] and steps[-1][2] == session:
                break  # the wave is under way
            tokens = waiting.pop(0)
            ahead = prefills[trace.num_prompts - len(waiting) - 1]
            joined += 1
            if ahead:
                steps.append((False, tokens[:ahead], session))
            if tokens[ahead:]:
                running.append(tokens[ahead:])
        if running:
            steps.append((True, [tokens.pop(0) for tokens in running], session))
        running = [tokens for tokens in running if tokens]
    return steps


def tokens_of(events, step):
    return events.schedule.tokens_I[events.schedule.offsets_S[step] : events.schedule.offsets_S[step + 1]]


@given(traces(), PREFILLS, st.integers(1, 4), st.booleans())
def test_steps_unions_owners_and_shares_are_those_of_a_slow_obvious_scheduler(trace, prefill, batch, waves):
    events = events_of(trace, prefill, batch=batch, waves=waves)
    expected, meta = slow_steps(trace, prefill, batch, waves), trace.metadata
    assert events.is_decode_S.tolist() == [decodes for decodes, _, _ in expected]
    assert events.num_tokens_S.tolist() == [len(tokens) for _, tokens, _ in expected]
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    if batch > 1:
        assert events.prompt_S.tolist() == [session for _, _, session in expected]
    found, row_A = iter(members(events)), iter(events.row_A.tolist())
    for step, (decodes, tokens, _) in enumerate(expected):
        ordered = tokens if events.schedule is None else tokens_of(events, step).tolist()
        assert sorted(ordered) == sorted(tokens)
        for layer in range(meta.num_layers):
            listed = next(found)
            assert sorted(listed) == np.unique(trace.experts_TLK[tokens, layer] + layer * meta.num_experts).tolist()
            # an access counts for the prompt that wants it last in the order of the step's tokens
            for expert in listed:
                latest = [t for t in ordered if expert % meta.num_experts in trace.experts_TLK[t, layer]][-1]
                assert next(row_A) == 2 * prompt_T[latest] + decodes
    assert next(found, None) is None
    np.testing.assert_allclose(np.add.reduceat(events.shares_A, events.offsets_N[:-1]), 1, atol=1e-5)
    # what a decode step took is shared by its tokens
    values_S, expected_P = np.random.default_rng(0).random(events.num_steps), np.zeros(trace.num_prompts)
    for (decodes, tokens, _), value in zip(expected, values_S, strict=True):
        np.add.at(expected_P, prompt_T[tokens], decodes * value / len(tokens))
    np.testing.assert_allclose(events.by_prompt(values_S), expected_P)


@given(traces(), st.integers(2, 4))
def test_the_chance_of_a_step_is_that_any_of_its_tokens_wants_the_expert(trace, batch):
    chances_TLE = np.random.default_rng(0).random((trace.num_tokens, 2, 3), np.float32)
    events = events_of(trace, batch=batch)
    merged_RLE = events.by_step(chances_TLE)
    assert len(merged_RLE) == events.is_decode_S.sum()
    for step in np.nonzero(events.is_decode_S)[0]:
        none = (1 - chances_TLE[tokens_of(events, step)]).prod(axis=0)
        np.testing.assert_allclose(merged_RLE[events.token_S[step]], 1 - none, atol=1e-6)
    transposed = events.by_step(np.moveaxis(chances_TLE, 0, 1), axis=1)
    np.testing.assert_array_equal(transposed, np.moveaxis(merged_RLE, 0, 1))


def test_a_batch_below_one_is_refused():
    with pytest.raises(InputError, match="batch: 0 prompts at once; give at least 1"):
        events_of(make_trace(0), batch=0)


def test_a_verify_block_is_the_union_of_its_tokens_and_goes_on_after_those_accepted():
    trace = make_trace(2, num_layers=2, num_experts=8, top_k=2, lengths=(9, 4), prefill=(3, 0))
    events = events_of(trace, block=4, accepted_share=0.5)
    _, tokens_I, offsets_S = events.routed()
    steps = [tokens_I[start:end].tolist() for start, end in pairwise(offsets_S)]
    # two of four are accepted: the others are verified again
    assert steps == [[0, 1, 2], [3, 4, 5, 6], [5, 6, 7, 8], [7, 8], [9, 10, 11, 12], [11, 12]]
    for event in range(events.num_events):
        step, layer = events.step_N[event], events.layer_N[event]
        used = set(trace.experts_TLK[steps[step], layer].ravel() + layer * 8)
        assert set(members(events)[event]) == used
    # each token counts once
    assert events.prompt_tokens_PF.tolist() == [[3, 6], [0, 4]]
    assert events.by_prompt(np.ones(events.num_steps)).tolist() == [3, 2]


def test_blocks_of_one_token_are_plain_decoding_and_a_share_that_rounds_comes_out_on_average():
    trace = make_trace(2, num_layers=1, num_experts=8, top_k=2, lengths=(401,), prefill=(1,))
    plain, blocks = events_of(trace), events_of(trace, block=5, accepted_share=0.5)
    assert blocks.num_steps == 1 + 400 / 2.5
    again = events_of(trace, block=1, accepted_share=0.5)
    np.testing.assert_array_equal(plain.members_A, again.members_A)


def test_blocks_that_are_mostly_rejected_use_more_experts_than_the_trace_routes():
    trace = make_trace(3, num_layers=3, num_experts=64, top_k=2, lengths=(300,), prefill=(0,))
    events = events_of(trace, block=4, accepted_share=0.25)
    assert events.num_steps == 300
    assert events.num_accesses > 2 * trace.experts_TLK.size
    assert events.members_A.max() < 3 * 64


def test_all_tokens_of_a_block_have_the_chances_of_its_first():
    trace = make_trace(2, num_layers=1, num_experts=2, top_k=1, lengths=(3,), prefill=(0,))
    chances = np.array([0.5, 0.9, 0.2], np.float32)[:, None]
    events = events_of(trace, block=2, accepted_share=1.0)
    np.testing.assert_allclose(events.by_step(chances)[:, 0], [0.75, 0.2], rtol=1e-6)
    np.testing.assert_allclose(events.by_step(chances[None], axis=1)[0, :, 0], [0.75, 0.2], rtol=1e-6)


def test_blocks_without_an_accepted_share_or_beside_a_batch_are_refused():
    trace = make_trace(2, num_layers=1, num_experts=4, top_k=1, lengths=(3,), prefill=(0,))
    for words, message in (
        ({"block": 2}, "give accepted_share too"),
        ({"block": 2, "batch": 2, "accepted_share": 0.5}, "give one of them as 1"),
        ({"block": 0, "accepted_share": 0.5}, "give at least 1"),
        ({"block": 2, "accepted_share": 1.5}, "above 0 and at most 1"),
    ):
        with pytest.raises(InputError, match=message):
            events_of(trace, **words)
