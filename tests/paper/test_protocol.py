from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_beyond.errors import InputError
from moe_beyond.paper.protocol import WARM_UP_TOKENS, published_replay
from moe_beyond.predictor.recall import most_probable
from tests.simulator.strategies import make_trace


def access(cache, key, capacity):
    """Returns whether the key was absent."""
    absent = key not in cache
    cache.pop(key, None)
    cache[key] = None
    if len(cache) > capacity:
        cache.popitem(last=False)
    return absent


def by_hand(trace, predicted_TLK, fills):
    """The protocol as one would write it down: an ordered dict, a loop over rows. Hits and loaded bytes by prompt."""
    num_layers, num_experts = trace.metadata.num_layers, trace.metadata.num_experts
    hits, loaded = [], []
    for prompt, fill in enumerate(fills):
        cache = OrderedDict.fromkeys(fill)
        count = moved = 0
        start, end = trace.prompt_offsets[prompt : prompt + 2]
        rows = [(t, layer) for t in range(start, end) for layer in range(num_layers)]
        for row, (token, layer) in enumerate(rows):
            actual = [layer * num_experts + int(e) for e in trace.experts_TLK[token, layer]]
            if row <= WARM_UP_TOKENS * num_layers:
                for key in actual:
                    access(cache, key, len(fill))
            if row >= WARM_UP_TOKENS * num_layers:
                keys = [layer * num_experts + int(e) for e in predicted_TLK[token, layer]]
                absent = [access(cache, key, len(fill)) for key in keys + actual]
                count += len(actual) - sum(absent[len(keys) :])
                moved += sum(absent) * trace.metadata.expert_bytes[layer]
        hits.append(count)
        loaded.append(moved)
    return hits, loaded


@given(seed=st.integers(0, 1000), capacity=st.integers(1, 15), width=st.integers(0, 5))
def test_it_equals_the_protocol_written_by_hand(seed, capacity, width):
    lengths = (14, 8, 11)
    trace = make_trace(seed, num_layers=3, lengths=lengths, prefill=lengths, expert_bytes=(100, 20, 3))
    scores = np.random.default_rng(seed).random((33, 3, 5), np.float32)
    predicted = most_probable(scores, width)
    replay = published_replay(trace, predicted, capacity, seed)
    draw = np.random.default_rng(seed)
    fills = [draw.choice(15, capacity, replace=False).tolist() for _ in range(3)]
    hits, loaded = by_hand(trace, predicted, fills)
    assert replay.hits_P.tolist() == hits
    assert replay.loaded_bytes_P.tolist() == loaded
    assert replay.accesses_P.tolist() == [4 * 3 * 2, 0, 1 * 3 * 2]


def test_predictions_of_another_trace_are_refused():
    trace = make_trace(1)
    with pytest.raises(InputError, match="predict for this trace"):
        published_replay(trace, np.zeros((3, 2, 2), np.uint8), 4, seed=0)
    with pytest.raises(InputError, match="give between 1 and 10"):
        published_replay(trace, trace.experts_TLK, 0, seed=0)
