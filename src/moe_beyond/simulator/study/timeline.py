"""One policy on one device, event by event: where a prompt's time goes, and which misses cost the most.

Shape suffixes: N events, A accesses, P prompts, S steps, T tokens, L MoE layers, E routed experts in a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from moe_beyond.devices.device import Device
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.policy_inputs import Prepared, prepare
from moe_beyond.simulator.engine.timed_loop import Run
from moe_beyond.simulator.engine.timing import timed_run
from moe_beyond.simulator.engine.usage import LATE, MISSED, PREFETCHED
from moe_beyond.simulator.jit import F32, F64, I32, I64, Bools
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.simulator.study.case import Case
from moe_beyond.traces.schema import Trace

_TOKEN: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(("split", "policy", "title", "device", "prompt_id"), pl.String),
    "position": pl.Int64,
    "token_text": pl.String,
    "layer": pl.Int64,
}
TIMELINE: dict[str, type[pl.DataType]] = {
    **_TOKEN,
    **dict.fromkeys(("start_ms", "compute_ms", "stall_ms"), pl.Float64),
    **dict.fromkeys(("demand_loads", "prefetches_in_time", "prefetches_late", "prefetches_useless"), pl.Int64),
    "evictions": pl.Int64,
    "predicted": pl.Float64,
}
"""Columns of the table `timeline`. A batched prefill stands at position 0 without text. `predicted`: mean probability
that the predictor's token step had given to the experts that the event waited for; empty where it waited for none."""
COSTLIEST: dict[str, type[pl.DataType]] = {
    **_TOKEN,
    "experts_missed": pl.String,
    "stall_ms": pl.Float64,
    "predicted": pl.Float64,
}
"""Columns of the table `costliest_misses`. `experts_missed`: ids within the layer, with spaces between."""


