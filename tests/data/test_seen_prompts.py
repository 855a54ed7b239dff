"""A predictor's training prompts are known again, decoded to whatever, and nothing else is."""

import numpy as np
import pytest

from moe_beyond.data.duplicates import seen_prompts, training_marks
from moe_beyond.errors import InputError
from moe_beyond.predictor.runtime import TRAINING_PROMPTS, OnnxPredictor
from tests.data.test_splitting import random_prompts, trace_of
from tests.traces_of_chance import chance_trace

PROMPTS, RESPONSES = random_prompts(8, length=12), random_prompts(16, length=20, seed=1)


def with_responses(prompts, responses):
    return trace_of([[*p, *a] for p, a in zip(prompts, responses, strict=True)], prefill=[len(p) for p in prompts])


@pytest.mark.parametrize("column", ["texts", "ids", "none"])
def test_a_prompt_of_the_fit_is_seen_in_any_order_and_company(column):
    # ids and routing are those of one model
    whole = trace_of([*PROMPTS, *reversed(PROMPTS[:2])], column=column)
    fit, other = whole.select(np.arange(4)), whole.select(np.arange(4, 10))
    assert seen_prompts(other, training_marks([fit])) == list(other.prompt_ids[4:])
    assert seen_prompts(fit, training_marks([fit])) == list(fit.prompt_ids)


def test_the_same_prompt_with_another_response_is_seen():
    marks = training_marks([with_responses(PROMPTS[:3], RESPONSES[:3]), with_responses(PROMPTS[3:4], RESPONSES[3:4])])
    again = with_responses(PROMPTS, RESPONSES[8:])
    assert seen_prompts(again, marks) == ["p0", "p1", "p2", "p3"]
    # its first part alone as well
    assert seen_prompts(trace_of(PROMPTS), marks) == ["p0", "p1", "p2", "p3"]


def test_another_prompt_that_begins_alike_is_not_seen():
    first = PROMPTS[0][0]
    marks = training_marks(
        [trace_of([[first, *RESPONSES[0]]], prefill=[1]), with_responses(PROMPTS[:1], RESPONSES[:1])]
    )
    others = [[first, *RESPONSES[1]], [first, *PROMPTS[1]], [*PROMPTS[0][:11], "other", *RESPONSES[0]]]
    assert seen_prompts(trace_of(others, prefill=[1, 13, 12]), marks) == []


def test_a_response_that_is_only_decoded_is_known_by_the_whole():
    """Traces without prefill: a single first token would match too much, so all tokens must be the same."""
    fit = trace_of(PROMPTS, prefill=[0] * 8)
    changed = trace_of([[*PROMPTS[0][:-1], "other"], PROMPTS[1]], prefill=[0, 0])
    assert seen_prompts(changed, training_marks([fit])) == ["p1"]


def test_marks_are_sorted_distinct_and_say_nothing_of_the_order():
    parts = [with_responses(PROMPTS[:2], RESPONSES[:2]), with_responses(PROMPTS[1:3], RESPONSES[1:3])]
    marks = training_marks(parts)
    assert marks == sorted(set(marks)) == training_marks(reversed(parts))
    assert len(marks) == 2 * 3


def test_an_exported_predictor_refuses_the_prompts_of_its_fit(exported, train_trace, validation_trace, tmp_path):
    predictor = OnnxPredictor(exported[0])
    predictor.refuse_training_prompts(chance_trace(5, seed=77, name="fresh"))
    for seen in (train_trace, validation_trace):
        mixed = seen.select(np.array([2, 5]))
        with pytest.raises(InputError, match=rf"2 of 2 prompts \('{mixed.prompt_ids[0]}' for one\) took part") as error:
            predictor.refuse_training_prompts(mixed)
        assert "--allow-training-prompts" in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    for path in exported[0].iterdir():
        if path.name != TRAINING_PROMPTS:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=f"{TRAINING_PROMPTS}: no such file; export the predictor again"):
        OnnxPredictor(tmp_path).refuse_training_prompts(train_trace)
