import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of
from tests.simulator.engine import slow_clock
from tests.simulator.strategies import capacities_of, make_trace, members, traces

PREFILLS = st.sampled_from(["batched", "token_by_token"])


def slow_steps(trace, prefill, batch, waves):
    """Every step in plain Python: whether it decodes, its tokens in no order, and its session."""
    waiting = [
        [*range(int(start), int(end))]
        for start, end in zip(trace.prompt_offsets[:-1], trace.prompt_offsets[1:], strict=True)
    ]
    prefills = trace.num_prefill_P.tolist() if prefill == "batched" else [0] * trace.num_prompts
    running: list[list[int]] = []
    steps: list[tuple[bool, list[int], int]] = []
    session, joined = 0, 0
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


@given(traces(), PREFILLS, st.integers(1, 4), st.booleans())
def test_steps_and_unions_are_those_of_a_slow_obvious_scheduler(trace, prefill, batch, waves):
    events = events_of(trace, prefill, batch=batch, waves=waves)
    expected = slow_steps(trace, prefill, batch, waves)
    assert events.is_decode_S.tolist() == [decodes for decodes, _, _ in expected]
    assert events.num_tokens_S.tolist() == [len(tokens) for _, tokens, _ in expected]
    if batch > 1:
        assert events.prompt_S.tolist() == [session for _, _, session in expected]
    found = iter(members(events))
    for _, tokens, _ in expected:
        for layer in range(trace.metadata.num_layers):
            union = set((trace.experts_TLK[tokens, layer].astype(int) + layer * trace.metadata.num_experts).ravel())
            listed = next(found)
            assert set(listed) == union
            assert len(listed) == len(union)
    assert next(found, None) is None


@given(traces(), PREFILLS)
def test_a_batch_of_one_is_one_prompt_after_another(trace, prefill):
    alone = events_of(trace, prefill)
    one = events_of(trace, prefill, batch=1, waves=True)
    for name in ("members_A", "offsets_N", "layer_N", "step_N", "prompt_S", "token_S", "prompt_tokens_PF", "shares_A"):
        np.testing.assert_array_equal(getattr(one, name), getattr(alone, name), err_msg=name)


@given(traces(), PREFILLS, st.integers(2, 4), st.booleans())
def test_an_access_counts_for_a_prompt_that_wants_it_the_latest_in_turn(trace, prefill, batch, waves):
    events = events_of(trace, prefill, batch=batch, waves=waves)
    assert events.schedule is not None
    assert events.owner_A is not None
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    for event, listed in enumerate(members(events)):
        step, layer = events.step_N[event], events.layer_N[event]
        tokens = events.schedule.tokens_I[events.schedule.offsets_S[step] : events.schedule.offsets_S[step + 1]]
        for place, expert in enumerate(listed):
            slot = expert - layer * trace.metadata.num_experts
            latest = [t for t in tokens.tolist() if slot in trace.experts_TLK[t, layer].tolist()][-1]
            assert events.owner_A[events.offsets_N[event] + place] == prompt_T[latest]


@given(traces(), PREFILLS, st.integers(1, 4))
def test_what_a_decode_step_took_is_shared_by_its_tokens(trace, prefill, batch):
    events = events_of(trace, prefill, batch=batch)
    values_S = np.random.default_rng(0).random(events.num_steps)
    expected_P = np.zeros(trace.num_prompts)
    prompt_T = np.repeat(np.arange(trace.num_prompts), np.diff(trace.prompt_offsets))
    for (decodes, tokens, _), value in zip(slow_steps(trace, prefill, batch, False), values_S, strict=True):
        for token in tokens if decodes else []:
            expected_P[prompt_T[token]] += value / len(tokens)
    np.testing.assert_allclose(events.by_prompt(values_S), expected_P)


@given(traces(), st.integers(2, 4))
def test_the_chance_of_a_step_is_that_any_of_its_tokens_wants_the_expert(trace, batch):
    chances_TLE = np.random.default_rng(0).random((trace.num_tokens, 2, 3), np.float32)
    events = events_of(trace, batch=batch)
    assert events.schedule is not None
    merged_RLE = events.by_step(chances_TLE)
    assert len(merged_RLE) == events.is_decode_S.sum()
    for step in np.nonzero(events.is_decode_S)[0]:
        tokens = events.schedule.tokens_I[events.schedule.offsets_S[step] : events.schedule.offsets_S[step + 1]]
        nobody = np.ones((2, 3))
        for token in tokens:
            nobody *= 1 - chances_TLE[token]
        np.testing.assert_allclose(merged_RLE[events.token_S[step]], 1 - nobody, atol=1e-6)
    transposed = events.by_step(np.moveaxis(chances_TLE, 0, 1), axis=1)
    np.testing.assert_array_equal(transposed, np.moveaxis(merged_RLE, 0, 1))


@given(traces(), PREFILLS, st.integers(1, 4))
def test_shares_of_the_routers_weight_sum_to_one_in_every_event(trace, prefill, batch):
    events = events_of(trace, prefill, batch=batch)
    assert events.shares_A is not None
    np.testing.assert_allclose(np.add.reduceat(events.shares_A, events.offsets_N[:-1]), 1, atol=1e-5)


@given(traces(), PREFILLS, st.integers(2, 4), st.booleans(), st.data())
def test_a_replay_counts_for_each_prompt_what_a_slow_one_finds(trace, prefill, batch, keep_warm, data):
    events = events_of(trace, prefill, batch=batch, waves=not keep_warm)
    capacity = data.draw(capacities_of(trace))
    budget = Budget.slots(trace.metadata, capacity)
    case = slow_clock.Case(events, budget, slow_clock.RANKS["lru"], keep_warm=keep_warm)
    hit_A = [outcome != slow_clock.MISSED for record in slow_clock.replay(case) for outcome in record.outcomes]
    result = replay(events, Lru(), budget, keep_warm=keep_warm)
    for prompt in range(trace.num_prompts):
        mine = np.asarray(events.owner_A) == prompt
        assert result.accesses_P[prompt] == mine.sum()
        assert result.hits_P[prompt] == np.asarray(hit_A)[mine].sum()
    assert result.total.hits == sum(hit_A)
    assert result.total.tokens == trace.num_tokens


@pytest.mark.parametrize("batch", [0, -2])
def test_a_batch_below_one_is_refused(batch):
    with pytest.raises(InputError, match=f"batch: {batch} prompts at once; give at least 1"):
        events_of(make_trace(0), batch=batch)
