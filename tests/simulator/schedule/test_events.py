import numpy as np
from hypothesis import given

from moe_beyond.simulator.schedule.events import NEVER, events_of
from tests.simulator.strategies import make_trace, members, traces


def test_a_batched_prefill_is_one_step_with_the_union_of_each_layer_and_a_decoded_token_another():
    trace = make_trace(3, num_layers=2, num_experts=5, top_k=2, lengths=(4, 3), prefill=(2, 0))
    events = events_of(trace)
    assert events.num_steps == (1 + 2) + 3
    for layer in (0, 1):
        early, late = (trace.experts_TLK[:2, layer].astype(int) + layer * 5).tolist()
        # in order of last use: what only the earlier token wants comes first
        assert members(events)[layer] == [e for e in early if e not in late] + late
    # decode keeps the router's order
    assert members(events)[2:4] == [(trace.experts_TLK[2, layer] + layer * 5).tolist() for layer in (0, 1)]
    assert events.token_S.tolist() == [-1, 2, 3, 4, 5, 6]
    assert events.prompt_S.tolist() == [0, 0, 0, 1, 1, 1]
    assert events.prompt_tokens_PF.tolist() == [[2, 2], [0, 3]]


@given(traces())
def test_next_use_names_the_next_event_that_wants_the_expert(trace):
    events = events_of(trace)
    lists = members(events)
    prompt_N = events.prompt_S[events.step_N].tolist()
    for within in (False, True):
        next_use_A = events.next_use_A(within_prompt=within)
        for now, wanted in enumerate(lists):
            for place, expert in enumerate(wanted):
                later = [n for n in range(now + 1, len(lists)) if expert in lists[n]]
                later = [n for n in later if not within or prompt_N[n] == prompt_N[now]]
                assert next_use_A[events.offsets_N[now] + place] == (later[0] if later else NEVER)


@given(traces())
def test_one_by_one_keeps_the_accesses_and_their_order(trace):
    events = events_of(trace)
    single = events.one_by_one()
    np.testing.assert_array_equal(single.members_A, events.members_A)
    assert single.num_events == events.num_accesses
    assert (np.diff(single.offsets_N) == 1).all()
    np.testing.assert_array_equal(single.layer_N, single.members_A // trace.metadata.num_experts)
