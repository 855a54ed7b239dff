"""Texts that a trace holds, as what a running model reads.

Shape suffix: T tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from moe_beyond.traces.schema import Trace

_LEAST_TEXT = 8
"""Tokens of a text beyond its prefill that are worth comparing."""


def whole_texts(trace: Trace) -> list[EncodedPrompt]:
    """Each prompt of a trace with what was decoded after it.

    Raises:
        InputError: The trace has no token ids.
    """
    ids_T = trace.token_ids_T
    if ids_T is None:
        raise InputError(
            f"{trace.metadata.model_id}: the trace holds no token ids, so it cannot be decoded again; set "
            "extract.privacy to text or ids"
        )
    ends = itertools.pairwise(trace.prompt_offsets.tolist())
    return [
        EncodedPrompt(name, domain, held_out=False, token_ids=tuple(ids_T[start:end].tolist()))
        for name, domain, (start, end) in zip(trace.prompt_ids, trace.domains, ends, strict=True)
    ]


def texts_of(trace: Trace) -> tuple[list[EncodedPrompt], list[tuple[int, ...]]]:
    """A trace's prompts, and the token ids of each with what was decoded after it.

    Raises:
        InputError: As `whole_texts`; or a prompt of which nothing was decoded.
    """
    prompts, texts = [], []
    for whole, prefill in zip(whole_texts(trace), trace.num_prefill_P.tolist(), strict=True):
        if not 0 < prefill < len(whole.token_ids):
            raise InputError(
                f"prompt {whole.prompt_id}: has no prefill or no decoded token; set extract.decode_tokens above 0"
            )
        prompts.append(replace(whole, token_ids=whole.token_ids[:prefill]))
        texts.append(whole.token_ids)
    return prompts, texts


def with_decoded_tokens(trace: Trace) -> Trace:
    """The prompts that have both a prefill and decoded tokens: a model may end at once.

    Raises:
        InputError: None has.
    """
    decoded_P = np.diff(trace.prompt_offsets) - trace.num_prefill_P
    found = np.flatnonzero((trace.num_prefill_P > 0) & (decoded_P > 0))
    if not len(found):
        raise InputError(
            f"{trace.metadata.model_id}: no prompt has a prefill and a decoded token; set extract.decode_tokens above 0"
        )
    return trace.select(found)


def held_out_texts(trace: Trace, num_texts: int, prefill: int, num_tokens: int) -> list[EncodedPrompt]:
    """The prompts' own text, not what a model wrote after it: of the first ones that are long enough.

    Args:
        trace: Of test prompts, with token ids.
        num_texts: How many.
        prefill: Tokens of each that are read first.
        num_tokens: Tokens after them, at most.

    Raises:
        InputError: As `whole_texts`; or no prompt is long enough.
    """
    own = zip(whole_texts(trace), trace.num_prefill_P.tolist(), strict=True)
    enough = [(text, length) for text, length in own if length >= prefill + _LEAST_TEXT][:num_texts]
    if not enough:
        raise InputError(f"verify.quality_prefill: no test prompt has {prefill + _LEAST_TEXT} tokens; set it lower")
    return [replace(text, token_ids=text.token_ids[: min(length, prefill + num_tokens)]) for text, length in enough]
