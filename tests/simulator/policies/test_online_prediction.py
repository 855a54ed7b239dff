"""A predictor's requests beside a model, against those of the replay."""

from itertools import pairwise

import numpy as np
import pytest

from moe_beyond.errors import InputError
from moe_beyond.predictor.runtime import OnnxPredictor
from moe_beyond.simulator.engine.online import Routing, Step
from moe_beyond.simulator.policies.online_prediction import predicted
from moe_beyond.simulator.policies.predictions import Predictions
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.schedule.prefetches import before, when_routed


def requests_beside_a_model(trace, online):
    """Moment, event, experts and scores of each request while the trace's prompts run one after another."""
    meta, texts, event, found = trace.metadata, trace.token_texts.decode(), 0, []
    for prompt in range(trace.num_prompts):
        first, end = (int(at) for at in trace.prompt_offsets[prompt : prompt + 2])
        decode = first + int(trace.num_prefill_P[prompt])
        for start, stop in [(first, decode), *((token, token + 1) for token in range(decode, end))]:
            step = Step(event, prompt, start >= decode, start == first, tuple(texts[start:stop]))
            experts_TLK = trace.experts_TLK[start:stop].astype(np.int64)
            made = [(int(before(event)), request) for request in online.begin(step)[1]]
            for layer in range(meta.num_layers):
                nothing = {"members_I": np.zeros(0, np.int32), "shares_I": np.zeros(0, np.float32)}
                routing = Routing(event, layer, step.decodes, experts_TK=experts_TLK[:, layer], **nothing)
                made += [(int(when_routed(event)), request) for request in online.routed(routing)]
                event += 1
            online.end(step, experts_TLK)
            found += [(known, request.target, request.experts_W.tolist(), request.scores_E) for known, request in made]
    return found


@pytest.mark.parametrize("next_token", [False, True])
@pytest.mark.parametrize("layers", [False, True])
def test_beside_a_model_the_same_is_requested_at_the_same_moments(exported, validation_trace, layers, next_token):
    trace, predictor = validation_trace.select(np.arange(3)), OnnxPredictor(exported[0])
    events, popularity_LE = events_of(trace), np.full((3, 16), 0.2, np.float32)
    predictions = Predictions(predictor, trace, events, popularity_LE=popularity_LE)
    replayed = predictions.prefetch(predictions.eviction(), 2, 0.2, layers=layers, next_token=next_token)
    made = replayed.prefetches(events)
    named = [made.experts_X[a:b].tolist() for a, b in pairwise(made.offsets_Q)]
    expected = sorted(zip(made.known_Q.tolist(), made.target_Q.tolist(), named, strict=True))
    policy, online = predicted(
        predictor, trace.metadata, popularity_LE, None, 2, 0.2, layers=layers, next_token=next_token
    )
    assert (policy.name, policy.title) == (replayed.name, replayed.title)
    # what would follow the last token is not in a trace
    found = [one for one in requests_beside_a_model(trace, online) if one[1] < events.num_events]
    assert sorted(one[:3] for one in found) == expected
    for known, target, _, scores_E in found:
        if known % 2 == 0 or target % 3 == 0:  # of a token step, or for the next token
            assert scores_E is None
            continue
        # of the layers ahead evictions read what the layer step said last
        row, ahead = events.token_S[events.step_N[target]], target - known // 2
        assert scores_E == pytest.approx(replayed.ahead_HTLE[ahead - 1, row, target % 3], abs=1e-5)
    across = [one for one in expected if one[1] % 3 == 0 and one[0] % 2]
    # at every decoded token but the last: another prompt's prefill may follow, too
    assert len(across) == next_token * (events.prompt_tokens_PF[:, 1].sum() - 1)


def test_a_predictor_that_says_nothing_of_later_tokens_is_not_asked_for_them(exported, validation_trace, monkeypatch):
    predictor = OnnxPredictor(exported[0])
    monkeypatch.setattr(OnnxPredictor, "predicts_later", False)
    with pytest.raises(InputError, match="says nothing of later tokens"):
        predicted(predictor, validation_trace.metadata, None, None, 2, 0.0, layers=True, next_token=True)
