"""Texts of a trace are its own tokens; one without token ids, decoded tokens or long prompts is refused."""

from dataclasses import replace

import numpy as np
import pytest

from moe_beyond.errors import InputError
from moe_beyond.live.texts import held_out_texts, texts_of, whole_texts, with_decoded_tokens
from tests.traces_of_chance import chance_trace


def test_whole_texts_are_the_trace_s_tokens():
    trace = chance_trace(12)
    texts = whole_texts(trace)
    assert [text.prompt_id for text in texts] == list(trace.prompt_ids)
    assert [len(text.token_ids) for text in texts] == np.diff(trace.prompt_offsets).tolist()
    assert [token for text in texts for token in text.token_ids] == trace.token_ids_T.tolist()


def test_a_trace_that_cannot_be_decoded_again_is_refused():
    trace = chance_trace(12)
    for texts in (texts_of, whole_texts):
        with pytest.raises(InputError, match="the trace holds no token ids"):
            texts(replace(trace, token_ids_T=None))
    nothing_decoded = np.diff(trace.prompt_offsets).astype(np.int32)
    with pytest.raises(InputError, match="prompt p0: has no prefill or no decoded token"):
        texts_of(replace(trace, num_prefill_P=nothing_decoded))


def test_prompts_that_the_model_ended_at_once_are_passed_over():
    trace = chance_trace(12)
    lengths = np.diff(trace.prompt_offsets)
    ended = replace(trace, num_prefill_P=np.where(np.arange(12) % 3, trace.num_prefill_P, lengths).astype(np.int32))
    prompts, _ = texts_of(with_decoded_tokens(ended))
    assert [prompt.prompt_id for prompt in prompts] == [f"p{i}" for i in range(12) if i % 3]
    # their own text is there all the same
    longest = int(lengths[::3].argmax()) * 3
    assert f"p{longest}" in [text.prompt_id for text in held_out_texts(ended, 12, 2, 9)]
    with pytest.raises(InputError, match="no prompt has a prefill and a decoded token"):
        with_decoded_tokens(replace(trace, num_prefill_P=lengths.astype(np.int32)))


def test_held_out_texts_are_the_prompts_own():
    trace = chance_trace(12)
    texts = held_out_texts(trace, 3, 2, 9)
    long = [row for row, prefill in enumerate(trace.num_prefill_P) if prefill >= 2 + 8][:3]
    assert [text.prompt_id for text in texts] == [trace.prompt_ids[row] for row in long]
    for row, text in zip(long, texts, strict=True):
        start = int(trace.prompt_offsets[row])
        length = min(int(trace.num_prefill_P[row]), 2 + 9)
        assert text.token_ids == tuple(trace.token_ids_T[start : start + length].tolist())
    with pytest.raises(InputError, match=r"verify\.quality_prefill: no test prompt has 208 tokens; set it lower"):
        held_out_texts(trace, 3, 200, 9)
