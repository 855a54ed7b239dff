"""A plan says everything that a deployment must choose: policy, split over layers, what is fetched ahead.

Shape suffixes: T tokens, L MoE layers, E routed experts in a layer, H layers ahead, M = L * E experts of the model.
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
from moe_beyond.simulator.policies import catalogue
from moe_beyond.simulator.policies.predictions import Predictions
from moe_beyond.simulator.policies.settings import PolicySettings
from moe_beyond.simulator.schedule.events import Prefill, events_of
from moe_beyond.traces.schema import Trace, TraceMetadata

Split = Literal["shared", "even", "fitted"]
"""`shared`: layers compete for one cache. `even`: each has as much, or what the policy deals out. `fitted`: each what
training prompts say."""
ANTICIPATE = "anticipate"
"""Eviction by a predictor's answer; beside the names of the catalogue."""


@dataclass(frozen=True)
class Fetch:
    """What is fetched ahead on a predictor's word.

    Attributes:
        width: Experts at most for each layer of a step.
        threshold: Least probability.
        layers: Whether the layer step answers too, after every router.
    """

    width: int
    threshold: float = 0.0
    layers: bool = False


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        policy: A name of the catalogue, or `anticipate`.
        split: How layers share the cache.
        fetch: What is fetched ahead by a predictor; None: nothing but what the policy itself fetches.
    """

    policy: str
    split: Split = "shared"
    fetch: Fetch | None = None

    @property
    def predicts(self) -> bool:
        """Whether it needs a predictor."""
        return self.policy == ANTICIPATE or self.fetch is not None

    def row(self) -> dict[str, Any]:
        """For JSON: policy, split, and the fetch's fields."""
        fetch = None if self.fetch is None else asdict(self.fetch)
        return {"policy": self.policy, "split": self.split, "prefetch": fetch}

    def __str__(self) -> str:
        text = self.policy + {"shared": "", "even": ", layers alike", "fitted": ", fitted split"}[self.split]
        if self.fetch is None:
            return text
        after = " and layer step" if self.fetch.layers else ""
        return f"{text}, prefetch {self.fetch.width} a layer from p >= {self.fetch.threshold:g} by token{after}"


@dataclass(frozen=True)
class Room:
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


@dataclass(frozen=True)
class Lessons:
    """What policies learn, from prompts that they are not judged on.

    Attributes:
        training: Those prompts.
        prefill: How their prefill is replayed for the split.
        batch: Prompts that run at once.
        settings: Of published policies.
    """

    training: Trace
    prefill: Prefill = "batched"
    batch: int = 1
    settings: PolicySettings = field(default_factory=PolicySettings)
    _policies: dict[str, Policy] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def none(cls, name: str) -> Self:
        """For policies that learn nothing; the policy `name` is refused where it does."""
        return cls(cast("Trace", _NoTraining(name)))

    def policy(self, name: str) -> Policy:
        """A policy of the catalogue, fitted once. Raises InputError as `catalogue.build`."""
        if name not in self._policies:
            self._policies[name] = catalogue.build(name, self.training, self.settings)
        return self._policies[name]

    @cached_property
    def popularity_LE(self) -> npt.NDArray[np.float32]:
        """How often a token used each expert."""
        return Popularity.fit(self.training).popularity_LE

    @cached_property
    def _hits_LD(self) -> npt.NDArray[np.int64]:
        return layer_curves_LD(events_of(self.training, self.prefill, batch=self.batch))

    def split_L(self, room: Room) -> npt.NDArray[np.int64]:
        """The fitted split: slots of each layer."""
        return fit_split(self.training.metadata, self._hits_LD, room.total, in_bytes=room.in_bytes)


def parse_plan(name: str, fetch: Fetch, split: Split | None) -> Plan:
    """The plan that a name stands for.

    Names are those of the catalogue, `anticipate`, and any of these after `prefetch_` or `layer_prefetch_`; also what
    results of a predictor's policies are called.

    Args:
        name: As written.
        fetch: Width and threshold, for names that fetch ahead.
        split: None for the policy's own: `even` for policies of single layers.

    Raises:
        InputError: Nothing bears the name.
    """
    rest = name.removeprefix("predictor_")
    layers = rest.startswith("layer_prefetch_")
    policy = rest.removeprefix("layer_prefetch_").removeprefix("prefetch_")
    if policy not in (ANTICIPATE, *catalogue.known()):
        raise InputError(
            f"policy {name!r} is not known; choose one of {', '.join(sorted(catalogue.known()))}; or with a predictor "
            f"{ANTICIPATE}, or prefetch_ or layer_prefetch_ before any of these"
        )
    fetches = policy != rest
    return Plan(policy, split or "shared", replace(fetch, layers=layers) if fetches else None)


def policy_of(plan: Plan, lessons: Lessons, answers: Predictions | None) -> Policy:
    """The policy of a plan.

    Raises:
        InputError: The policy is not known, lacks what it learns from, or needs a predictor and there is none.
    """
    if answers is None and plan.predicts:
        raise InputError(f"policy {plan.policy!r} and its prefetches need a predictor; name its directory")
    if answers is None:
        return lessons.policy(plan.policy)
    by_prediction = plan.policy == ANTICIPATE
    policy = answers.eviction(lessons.popularity_LE) if by_prediction else lessons.policy(plan.policy)
    if plan.fetch is None:
        return policy
    return answers.prefetch(policy, plan.fetch.width, plan.fetch.threshold, layers=plan.fetch.layers)


def budget_of(plan: Plan, policy: Policy, lessons: Lessons, meta: TraceMetadata, room: Room) -> Budget:
    """The budget of a plan.

    Args:
        plan: Its split counts.
        policy: What `policy_of` made of it.
        lessons: For a fitted split.
        meta: The model's shape.
        room: How much there is.

    Raises:
        InputError: It cannot hold an expert, or holds more than there are.
    """
    plain = room.budget(meta, per_layer=plan.split == "even")
    weights_L = None if plan.split == "shared" else policy.layer_weights_L(meta.num_layers)
    if plan.split == "fitted":
        slots_L = lessons.split_L(room).astype(np.float64)
        weights_L = slots_L * np.asarray(meta.expert_bytes) if room.in_bytes else slots_L
    if weights_L is None:
        return plain
    return Budget.weighted(meta, room.total, weights_L, in_bytes=room.in_bytes)


class _NoTraining:
    """Stands where a policy that learns nothing gets training prompts."""

    def __init__(self, policy: str) -> None:
        self._policy = policy

    def __getattr__(self, attribute: str) -> Any:
        raise InputError(f"policy {self._policy!r} learns from other prompts; name a trace of them with --train")