@dataclass(frozen=True)
class Recording:
    """A replay with a clock, and what is needed to tell what each event was.

    Attributes:
        split: Name of the split.
        trace: What was replayed.
        prepared: The policy.
        device: Name of the device.
        run: What the loop measured.
        predicted_A: The predictor's probability of each accessed expert ahead of its token, NaN in a batched prefill.
    """

    split: str
    trace: Trace
    prepared: Prepared
    device: str
    run: Run
    predicted_A: F32

    @property
    def events(self) -> Events:
        """The accesses under the policy."""
        return self.prepared.events

    @property
    def prompt_N(self) -> I32:
        """The prompt of each event."""
        return np.asarray(self.events.prompt_S[self.events.step_N])

    def median_prompt(self) -> int:
        """The prompt whose stall per event is the median of all, of two the lower."""
        num_prompts = self.events.num_prompts
        stall_P = np.bincount(self.prompt_N, self.run.stall_N, minlength=num_prompts)
        order_P = np.argsort(stall_P / np.bincount(self.prompt_N, minlength=num_prompts), kind="stable")
        return int(order_P[(num_prompts - 1) // 2])

    def timeline(self, prompt: int, most_steps: int) -> pl.DataFrame:
        """A row an event of the prompt's first steps, its clock starting with the prompt."""
        of_prompt = np.nonzero(self.prompt_N == prompt)[0]
        of_prompt = of_prompt[: most_steps * self.trace.metadata.num_layers]
        run = self.run
        time_ms = run.time_N[of_prompt]
        return pl.DataFrame(
            {
                **self._token_columns(of_prompt),
                "start_ms": np.cumsum(time_ms) - time_ms,
                "compute_ms": time_ms - run.stall_N[of_prompt],
                "stall_ms": run.stall_N[of_prompt],
                "demand_loads": run.replay.misses_N[of_prompt],
                "prefetches_in_time": self._count_N(run.outcome_A == PREFETCHED)[of_prompt],
                "prefetches_late": self._count_N(run.outcome_A == LATE)[of_prompt],
                "prefetches_useless": run.wasted_N[of_prompt],
                "evictions": run.evictions_N[of_prompt],
                "predicted": self._predicted_N()[of_prompt],
            },
            schema_overrides=TIMELINE,
        ).with_columns(pl.col("predicted").fill_nan(None))

    def costliest(self, count: int) -> pl.DataFrame:
        """The decode events that stalled longest, ties by their order."""
        events, stall_N = self.events, self.run.stall_N
        decoded_N = events.is_decode_S[events.step_N] & (stall_N > 0)
        worst = np.argsort(np.where(decoded_N, -stall_N, 1), kind="stable")[: min(count, int(decoded_N.sum()))]
        return pl.DataFrame(
            {
                **self._token_columns(worst),
                "experts_missed": [self._experts_missed(int(event)) for event in worst],
                "stall_ms": stall_N[worst],
                "predicted": self._predicted_N()[worst],
            },
            schema_overrides=COSTLIEST,
        ).with_columns(pl.col("predicted").fill_nan(None))

    @property
    def _waited_A(self) -> Bools:
        outcome_A = self.run.outcome_A
        return np.asarray((outcome_A == LATE) | (outcome_A >= MISSED))

    def _experts_missed(self, event: int) -> str:
        events = self.events
        part = slice(events.offsets_N[event], events.offsets_N[event + 1])
        missed = events.members_A[part][self._waited_A[part]] % self.trace.metadata.num_experts
        return " ".join(str(expert) for expert in sorted(missed.tolist()))

    def _count_N(self, which_A: Bools) -> I64:
        before_A = np.concatenate([[0], np.cumsum(which_A)])
        return np.asarray(np.diff(before_A[self.events.offsets_N]))

    def _predicted_N(self) -> F64:
        waited_A = self._waited_A
        sums_A = np.concatenate([[0.0], np.cumsum(np.where(waited_A, np.nan_to_num(self.predicted_A), 0.0))])
        waited_N = self._count_N(waited_A)
        known_N = (waited_N > 0) & self.events.is_decode_S[self.events.step_N]
        means_N = np.diff(sums_A[self.events.offsets_N]) / np.maximum(waited_N, 1)
        return np.where(known_N, means_N, np.nan)

    def _token_columns(self, chosen: I64) -> dict[str, object]:
        trace, events = self.trace, self.events
        token = events.token_S[events.step_N[chosen]]
        decoded = token >= 0
        position = np.where(decoded, trace.positions_T[np.maximum(token, 0)], 0)
        texts = trace.token_texts
        return {
            "split": [self.split] * len(chosen),
            "policy": [self.prepared.policy.name] * len(chosen),
            "title": [self.prepared.policy.title] * len(chosen),
            "device": [self.device] * len(chosen),
            "prompt_id": [trace.prompt_ids[prompt] for prompt in self.prompt_N[chosen]],
            "position": position,
            "token_text": [
                None if texts is None or index < 0 else texts.vocabulary[texts.codes_T[index]] for index in token
            ],
            "layer": np.asarray(trace.metadata.layer_numbers)[events.layer_N[chosen]],
        }


def record(
    split: str, trace: Trace, policy: Policy, case: Case, device: Device, *, probabilities_TLE: F32
) -> Recording:
    """Replay with a clock at the headline capacity, and keep every event.

    Args:
        split: Name of the split.
        trace: What is replayed, one prompt at a time.
        policy: What is evicted and what is prefetched.
        case: Events, capacity and the rest.
        device: Where it runs.
        probabilities_TLE: The predictor's probabilities, to show what it had predicted of a miss.
    """
    prepared = prepare(case.events, policy, keep_warm=case.settings.keep_warm)
    budget = policy.budget(trace.metadata, case.headline_slots)
    done = timed_run(prepared, budget, device, case.workload, overrun=case.settings.overrun)
    wanted = prepared.events
    event_A = wanted.event_A
    token_A = wanted.token_S[wanted.step_N[event_A]]
    expert_A = wanted.members_A % trace.metadata.num_experts
    predicted_A = probabilities_TLE[np.maximum(token_A, 0), wanted.layer_N[event_A], expert_A]
    return Recording(split, trace, prepared, device.name, done, np.where(token_A >= 0, predicted_A, np.float32(np.nan)))
