"""A predictor's training prompts are known again, decoded to whatever, and nothing else is."""

import shutil

import numpy as np
import pytest

from moe_beyond.data.duplicates import seen_prompts, training_marks
from moe_beyond.predictor.runtime import TRAINING_PROMPTS, OnnxPredictor
from tests.data.test_splitting import random_prompts, trace_of
from tests.traces.refusals import refused
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
    # its first part alone as well
    for again in (with_responses(PROMPTS, RESPONSES[8:]), trace_of(PROMPTS)):
        assert seen_prompts(again, marks) == ["p0", "p1", "p2", "p3"]


def test_another_prompt_that_begins_alike_is_not_seen():
    first = PROMPTS[0][0]
    parts = trace_of([[first, *RESPONSES[0]]], prefill=[1]), with_responses(PROMPTS[:1], RESPONSES[:1])
    marks = training_marks(parts)
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
        message = rf"2 of 2 prompts \('{seen.prompt_ids[2]}' for one\) took part.*--allow-training-prompts"
        refused(message, predictor.refuse_training_prompts, seen.select(np.array([2, 5])))
    copy = OnnxPredictor(shutil.copytree(exported[0], tmp_path / "copy"))
    (tmp_path / "copy" / TRAINING_PROMPTS).unlink()
    message = f"{TRAINING_PROMPTS}: no such file; run the export stage first"
    refused(message, copy.refuse_training_prompts, train_trace)
