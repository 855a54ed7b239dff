"""A plan is everything that a deployment must choose: policy, split over layers, what is prefetched by a predictor.

Shape suffixes: L MoE layers, E routed experts in a layer, D capacities 0 to E of one layer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.predictor.baselines import Popularity
from moe_beyond.simulator.bounds.split import fit_split, layer_curves_LD
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.policies import catalogue
from moe_beyond.simulator.policies.predictions import Predictions
from moe_beyond.simulator.policies.prefetch import ACROSS
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import Prefill, events_of
from moe_beyond.traces.schema import Trace, TraceMetadata

Split = Literal["shared", "even", "fitted"]
"""`shared`: layers compete for one cache. `even`: each has as much, or the policy's own share. `fitted`: fitted to
training prompts."""
ANTICIPATE = "anticipate"
"""Eviction by a predictor; beside the names of the catalogue."""


@dataclass(frozen=True)
class Fetch:
    """What is prefetched by a predictor.

    Attributes:
        width: Experts at most for each layer of a step.
        threshold: Least probability.
        layers: Whether the layer step predicts too, after every router.
        next_token: Whether the likeliest expert of the next token's first layer is prefetched too.
    """

    width: int
    threshold: float = 0.0
    layers: bool = False
    next_token: bool = False


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        policy: A name of the catalogue, or `anticipate`.
        split: How layers share the cache.
        fetch: What is prefetched by a predictor; None: only what the policy itself prefetches.
    """

    policy: str
    split: Split = "shared"
    fetch: Fetch | None = None

    @property
    def predicts(self) -> bool:
        """Whether it needs a predictor."""
        return self.policy == ANTICIPATE or self.fetch is not None

    def row(self) -> dict[str, Any]:
        """For JSON: policy, split, and the fields of the prefetch."""
        fetch = None if self.fetch is None else asdict(self.fetch)
        return {"policy": self.policy, "split": self.split, "prefetch": fetch}

    def __str__(self) -> str:
        text = self.policy + {"shared": "", "even": ", layers alike", "fitted": ", fitted split"}[self.split]
        if self.fetch is None:
            return text
        after = " and layer step" if self.fetch.layers else ""
        after += ", one for the next token" if self.fetch.next_token else ""
        return f"{text}, prefetch {self.fetch.width} a layer from p >= {self.fetch.threshold:g} by token{after}"


@dataclass(frozen=True)
class CacheSize:
    """How much memory the cache takes.

    Attributes:
        total: Slots, or bytes.
        in_bytes: Which of them.
    """

    total: int
    in_bytes: bool = False

    def budget(self, meta: TraceMetadata, *, per_layer: bool = False) -> Budget:
        """As a budget that layers share or split evenly. Raises InputError where it cannot hold an expert."""
        make = Budget.bytes if self.in_bytes else Budget.slots
        return make(meta, self.total, per_layer=per_layer)

    def row(self) -> dict[str, float | None]:
        """For JSON: `budget_mib` and `budget_experts`, one of them null."""
        return {
            "budget_mib": self.total / MIB if self.in_bytes else None,
            "budget_experts": None if self.in_bytes else self.total,
        }

    def __str__(self) -> str:
        return f"{self.total / MIB:.0f} MiB" if self.in_bytes else f"{self.total} experts"


