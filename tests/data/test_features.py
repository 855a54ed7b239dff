import numpy as np

from moe_beyond.data.features import previous_routing, repeated_routing, token_features
from moe_beyond.data.tokens import TokenEncoder
from tests.traces_of_chance import chance_trace


def test_previous_routing_is_one_token_late_and_none_at_a_prompts_start():
    trace = chance_trace(3)
    previous = previous_routing(trace)
    for start, end in zip(trace.prompt_offsets[:-1], trace.prompt_offsets[1:], strict=True):
        assert (previous[start] == trace.metadata.num_experts).all()
        assert (previous[start + 1 : end] == trace.experts_TLK[start : end - 1]).all()


def test_repeated_routing_is_that_of_the_strings_last_time_in_the_prompt():
    trace = chance_trace(6)
    codes = trace.token_texts.codes_T
    repeated, found = repeated_routing(trace, codes), 0
    for start, end in zip(trace.prompt_offsets[:-1], trace.prompt_offsets[1:], strict=True):
        last = {}
        for t in range(start, end):
            expected = trace.experts_TLK[last[codes[t]]] if codes[t] in last else trace.metadata.num_experts
            assert (repeated[t] == expected).all()
            found += codes[t] in last
            last[codes[t]] = t
    assert found > 5


def test_features_follow_the_tokens_with_routing_of_the_token_before_and_of_the_strings_last_time():
    trace = chance_trace(4)
    encoder, top_k = TokenEncoder.fit(trace, 1, 512), trace.metadata.top_k
    features = token_features(trace, encoder)
    tokens, letters = encoder.encode(trace.token_texts.decode())
    assert np.array_equal(features.tokens_T, tokens)
    assert np.array_equal(features.letters_TG, letters)
    assert np.array_equal(features.previous_TLM[..., :top_k], previous_routing(trace))
    assert np.array_equal(features.previous_TLM[..., top_k:], repeated_routing(trace, trace.token_texts.codes_T))
