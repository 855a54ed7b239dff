"""Which tokens run together: prompts one after another, or several of them interleaved as a server does.

With a batch of B, B prompts run at once and a step decodes one token of each. A prompt that has ended gives its place
to the next one (continuous batching). A newcomer's batched prefill is a step of its own, in which the others wait; then
it decodes with them. A batch of 1 is one prompt after another.

Speculative decoding verifies a block of drafted tokens in one step. No trace says how a rejected draft was routed: the
tokens at its place in the trace stand in for it, and are routed again by the next block.

A cache that starts cold at every prompt has no meaning while others run, so cold starts come by waves: B prompts begin
on an empty cache, and the next B when all of them have ended.

Shape suffixes: P prompts, T tokens of the trace, S steps, I tokens of all steps, one step after another. Offsets have
one element more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from moe_beyond.errors import InputError
from moe_beyond.simulator.jit import I32, I64, Bools


@dataclass(frozen=True)
class Schedule:
    """The tokens of every step.

    Attributes:
        tokens_I: int64, index of each token in the trace; of a decode step in turn: each step begins with another
            prompt of those that run.
        prompt_I: int32, the prompt of each of them.
        offsets_S: int64 [S+1]; step s runs `tokens_I[offsets_S[s]:offsets_S[s+1]]`.
        is_decode_S: True for steps that decode, False for batched prefills.
        session_S: int32, rising; a session is what runs between two emptyings of a cold cache: a prompt, or of
            several at once a wave. Continuous batching is one session.
    """

    tokens_I: I64
    prompt_I: I32
    offsets_S: I64
    is_decode_S: Bools
    session_S: I32

    @property
    def num_steps(self) -> int:
        """Number of steps, S."""
        return len(self.is_decode_S)


class _Step(NamedTuple):
    tokens: Sequence[int]
    decodes: bool
    session: int


def one_after_another(prompt_offsets: I64, batched_P: I64) -> Schedule:
    """Prompts one after another, each with a batched prefill of `batched_P` tokens, then a step a token."""
    sizes: list[I64] = []
    for start, end, batched in zip(prompt_offsets[:-1], prompt_offsets[1:], batched_P, strict=True):
        decoded = np.ones(end - start - batched, np.int64)
        sizes.append(np.concatenate([[batched], decoded]) if batched else decoded)
    size_S = np.concatenate(sizes)
    offsets_S = np.concatenate([[0], np.cumsum(size_S)])
    prompt_S = np.repeat(np.arange(len(batched_P), dtype=np.int32), [len(prompt) for prompt in sizes])
    # a batched prefill begins its prompt
    is_prefill_S = (offsets_S[:-1] == prompt_offsets[prompt_S]) & (batched_P[prompt_S] > 0)
    tokens_I, prompt_I = np.arange(prompt_offsets[-1]), _prompt_T(prompt_offsets)
    return Schedule(tokens_I, prompt_I, offsets_S, ~is_prefill_S, prompt_S)


def verify_blocks(prompt_offsets: I64, batched_P: I64, block: int, accepted_share: float) -> Schedule:
    """Prompts one after another, whose decode steps verify `block` tokens each; at a prompt's end what is left of them.

    Args:
        prompt_offsets: int64 [P+1]; where the prompts begin and end.
        batched_P: int64; first tokens of each prompt that are one step.
        block: Tokens of a step.
        accepted_share: Which part of a block's tokens is kept, on average over blocks; at least one of each.

    Raises:
        InputError: `block` is below 1, or the share is not above 0 and at most 1.
    """
    if block < 1:
        raise InputError(f"block_tokens: {block} tokens in a verify block; give at least 1")
    if not 0 < accepted_share <= 1:
        raise InputError(f"accepted_share: {accepted_share}; give a number above 0 and at most 1")
    single = one_after_another(prompt_offsets, batched_P)
    accepted = np.diff(np.floor(np.arange(int(prompt_offsets[-1]) + 1) * block * accepted_share + 1e-9))
    moves = np.maximum(accepted.astype(np.int64), 1)
    sizes, firsts, decodes, prompts = [], [], [], []
    for prompt, (start, end, batched) in enumerate(
        zip(prompt_offsets[:-1], prompt_offsets[1:], batched_P, strict=True)
    ):
        # where blocks begin, of which the last keeps what is left
        begins = start + batched + np.concatenate([[0], np.cumsum(moves[: end - start - batched])])
        begins = begins[begins < end]
        first = np.concatenate([[start], begins]) if batched else begins
        size = np.minimum(block, end - first)
        if batched:
            size[0] = batched
        firsts.append(first)
        sizes.append(size)
        decodes.append(np.arange(len(first)) >= (batched > 0))
        prompts.append(np.full(len(first), prompt, np.int32))
    size_S, first_S = np.concatenate(sizes), np.concatenate(firsts)
    offsets_S = np.concatenate([[0], np.cumsum(size_S)])
    tokens_I = np.repeat(first_S - offsets_S[:-1], size_S) + np.arange(offsets_S[-1])
    return Schedule(tokens_I, single.prompt_I[tokens_I], offsets_S, np.concatenate(decodes), np.concatenate(prompts))


def _prompt_T(prompt_offsets: I64) -> I32:
    return np.repeat(np.arange(len(prompt_offsets) - 1, dtype=np.int32), np.diff(prompt_offsets))


def interleave(prompt_offsets: I64, batched_P: I64, batch: int, *, waves: bool) -> Schedule:
    """Several prompts at once, in the order of the trace.

    Args:
        prompt_offsets: int64 [P+1]; where the prompts begin and end.
        batched_P: int64; first tokens of each prompt that are one step.
        batch: Prompts that run at once.
        waves: Begin the next prompts only when all running ones have ended, instead of as soon as a place is free.

    Raises:
        InputError: `batch` is below 1.
    """
    if batch < 1:
        raise InputError(f"batch: {batch} prompts at once; give at least 1")
    if batch == 1:
        return one_after_another(prompt_offsets, batched_P)
    steps = list(_steps(prompt_offsets.tolist(), batched_P.tolist(), batch, waves=waves))
    tokens_I = np.array([token for step in steps for token in step.tokens], np.int64)
    return Schedule(
        tokens_I=tokens_I,
        prompt_I=_prompt_T(prompt_offsets)[tokens_I],
        offsets_S=np.concatenate([[0], np.cumsum([len(step.tokens) for step in steps])]).astype(np.int64),
        is_decode_S=np.array([step.decodes for step in steps]),
        session_S=np.array([step.session for step in steps], np.int32),
    )


def _steps(offsets: list[int], batched: list[int], batch: int, *, waves: bool) -> Iterator[_Step]:
    waiting = deque(range(len(batched)))
    # of each running prompt the tokens that it has still to decode
    running: list[range] = []
    session, turn = -1, 0
    while waiting or running:
        free = batch - len(running)
        if waves and running:
            free = 0
        elif waves or session < 0:
            session += 1
        while waiting and free:
            prompt = waiting.popleft()
            first, end = offsets[prompt] + batched[prompt], offsets[prompt + 1]
            if batched[prompt]:
                yield _Step(range(offsets[prompt], first), False, session)
            if first < end:
                running.append(range(first, end))
            # what was all prefill has ended with it: the next one takes its place, but in a wave none does
            free -= waves or first < end
        if running:
            begin = turn % len(running)
            yield _Step([tokens[0] for tokens in running[begin:] + running[:begin]], True, session)
            running = [tokens[1:] for tokens in running if len(tokens) > 1]
            turn += 1
