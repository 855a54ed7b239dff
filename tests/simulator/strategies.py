"""Small traces, predictions and devices for property tests.

Shape suffixes: T tokens, L MoE layers, K experts per token, E routed experts in a layer, H layers ahead, N events.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from moe_beyond.devices.device import Device
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import Trace, TraceMetadata, validate

DEVICES = st.builds(
    Device,
    name=st.just("drawn"),
    about=st.just("drawn"),
    link_gb_per_s=st.floats(1e-6, 1e3),
    setup_us=st.floats(0, 10),
    lanes=st.integers(1, 4),
    memory_gb_per_s=st.floats(1e-6, 1e3),
    layer_overhead_us=st.floats(0.01, 10),
    predictor_slowdown=st.floats(0.5, 4),
)


def make_trace(
    seed: int,
    *,
    num_layers: int = 2,
    num_experts: int = 5,
    top_k: int = 2,
    lengths: tuple[int, ...] = (4, 3),
    prefill: tuple[int, ...] = (2, 0),
    expert_bytes: tuple[int, ...] | None = None,
) -> Trace:
    """Routing that prefers some experts, so that caches have something to keep."""
    draw = np.random.default_rng(seed)
    num_tokens = sum(lengths)
    preference_LE = draw.gumbel(size=(num_layers, num_experts)) * 1.5
    scores_TLE = preference_LE + draw.gumbel(size=(num_tokens, num_layers, num_experts))
    weights_TLK = np.sort(draw.random((num_tokens, num_layers, top_k)))[..., ::-1]
    trace = Trace(
        metadata=TraceMetadata(
            model_id="toy",
            layer_numbers=tuple(range(1, num_layers + 1)),
            num_experts=num_experts,
            top_k=top_k,
            expert_bytes=expert_bytes or (1000,) * num_layers,
            source="drawn at random",
            licence="none",
        ),
        prompt_ids=tuple(f"prompt {i}" for i in range(len(lengths))),
        domains=("toy",) * len(lengths),
        held_out_P=np.zeros(len(lengths), bool),
        prompt_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        num_prefill_P=np.asarray(prefill, np.int32),
        experts_TLK=np.argsort(-scores_TLE, axis=-1)[..., :top_k].astype(np.uint8),
        weights_TLK=weights_TLK.astype(np.float16),
    )
    return validate(trace, "toy")


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Traces of 1-3 layers, 2-6 experts, 1-3 prompts of 1-6 tokens, some of them prefill, experts of unequal size."""
    num_layers = draw(st.integers(1, 3))
    num_experts = draw(st.integers(2, 6))
    lengths = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    return make_trace(
        seed=draw(st.integers(0, 2**20)),
        num_layers=num_layers,
        num_experts=num_experts,
        top_k=draw(st.integers(1, min(3, num_experts))),
        lengths=lengths,
        prefill=tuple(draw(st.integers(0, length)) for length in lengths),
        expert_bytes=tuple(draw(st.integers(1, 5)) * 100 for _ in range(num_layers)),
    )


def capacities_of(trace: Trace) -> st.SearchStrategy[int]:
    """Any legal capacity in slots."""
    return st.integers(1, trace.metadata.num_model_experts)


def members(events: Events) -> list[list[int]]:
    """The experts that each event wants."""
    return [events.members_A[a:b].tolist() for a, b in zip(events.offsets_N[:-1], events.offsets_N[1:], strict=True)]


def drawn_TLE(trace: Trace, seed: int) -> npt.NDArray[np.float32]:
    """Probabilities by chance."""
    shape = (trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts)
    return np.random.default_rng(seed).random(shape, np.float32)


def truth_TLE(trace: Trace) -> npt.NDArray[np.float32]:
    """1 for what the router chose, 0 for all else."""
    shape = (trace.num_tokens, trace.metadata.num_layers, trace.metadata.num_experts)
    truth = np.zeros(shape, np.float32)
    np.put_along_axis(truth, trace.experts_TLK.astype(np.int64), 1, axis=2)
    return truth


def prefetching(trace: Trace, seed: int, width: int = 2, threshold: float = 0.0, *, layers: bool = False) -> Prefetch:
    """Prefetching over LRU by probabilities of chance, of a token step or of a layer step of horizon 2 as well."""
    ahead_HTLE = np.stack([drawn_TLE(trace, seed + 1), drawn_TLE(trace, seed + 2)]) if layers else None
    return Prefetch("drawn", drawn_TLE(trace, seed), width, Lru(), threshold, ahead_HTLE)
