"""The simulator held to a running model: the same prompts decoded live under a policy, and replayed.

Shape suffixes: A accesses, N events, I members of an event.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from moe_beyond.capture.settings import ExtractSettings
from moe_beyond.devices.workload import MIB, Workload
from moe_beyond.live.decoding import Decoded, decode, warm_up
from moe_beyond.live.recording import decoded, hit_rate, means, measured_device, table
from moe_beyond.live.session import Case, offloaded
from moe_beyond.live.texts import texts_of
from moe_beyond.simulator.engine.policy_inputs import Prepared, prepare
from moe_beyond.simulator.engine.timing import timed_run, timed_sweep
from moe_beyond.simulator.engine.usage import LATE, PREFETCHED
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.schedule.events import events_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from moe_beyond.devices.device import Device
    from moe_beyond.live.offloaded import OffloadedExperts
    from moe_beyond.live.store import ExpertStore
    from moe_beyond.traces.schema import Trace


def check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: ExpertStore,
    trace: Trace,
    cases: Sequence[Case],
    *,
    capacity_experts: int,
    lookahead: int,
    gb_per_s: float,
    lanes: int = 1,
    done: Callable[[], None] = lambda: None,
) -> pl.DataFrame:
    """Decode a trace's tokens again under each policy, on a slowed link, and replay the trace on what was measured.

    The replay's device is measured over a run of LRU: its parts. Of the policy in question it is told what its
    predictor's steps took here, which in this interpreter is several times what a deployed one is charged; hits, loads
    and waiting are its own. So no row but LRU's is fitted to itself.

    Args:
        model: In evaluation mode, its experts loaded: the full model's logits are compared with.
        tokenizer: Its own.
        store: Its experts.
        trace: Captured from it, with token ids; of prompts that nothing was fitted on.
        cases: Policies, as they are replayed: with what is charged for a predictor.
        capacity_experts: Experts that the cache holds.
        lookahead: For how many layers beyond the present one prefetches may start.
        gb_per_s: What the link is slowed down to, 10^9 bytes a second.
        lanes: Parts of an expert that are read at once.
        done: Called after each policy.

    Returns:
        A row a policy: `policy, title, lossy`; measured over decoded tokens `ms_per_token, stall_ms_per_token,
        predictor_ms_per_token, hit_rate, mib_per_token`; the replay's `modelled_ms_per_token, modelled_hit_rate,
        modelled_mib_per_token`; `events`, and `events_that_differ`: those whose hits are not the replay's (null where
        prefetches make hits a matter of time); `greatest_logit_difference` from the full model.

    Raises:
        InputError: As `texts_of`, `session.offloaded` and `decoding.decode`.
    """
    starts, given = texts_of(trace)

    def run(experts: OffloadedExperts | None) -> list[Decoded]:
        return decode(model, tokenizer, starts, experts, ExtractSettings(), seed=0, given=given, keep_logits=True)

    full, meta, events, rows = run(None), trace.metadata, events_of(trace), []
    device: Device | None = None
    for one in [Case(Lru()), *cases]:
        budget = one.policy.budget(meta, capacity_experts)
        offload = partial(
            offloaded,
            model,
            store,
            one.policy,
            budget,
            online=one.online,
            levels_V=one.levels_V,
            lookahead=lookahead,
            lanes=lanes,
            # where outputs are the model's own, the very requests of the replay
            real_gate=one.policy.is_lossy(events),
        )
        warm_up(model, tokenizer, starts[0], partial(offload, 1))
        layer_ms = 0.0 if one.online is None else one.online.layer_ms
        with offload(len(starts), gb_per_s=gb_per_s) as experts:
            live = run(experts)
        measured, times = means(table(experts.times)), decoded(experts.times)
        policy = one.policy
        if one.online is not None and measured["predictor_ms"]:
            layer_ms = (one.online.layer_ms - layer_ms) / len(times)
            steps = {"token_step_ms": measured["predictor_ms"] - layer_ms}
            if layer_ms:
                steps["layer_step_ms"] = layer_ms / (meta.num_layers - 1)
            policy = replace(cast("Any", policy), **steps)
        if device is None:
            device = measured_device(experts.times, meta, store.stride, gb_per_s)
        prepared = prepare(events, policy, keep_warm=True)
        workload = Workload.of(meta, lookahead, expert_mib=store.stride / MIB, dense_bytes=0)
        modelled = timed_sweep(prepared, [budget], [device], workload)[0]
        lossy = one.policy.is_lossy(events)
        row: dict[str, Any] = {
            "policy": one.policy.name,
            "title": one.policy.title,
            "lossy": lossy,
            "ms_per_token": measured["wall_ms"],
            "stall_ms_per_token": measured["stall_ms"],
            "predictor_ms_per_token": measured["predictor_ms"],
            "hit_rate": hit_rate(times),
            "mib_per_token": measured["read_bytes"] / MIB,
            "modelled_ms_per_token": modelled.ms_per_token,
            "modelled_hit_rate": modelled.hits.value,
            "modelled_mib_per_token": modelled.moved.value,
            "events": events.num_events,
            "events_that_differ": _differ(experts, prepared, budget, device, workload),
            "greatest_logit_difference": max(
                float((mine - theirs).abs().max())
                for ours, whole in zip(live, full, strict=True)
                for mine, theirs in zip(ours.logits_TV, whole.logits_TV, strict=True)
            ),
        }
        rows.append(row)
        done()
    return pl.DataFrame(rows, infer_schema_length=None)


def _differ(
    experts: OffloadedExperts, prepared: Prepared, budget: Any, device: Device, workload: Workload
) -> int | None:
    """Events whose hits are not those of the replay; None where hits depend on what was loaded in time."""
    if prepared.prefetches.num_requests:
        return None
    outcome_A, offsets_N = timed_run(prepared, budget, device, workload).outcome_A, prepared.events.offsets_N
    hits_N = np.array([_hits(outcome_A[first:end]) for first, end in itertools.pairwise(offsets_N)])
    return int((hits_N != np.array([_hits(outcome_I) for outcome_I in experts.outcomes])).sum())


def _hits(outcome_I: Any) -> int:
    assert not (outcome_I == LATE).any()  # noqa: S101 - nothing is prefetched
    return int((outcome_I <= PREFETCHED).sum())


def metrics(measured: pl.DataFrame, own: str | None) -> dict[str, dict[str, float]]:
    """The numbers that decide: whether the simulator is right about events and outputs, and how far about time."""
    lossless = measured.filter(~pl.col("lossy"))
    found: dict[str, Any] = {
        "events_that_differ": lossless["events_that_differ"].sum(),
        "events_compared": lossless.filter(pl.col("events_that_differ").is_not_null())["events"].sum(),
        "greatest_logit_difference": lossless["greatest_logit_difference"].max(),
    }
    if own is not None:
        row = measured.row(by_predicate=pl.col("policy") == own, named=True)
        for name in ("ms_per_token", "hit_rate"):
            found |= {name: row[name], f"modelled_{name}": row[f"modelled_{name}"]}
        found["time_error"] = row["modelled_ms_per_token"] / row["ms_per_token"] - 1
    return {name: {"value": float(value)} for name, value in found.items()}
