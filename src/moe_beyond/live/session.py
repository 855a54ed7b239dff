"""A model, its expert store and a policy, put together for one run.

Shape suffixes: M experts of the model, V precisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from moe_beyond.capture.discovery import moe_layers
from moe_beyond.errors import InputError
from moe_beyond.live.next_gate import NextGate, called_with
from moe_beyond.live.offloaded import OffloadedExperts
from moe_beyond.live.pool import ExpertPool
from moe_beyond.live.precisions import Copies, levels_of
from moe_beyond.live.tiers import FileTier, MemoryTier
from moe_beyond.simulator.engine.stepped_cache import SteppedCache
from moe_beyond.traces.schema import TraceMetadata

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moe_beyond.live.link import SlowTier
    from moe_beyond.live.store import ExpertStore
    from moe_beyond.simulator.engine.budget import Budget
    from moe_beyond.simulator.engine.online import Online
    from moe_beyond.simulator.engine.policy import Policy

SPARE_SLOTS = 2
"""Beyond the cache's and those of a token in one layer: for a prefetch that takes the place of an expert that computes,
and for one that is given up while the link still writes it."""


@dataclass(frozen=True)
class Case:
    """A policy to run beside a model.

    Attributes:
        policy: What it does.
        online: Its decisions; None: `policy.online`.
        levels_V: As for `offloaded`.
        name: Of its row in tables of quality; empty: the policy's.
    """

    policy: Policy
    online: Online | None = None
    levels_V: tuple[int, ...] = ()
    name: str = ""


def metadata_of(model: PreTrainedModel, store: ExpertStore) -> TraceMetadata:
    """The model's shape, as the trace of a capture has it.

    Raises:
        InputError: The store is not of this model's experts.
    """
    layers = moe_layers(model)
    numbers = tuple(layer.number for layer in layers)
    if (numbers, layers[0].num_experts) != (store.layer_numbers, store.num_experts):
        raise InputError(
            f"{store.folder}: holds {store.num_experts} experts of layers {list(store.layer_numbers)}, the model has "
            f"{layers[0].num_experts} in {list(numbers)}; pack the model that you run"
        )
    first_11 = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    return TraceMetadata(
        model_id=store.model_id,
        model_revision=store.revision,
        layer_numbers=numbers,
        num_experts=store.num_experts,
        # configs name it in many ways
        top_k=called_with(lambda: model(input_ids=first_11, use_cache=False), layers[0].experts)[0].shape[-1],
        expert_bytes=(sum(parameter.nbytes for parameter in store.parameters),) * len(layers),
        source="a running model",
        licence="that of the prompts and of the model",
    )


@contextmanager
def offloaded(
    model: PreTrainedModel,
    store: ExpertStore,
    policy: Policy,
    budget: Budget,
    num_prompts: int,
    *,
    online: Online | None = None,
    levels_V: Sequence[int] = (),
    lookahead: int = 2,
    lanes: int = 1,
    gb_per_s: float | None = None,
    real_gate: bool = True,
    in_memory: bool = False,
) -> Iterator[OffloadedExperts]:
    """Serve a model's experts from a store through a cache.

    Args:
        model: In evaluation mode; its experts need not be loaded.
        store: Its experts.
        policy: What is evicted and prefetched.
        budget: How much the cache holds; slots for `top_k + SPARE_SLOTS` experts more are taken.
        num_prompts: Prompts that will run.
        online: The policy's decisions; None: `policy.online`.
        levels_V: Levels of the copies at each precision; empty: as `precisions.levels_of` finds them.
        lookahead: For how many layers beyond the present one prefetches may start.
        lanes: Pieces of an expert read at once.
        gb_per_s: Slow the link down to so many 10^9 bytes a second.
        real_gate: Policies that guess the next layer's experts run its router, not the map fitted on a trace.
        in_memory: Load experts from host memory, which must hold them all, not from files; so it is on an accelerator.

    Raises:
        InputError: The store is of another model, the policy cannot run live, or the budget does not hold the experts
            that a token uses in one layer.
    """
    meta, layers = metadata_of(model, store), moe_layers(model)
    decisions = policy.online(meta) if online is None else online
    with closing(Copies.open(store, levels_of(policy, decisions, store, levels_V))) as copies:
        cache = SteppedCache(
            policy,
            meta,
            budget,
            num_prompts,
            lookahead=lookahead,
            bytes_share_M=decisions.bytes_share_M,
            # what lies on the tier, not what the policy takes it to be
            size_VM=copies.size_VM,
        )
        if cache.capacity_experts < meta.top_k:
            raise InputError(
                f"budget: holds {cache.capacity_experts} experts, a token of {meta.model_id} uses {meta.top_k} in a "
                f"layer; give at least {meta.top_k} experts"
            )
        slots = min(cache.most_residents, meta.num_model_experts) + meta.top_k + SPARE_SLOTS
        pool = ExpertPool(store.parameters, store.stride, meta.num_model_experts, slots, device=model.device)
        gate = NextGate(model, layers) if real_gate else None
        from_memory = in_memory or model.device.type != "cpu"
        if copies.stores and from_memory:
            raise InputError(f"policy {policy.name}: lower precisions are loaded from files, to a CPU; run it there")
        tier: SlowTier = MemoryTier(store, pool) if from_memory else FileTier(pool, copies)
        with closing(
            OffloadedExperts(layers, pool, tier, cache, decisions, lanes=lanes, gb_per_s=gb_per_s, gate=gate)
        ) as experts:
            yield experts
