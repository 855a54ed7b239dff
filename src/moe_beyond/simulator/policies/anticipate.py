# ruff: noqa: PLR0917 - compiled functions take positional arguments only
"""Ours: eviction by the predicted next use.

The predictor predicts all layers before a token's first one, so experts of the layers still to come are known with
some probability. Of the layers that have passed, the next use lies in the next token at the earliest. A predictor that
says how often the tokens to come will use each expert is taken at its word: the expert that is least likely to be used
in what is left of this token or in the next one is evicted.

Of one that does not, it is the expert with the longest expected time until its next use. That is by the expert's rate,
for the next token moved some way towards what this token's was. The rate starts from the popularity in the training
split at each prompt, and follows what the prompt uses. Popularity alone does well on a stand-in model whose routing is
lexical, and loses to LRU on real traces, which have locality.

Shape suffixes: T tokens, S steps, N events, A accesses, L MoE layers, E routed experts in a layer, M = L * E experts,
H layers ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from typing_extensions import override

from moe_beyond.simulator.engine.policy import LAST_STEP, LAYER, RANKS, SCORE, SECOND_SCORE, Policy, Rank, sentence
from moe_beyond.simulator.jit import F32, F64, I32, I64, RANK, compiled
from moe_beyond.simulator.schedule.events import Events

PERSISTENCE = 0.3
"""How far this token's probability carries over to the next token."""
MEMORY = 0.06
"""Weight of the latest token in an expert's rate: a memory of some sixteen tokens."""
# both were chosen on validation prompts of the default and on training prompts of the paper's traces, on no test
_RAREST = 1e-3
"""A rate below this is taken as once in a thousand tokens: what was counted is finite."""


@compiled(RANK, borrows=True)
def expected_wait(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank by the layers until the expected next use, negated: the longest wait is lowest."""
    num_layers = features_FM[LAYER, features_FM.shape[1] - 1] + 1
    for place, expert in enumerate(residents):
        rate = max(features_FM[SECOND_SCORE, expert], _RAREST)
        probability = features_FM[SCORE, expert]
        chance_in = features_FM[LAYER, expert] - layer
        if chance_in <= 0:
            chance_in += num_layers
            used = 1.0 if features_FM[LAST_STEP, expert] == step else 0.0
            rate = max(rate + MEMORY * (used - rate), _RAREST)
            probability = rate + PERSISTENCE * (probability - rate)
        features_FM[RANKS, place] = -(chance_in + (1 - probability) * num_layers / rate)


@compiled(RANK, borrows=True)
def chance_of_use(features_FM: F64, residents: I32, now: int, step: int, layer: int) -> None:
    """Rank by the chance of a use in what is left of this token or in the next one: SECOND_SCORE is that of the next.

    When within a token it would come is left out: tried on validation prompts, counting it gained nothing.
    """
    for place, expert in enumerate(residents):
        unused = 1 - features_FM[SECOND_SCORE, expert]
        if features_FM[LAYER, expert] > layer:
            unused *= 1 - features_FM[SCORE, expert]
        features_FM[RANKS, place] = 1 - unused


@compiled()
def local_rates(
    members_A: I32, offsets_N: I64, step_N: I32, prompt_S: I32, tokens_S: I64, popularity_M: F32, top_k: int
) -> F32:
    """How often a token uses each expert, as known ahead of each step: float32 [S, M].

    A step of several tokens counts as that many; each expert of its union is taken to be used equally often.
    """
    rates_SM = np.empty((len(prompt_S), len(popularity_M)), np.float32)
    rate_M = popularity_M.copy()
    event = 0
    for step in range(len(prompt_S)):
        if step == 0 or prompt_S[step] != prompt_S[step - 1]:
            rate_M[:] = popularity_M
        rates_SM[step] = rate_M
        kept = (1 - MEMORY) ** tokens_S[step]
        rate_M *= np.float32(kept)
        while event < len(step_N) and step_N[event] == step:
            start, end = offsets_N[event], offsets_N[event + 1]
            used = min(1.0, top_k / max(1, end - start))
            for access in range(start, end):
                rate_M[members_A[access]] += np.float32((1 - kept) * used)
            event += 1
    return rates_SM


@dataclass(frozen=True)
class Anticipate(Policy):
    """Evicts by the predicted next use.

    Attributes:
        predictor: Name of the predictor, for tables.
        probabilities_TLE: Its token step's probabilities for the trace that is replayed.
        popularity_LE: How often a token of the training split used each expert.
        bypass: Admission by the same rule: what an event has loaded is kept only if it is expected sooner than others.
        token_step_ms: Charged for the predictor's token step.
        later_TLE: How often the tokens after each one will use each expert, as `OnnxPredictor.later_TLE` says; None:
            the rates of this module.
        ahead_HTLE: What its layer step says of the next layers, where that runs too; None: only the token step.
    """

    predictor: str = field()
    probabilities_TLE: F32
    popularity_LE: F32
    bypass: bool = True
    token_step_ms: float = 0.0
    later_TLE: F32 | None = None
    ahead_HTLE: F32 | None = None

    @property
    @override
    def rank(self) -> Rank:  # type: ignore[override]
        return expected_wait if self.later_TLE is None else chance_of_use

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        return f"{self.predictor}_anticipate" if self.bypass else f"{self.predictor}_anticipate_forced"

    @property
    @override
    def title(self) -> str:  # type: ignore[override]
        return f"{sentence(self.predictor)}: eviction" + ("" if self.bypass else ", forced admission")

    @override
    def scores_SM(self, events: Events) -> F32:
        decode_S = events.is_decode_S
        tokens_S = np.where(decode_S, 1, events.num_tokens_S)
        rates_SM = local_rates(
            events.members_A,
            events.offsets_N,
            events.step_N,
            events.prompt_S,
            tokens_S,
            np.ascontiguousarray(self.popularity_LE.reshape(-1)),
            events.metadata.top_k,
        )
        probabilities_SM = rates_SM.copy()
        probabilities_SM[decode_S] = self.probabilities_TLE[events.token_S[decode_S]].reshape(-1, rates_SM.shape[1])
        if self.later_TLE is not None:
            # ahead of a prefill nothing is predicted
            rates_SM[decode_S] = self.later_TLE[events.token_S[decode_S]].reshape(-1, rates_SM.shape[1])
        return np.concatenate([probabilities_SM, rates_SM], axis=1)
