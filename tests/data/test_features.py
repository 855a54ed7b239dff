import numpy as np

from moe_beyond.data.features import previous_routing, token_features
from moe_beyond.data.tokens import TokenEncoder
from tests.traces_of_chance import chance_trace


def test_previous_routing_is_one_token_late_and_none_at_a_prompts_start():
    trace = chance_trace(3)
    previous = previous_routing(trace)
    for start, end in zip(trace.prompt_offsets[:-1], trace.prompt_offsets[1:], strict=True):
        assert (previous[start] == trace.metadata.num_experts).all()
        assert (previous[start + 1 : end] == trace.experts_TLK[start : end - 1]).all()


def test_features_follow_the_tokens():
    trace = chance_trace(4)
    encoder = TokenEncoder.fit(trace, 1, 512)
    features = token_features(trace, encoder)
    tokens, letters = encoder.encode(trace.token_texts.decode())
    assert np.array_equal(features.tokens_T, tokens)
    assert np.array_equal(features.letters_TG, letters)