@dataclass(frozen=True)
class TrainingData:
    """Prompts that policies and splits are fitted to; none of them is in the evaluation.

    Attributes:
        trace: Those prompts.
        prefill: How their prefill is replayed for the split.
        batch: Prompts that run at once.
        settings: Of published policies.
    """

    trace: Trace
    prefill: Prefill = "batched"
    batch: int = 1
    settings: PolicySettings = field(default_factory=PolicySettings)
    _policies: dict[str, Policy] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def none(cls, name: str, settings: PolicySettings) -> Self:
        """For policies that are not fitted; the policy `name` is refused if it is."""
        return cls(cast("Trace", _NoTraining(name)), settings=settings)

    @cached_property
    def popularity_LE(self) -> npt.NDArray[np.float32]:
        """How often a token used each expert."""
        return Popularity.fit(self.trace).popularity_LE

    @cached_property
    def _hits_LD(self) -> npt.NDArray[np.int64]:
        return layer_curves_LD(events_of(self.trace, self.prefill, batch=self.batch))

    def fitted(self, name: str) -> Policy:
        """A policy of the catalogue, fitted once. Raises InputError as `catalogue.build`."""
        if name not in self._policies:
            self._policies[name] = catalogue.build(name, self.trace, self.settings)
        return self._policies[name]

    def policy(self, plan: Plan, predictions: Predictions | None) -> Policy:
        """The policy of a plan.

        Raises:
            InputError: The policy is not known, lacks training data, or needs a predictor and there is none.
        """
        if predictions is None and plan.predicts:
            raise InputError(f"policy {plan.policy!r} and its prefetches need a predictor; name its directory")
        if predictions is None:
            return self.fitted(plan.policy)
        evicts = plan.policy == ANTICIPATE
        policy = predictions.eviction(self.popularity_LE) if evicts else self.fitted(plan.policy)
        if plan.fetch is None:
            return policy
        fetch = plan.fetch
        return predictions.prefetch(
            policy, fetch.width, fetch.threshold, layers=fetch.layers, next_token=fetch.next_token
        )

    def budget(self, plan: Plan, policy: Policy, meta: TraceMetadata, size: CacheSize) -> Budget:
        """The budget of a plan.

        Args:
            plan: Gives the split.
            policy: What `policy` made of it.
            meta: The model's shape.
            size: Of the whole cache.

        Raises:
            InputError: It cannot hold an expert, or holds more than there are.
        """
        plain = size.budget(meta, per_layer=plan.split == "even")
        weights_L = None if plan.split == "shared" else policy.layer_weights_L(meta.num_layers)
        if plan.split == "fitted":
            slots_L = fit_split(meta, self._hits_LD, size.total, in_bytes=size.in_bytes).astype(np.float64)
            weights_L = slots_L * np.asarray(meta.expert_bytes) if size.in_bytes else slots_L
        if weights_L is None:
            return plain
        return Budget.weighted(meta, size.total, weights_L, in_bytes=size.in_bytes)


def parse_plan(name: str, fetch: Fetch, split: Split | None) -> Plan:
    """The plan of a name.

    Names are those of the catalogue, `anticipate`, and any of these after `prefetch_` or `layer_prefetch_`, which
    `next_token_` may stand before; also those of a predictor's policies in tables.

    Args:
        name: As written.
        fetch: Width and threshold, for names that prefetch by a predictor.
        split: None for the policy's own: `even` for policies of single layers.

    Raises:
        InputError: There is no such policy.
    """
    rest = name.removeprefix("predictor_")
    across = rest.removeprefix(ACROSS)
    layers = across.startswith("layer_prefetch_")
    policy = across.removeprefix("layer_prefetch_").removeprefix("prefetch_")
    if policy != ANTICIPATE and not catalogue.is_known(policy):
        raise InputError(
            f"policy {name!r} is not known; choose one of {catalogue.all_names()}; or with a predictor "
            f"{ANTICIPATE}, or prefetch_ or layer_prefetch_ before any of these, and {ACROSS} before that"
        )
    if across == policy:
        if across != rest:
            raise InputError(f"policy {name!r}: {ACROSS} stands before prefetch_ or layer_prefetch_")
        return Plan(policy, split or "shared")
    return Plan(policy, split or "shared", replace(fetch, layers=layers, next_token=across != rest))


class _NoTraining:
    """Takes the place of training prompts for policies that are not fitted: refuses any use."""

    def __init__(self, policy: str) -> None:
        self._policy = policy

    def __getattr__(self, attribute: str) -> Any:
        raise InputError(f"policy {self._policy!r} learns from other prompts; name a trace of them with --train")
