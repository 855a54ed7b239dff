"""What lossy policies do to a model's output: each decoded token's distribution beside the full model's, on given text.

Both read the same text token by token, so that one's mistakes do not change what it reads next. Per token: the
Kullback-Leibler divergence D(full || policy) in nats, whether both put the same token first, and -ln p of the text's
next token. A prefill is not counted, nor is the text's last token, which nothing follows.

Shape suffixes: P texts, T counted tokens of all texts, N counted tokens of one, V vocabulary, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.capture.prompts import EncodedPrompt
from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.errors import InputError
from moe_beyond.intervals import Interval, Ratio, Resamples, interval
from moe_beyond.live.decoding import Decoded, decode, warm_up
from moe_beyond.live.session import Case, metadata_of, offloaded
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.policies.on_demand import Lru

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from moe_beyond.live.offloaded import OffloadedExperts, StepTime
    from moe_beyond.live.store import ExpertStore
    from moe_beyond.simulator.jit import F64, I64

_RESAMPLES = 1000
_TAIL = 0.99


@dataclass(frozen=True)
class TokenQuality:
    """What one text's tokens lost, float64 [N] each.

    Attributes:
        divergence: D(full || policy), in nats.
        agrees: 1 where both put the same token first, else 0.
        loss_full: -ln p of the next token of the text, by the full model.
        loss: The same by the policy.
    """

    divergence: F64
    agrees: F64
    loss_full: F64
    loss: F64

    @classmethod
    def of(cls, full: Decoded, policy: Decoded) -> TokenQuality:
        """Compare the logits of two runs over one text."""
        next_N = full.token_ids_T[full.num_prefill + 1 : -1]
        # the prefill's comes first; the last one's next token is not the text's
        full_NV, policy_NV = (torch.stack(run.logits_TV[1:-1]).double().log_softmax(dim=1) for run in (full, policy))
        divergence_N = (full_NV.exp() * (full_NV - policy_NV)).sum(dim=1).clamp(min=0)
        agrees_N = (full_NV.argmax(dim=1) == policy_NV.argmax(dim=1)).double()
        losses = (-log_NV.gather(1, next_N[:, None])[:, 0] for log_NV in (full_NV, policy_NV))
        return cls(divergence_N.numpy(), agrees_N.numpy(), *(loss.numpy() for loss in losses))


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: ExpertStore,
    cases: Sequence[Case],
    texts: Sequence[EncodedPrompt],
    *,
    num_prefill: int,
    capacity_experts: int,
    seed: int,
    gb_per_s: float | None = None,
    done: Callable[[], None] = lambda: None,
) -> pl.DataFrame:
    """Run every policy over the same texts.

    Args:
        model: In evaluation mode. Where its experts are not loaded, the full model is run from the store.
        tokenizer: Its own.
        store: Its experts.
        cases: Policies, each over slots as it divides them.
        texts: Whole texts.
        num_prefill: So many first tokens of each are read at once, the others one by one.
        capacity_experts: Whole experts that the cache holds.
        seed: Of the intervals' resamples.
        gb_per_s: As for `session.offloaded`.
        done: Called after each case.

    Returns:
        A row a case: `policy`; each with the ends of its 95 % interval by text (`_low`, `_high`) `kl` and `kl_p99` in
        nats, `top1_agreement`, `perplexity`, `perplexity_full`, `hit_rate`, `mib_per_token` as read,
        `misses_per_token`, `weight_given_up` as the policy says and `ms_per_token`. All of decode steps.

    Raises:
        InputError: A text of fewer than three tokens beyond the prefill; as `session.offloaded` and `decode`.
    """
    for text in texts:
        if len(text.token_ids) < num_prefill + 3:
            raise InputError(
                f"text {text.prompt_id}: {len(text.token_ids)} tokens; give at least {num_prefill + 3}, three more "
                "than the prefill"
            )
    starts = [EncodedPrompt(text.prompt_id, text.domain, text.held_out, text.token_ids[:num_prefill]) for text in texts]
    given, meta = [text.token_ids for text in texts], metadata_of(model, store)

    def run(experts: OffloadedExperts | None) -> list[Decoded]:
        return decode(model, tokenizer, starts, experts, ExtractSettings(), seed=seed, given=given, keep_logits=True)

    loaded = not any(parameter.is_meta for parameter in moe_layers(model)[0].experts.parameters())
    lossless = Lru()
    whole = lossless.budget(meta, capacity_experts)
    with nullcontext() if loaded else offloaded(model, store, lossless, whole, len(texts)) as experts:
        full = run(experts)
    resamples, rows = Resamples.draw(len(texts), _RESAMPLES, seed), []
    for case in cases:
        policy = case.policy
        budget = policy.budget(meta, capacity_experts)
        offload = partial(offloaded, model, store, policy, budget, online=case.online, levels_V=case.levels_V)
        warm_up(model, tokenizer, starts[0], partial(offload, 1))
        with offload(len(texts), gb_per_s=gb_per_s) as experts:
            found = [TokenQuality.of(*pair) for pair in zip(full, run(experts), strict=True)]
            weight_P = experts.cache.result().weight_lost_PFW[:, 1].sum(axis=1)
            rows.append({"policy": case.name or policy.name} | _row(found, experts.times, weight_P, resamples))
        done()
    return pl.DataFrame(rows)


def _row(found: list[TokenQuality], times: Sequence[StepTime], weight_P: F64, resamples: Resamples) -> dict[str, Any]:
    counted_P = np.array([len(tokens.divergence) for tokens in found])
    decoded = [time for time in times if time.decodes]
    of_text = np.array([time.prompt for time in decoded])

    def sums_P(values: Sequence[float]) -> F64:
        return np.asarray(np.bincount(of_text, np.asarray(values), len(found)), np.float64)

    def a_token(values: Sequence[float]) -> Interval:
        return resamples.ratio(Ratio(sums_P(values), steps_P))

    def mean(part: str) -> Ratio:
        return Ratio(np.array([getattr(tokens, part).sum() for tokens in found]), counted_P)

    steps_P = sums_P([1.0] * len(decoded))
    hits_P, misses_P = sums_P([time.hits for time in decoded]), sums_P([time.misses for time in decoded])
    figures = {
        "kl": resamples.ratio(mean("divergence")),
        "kl_p99": _tail([tokens.divergence for tokens in found], resamples),
        "top1_agreement": resamples.ratio(mean("agrees")),
        "perplexity": resamples.of(np.exp, mean("loss")),
        "perplexity_full": resamples.of(np.exp, mean("loss_full")),
        "hit_rate": resamples.ratio(Ratio(hits_P, hits_P + misses_P)),
        "mib_per_token": a_token([time.read_bytes / MIB for time in decoded]),
        "misses_per_token": a_token([time.misses for time in decoded]),
        "weight_given_up": resamples.ratio(Ratio(weight_P, steps_P)),
        "ms_per_token": a_token([time.wall_ms for time in decoded]),
    }
    return {column: value for name, figure in figures.items() for column, value in figure.columns(name).items()}


def _tail(values: Sequence[F64], resamples: Resamples) -> Interval:
    """The 99th percentile over all tokens with its interval by text: the least value that 99 % do not exceed."""
    all_T = np.concatenate(values)
    order_T = np.argsort(all_T)
    text_T: I64 = np.repeat(np.arange(len(values)), [len(one) for one in values])[order_T]

    def least(weights_BT: I64) -> F64:
        upto_BT = weights_BT.cumsum(axis=1)
        return np.asarray(all_T[order_T[(upto_BT >= _TAIL * upto_BT[:, -1:]).argmax(axis=1)]])

    value = float(least(np.ones((1, len(all_T)), np.int64))[0])
    return interval(value, least(resamples.weights_BP[:, text_T]))
