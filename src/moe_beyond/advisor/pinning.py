"""Whether pinning pays: a placement on prompts that it was not made from, beside LRU caches of the same size.

All caches start empty. A pinned expert is loaded at its first use and stays; others are loaded whenever they are used.
Budgets are kept: nothing is held above them.

Shape suffixes: L MoE layers, E routed experts in a layer, M = L * E experts of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_beyond.advisor.one_replay import decoding
from moe_beyond.assess.pairs import coactivation
from moe_beyond.devices.device import Device
from moe_beyond.devices.workload import Workload, dense_size
from moe_beyond.formats.placements.placement import Ints, Placement
from moe_beyond.intervals import Interval, Resamples
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.policy_inputs import prepare
from moe_beyond.simulator.engine.timing import TimedReplay, timed_sweep
from moe_beyond.simulator.policies.on_demand import LayerLru, Lru
from moe_beyond.simulator.policies.static import StaticPopularity
from moe_beyond.simulator.schedule.events import Events, events_of
from moe_beyond.traces.schema import Trace, TraceMetadata

PINNED = "pinned"


@dataclass(frozen=True)
class Verdict:
    """A placement beside LRU caches.

    Attributes:
        found: Replays by name: `pinned`, `lru`, `layer_lru`.
        gain: Hit rate of the pinned experts less that of the better LRU, with its interval by prompt.
        dense_from: Where the size of dense weights comes from, as of `workload.dense_size`.
    """

    found: Mapping[str, TimedReplay]
    gain: Interval
    dense_from: str

    @property
    def rival(self) -> str:
        """The LRU that hits more often."""
        return _rival(self.found)

    @property
    def pays(self) -> bool:
        """Whether pinned experts are hit more often than those of the better LRU."""
        return self.gain.value > 0

    @property
    def sentence(self) -> str:
        """What to do, with both hit rates."""
        pinned, lru = (self.found[name].hits.value for name in (PINNED, self.rival))
        title = "LRU" if self.rival == Lru.name else "LRU per layer"
        if self.pays:
            return f"pin: {_percent(pinned)} against {_percent(lru)} of {title}"
        return f"do not pin: {title} {_percent(lru)} against {_percent(pinned)}"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        rows = {name: decoding(timed) for name, timed in self.found.items()}
        return {
            "device": self.found[PINNED].device.name,
            "prompts": self.found[PINNED].events.num_prompts,
            "tokens": int(self.found[PINNED].tokens_P.sum()),
            **rows,
            "rival": self.rival,
            **self.gain.columns("hit_rate_gain"),
            "verdict": self.sentence,
        }


def judge(
    placement: Placement, test: Trace, device: Device, *, dense_bytes: int | None = None, samples: int = 1000, seed: int
) -> Verdict:
    """Replay prompts with a placement, and with LRU caches of the same size.

    Args:
        placement: What stays, of the model of `test`.
        test: Prompts that it was not made from. Where none of them decodes anything, their prefill is taken token by
            token.
        device: Where they run.
        dense_bytes: All weights beside the experts; None: as traced, else assumed.
        samples: Resamples of prompts behind the interval.
        seed: Of the resamples.
    """
    meta = test.metadata
    decodes = (np.diff(test.prompt_offsets) > test.num_prefill_P).any()
    events = events_of(test, "batched" if decodes else "token_by_token")
    found_dense, dense_from = dense_size(meta, dense_bytes, device)
    workload = Workload.of(meta, 0, dense_bytes=found_dense)
    kept_M = placement.kept_LE.reshape(-1)
    runs: dict[str, tuple[Policy, Budget]] = {
        PINNED: (StaticPopularity(kept_M.astype(np.float32)), _pins(meta, kept_M, events)),
        Lru.name: (Lru(), _cache(placement, meta, per_layer=False)),
        LayerLru.name: (LayerLru(), _cache(placement, meta, per_layer=True)),
    }
    found = {
        name: timed_sweep(prepare(events, policy, keep_warm=True), [budget], [device], workload)[0]
        for name, (policy, budget) in runs.items()
    }
    draws = Resamples.draw(events.num_prompts, samples, seed)
    return Verdict(found, draws.difference(found[PINNED].hits, found[_rival(found)].hits), dense_from)


def pairs_LEE(trace: Trace) -> Ints:
    """Tokens that used both of two experts of a layer, int64 [L, E, E], symmetric."""
    upper = (
        coactivation(trace.experts_TLK[:, layer], trace.metadata.num_experts).tokens_EE
        for layer in range(trace.metadata.num_layers)
    )
    return np.stack([tokens_EE + tokens_EE.T for tokens_EE in upper])


def _rival(found: Mapping[str, TimedReplay]) -> str:
    return max((Lru.name, LayerLru.name), key=lambda name: found[name].hits.value)


def _pins(meta: TraceMetadata, kept_M: np.ndarray, events: Events) -> Budget:
    """Of each layer as much as those of its pinned experts take that are used at all: others cannot stand in."""
    used_M = np.bincount(events.members_A, minlength=len(kept_M)) > 0
    whole = Budget.slots(meta, meta.num_model_experts, per_layer=True)
    slots_L = (kept_M & used_M).reshape(meta.num_layers, -1).sum(axis=1)
    return Budget(whole.units_M, whole.group_M, slots_L.astype(np.int64))


def _cache(placement: Placement, meta: TraceMetadata, *, per_layer: bool) -> Budget:
    budget, sizes = placement.budget_bytes, set(meta.expert_bytes)
    if budget is not None and len(sizes) > 1:
        return Budget.bytes(meta, budget, per_layer=per_layer)
    # of one size, experts are dealt out and not bytes: an even share of these would leave part of a slot in each layer
    slots = placement.num_kept if budget is None else min(budget // sizes.pop(), meta.num_model_experts)
    return Budget.slots(meta, slots, per_layer=per_layer)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
