from itertools import pairwise

from moe_beyond.data.features import previous_routing, repeated_routing
from tests.traces_of_chance import chance_trace


def test_routing_of_the_token_before_and_of_the_strings_last_time_is_that_of_the_same_prompt():
    trace = chance_trace(6)
    codes, none = trace.token_texts.codes_T, trace.metadata.num_experts
    previous, repeated, found = previous_routing(trace), repeated_routing(trace, codes), 0
    for start, end in pairwise(trace.prompt_offsets):
        before, last = none, {}
        for t in range(start, end):
            assert (previous[t] == before).all()
            assert (repeated[t] == last.get(codes[t], none)).all()
            found += codes[t] in last
            before = last[codes[t]] = trace.experts_TLK[t]
    assert found > 5
