"""No prompt that judges took part in what it judges."""

from dataclasses import replace

import numpy as np

from moe_beyond.advisor.held_out import divide
from moe_beyond.traces.schema import concatenate
from tests.traces.refusals import refused
from tests.traces_of_chance import chance_trace

TRACE = chance_trace(20)


def test_a_quarter_of_the_distinct_prompts_judges_whatever_their_order():
    parts = divide(TRACE)
    assert set(parts.fit.prompt_ids) | set(parts.judge.prompt_ids) == set(TRACE.prompt_ids)
    assert not set(parts.fit.prompt_ids) & set(parts.judge.prompt_ids)
    assert parts.judge.num_prompts == 5
    again = divide(TRACE.select(np.arange(20)[::-1]))
    assert set(again.judge.prompt_ids) == set(parts.judge.prompt_ids)


def test_copies_of_a_prompt_stay_on_one_side():
    copies = replace(TRACE, prompt_ids=tuple(f"copy of {name}" for name in TRACE.prompt_ids))
    parts = divide(concatenate([TRACE, copies]))
    for part in (parts.fit, parts.judge):
        assert {name.removeprefix("copy of ") for name in part.prompt_ids} == {
            name for name in part.prompt_ids if not name.startswith("copy")
        }


def test_held_out_domains_judge_where_there_are_any():
    held_P = np.arange(20) % 3 == 0
    parts = divide(replace(TRACE, held_out_P=held_P))
    assert parts.judge.prompt_ids == tuple(np.array(TRACE.prompt_ids)[held_P])
    assert "held-out domains; 0 of their prompts" in parts.how


def test_another_trace_judges_without_the_prompts_that_both_hold():
    other = chance_trace(6, seed=5, name="other")
    seen = replace(TRACE.select(np.arange(3)), prompt_ids=("a", "b", "c"))
    parts = divide(TRACE, concatenate([other, seen]))
    assert (parts.fit.num_prompts, parts.judge.prompt_ids) == (20, other.prompt_ids)
    assert "3 of its prompts were left out" in parts.how


def test_what_nothing_can_judge_is_refused():
    refused("all prompts are the same or nearly", divide, TRACE.select(np.arange(1)))
    refused("every prompt that could judge", divide, TRACE, TRACE.select(np.arange(2)))
    meta = TRACE.metadata.model_copy(update={"num_experts": 32})
    refused("test trace: num_experts is 32", divide, TRACE, replace(chance_trace(2, seed=5), metadata=meta))
