"""What a policy decides while a model runs: what its arrays over a whole trace say, one event at a time.

Shape suffixes: I members of an event, M experts of the model, W experts of a request, T tokens of a step, K experts per
token, E experts in a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from moe_beyond.errors import InputError
from moe_beyond.simulator.jit import F32, F64, I32, I64, Bools


@dataclass(frozen=True)
class Step:
    """One pass of the model.

    Attributes:
        first_event: Number of its first event.
        prompt: Number of its prompt.
        decodes: Whether it decodes one token; else it is a prompt's prefill.
        starts_prompt: Whether it is the prompt's first.
        tokens: Strings of the tokens that it reads, as the tokenizer writes them.
    """

    first_event: int
    prompt: int
    decodes: bool
    starts_prompt: bool
    tokens: tuple[str, ...]


class Choice(NamedTuple):
    """What a router gives: ids within its layer, int64 [T, K], and combine weights, float32 [T, K]."""

    experts_TK: npt.NDArray[np.int64]
    weights_TK: F32


class RunRouter(Protocol):
    """Runs the router of a layer (index) on what the present layer's has read."""

    def __call__(self, layer: int, change: Callable[[F32], F32] | None = None) -> Choice:
        """What it chooses, its own way, from its logits, float32 [T, E], as `change` returns them.

        The weights are those that it gives to these experts without the change.

        Raises:
            InputError: It cannot be run apart from its layer, or it chooses in a way that cannot be changed.
        """


@dataclass(frozen=True)
class Routing:
    """What a router chose in one event.

    Attributes:
        event: Its number.
        layer: Index of its MoE layer.
        decodes: Whether it is of a decode step.
        members_I: int32, model-wide ids; of one token in falling order of weight.
        shares_I: float32, each member's share of the router weight; they sum to 1.
        experts_TK: int, ids within the layer that each of the step's tokens uses, in falling order of weight.
        next_gate: The experts, in falling order, that the router of a later layer (index) would choose for what this
            layer's router has read; None where a trace is stepped, which has no hidden states.
        run_router: Runs a layer's router on the same; None likewise.
        gate_input: Gives what the router read of a decoded token, float32 [hidden size]; None likewise.
    """

    event: int
    layer: int
    decodes: bool
    members_I: I32
    shares_I: F32
    experts_TK: npt.NDArray[np.integer]
    next_gate: Callable[[int], I32] | None = None
    run_router: RunRouter | None = None
    gate_input: Callable[[], F32] | None = None

    def require_router(self, policy: str) -> RunRouter:
        """`run_router`; raises InputError where there is none."""
        if self.run_router is None:
            raise InputError(f"policy {policy}: runs the model's routers; use it beside a model, with its real gates")
        return self.run_router


class Request(NamedTuple):
    """Experts of a layer that a later event will use, model-wide ids in order of priority.

    With it may come a score of each of the layer's experts, float32, in place of the one that ranks have read so far.
    """

    target: int
    experts_W: npt.NDArray[np.integer]
    scores_E: F32 | None = None


class Online:
    """Decides nothing: evicts by what the cache itself knows."""

    token_ms = 0.0
    """Milliseconds that its predictor has taken so far."""
    layer_ms = 0.0
    """The part of them between routers and experts."""
    bytes_share_M: F64 | None = None
    """Bytes of each expert as a share of the whole ones, as `ChangedDemand` has them; None: 1."""
    levels_M: I64 | None = None
    """Of how many levels each expert's weights are where it is loaded for real, 0 for all that they have; None: 0."""

    def __init__(self, scores_M: F32 | None = None) -> None:
        """A policy whose scores never change, or that has none."""
        self._scores_M = scores_M

    def begin(self, step: Step) -> tuple[F32 | None, list[Request]]:
        """A step begins: scores that ranks read from now on (None: as before), and what to prefetch.

        The time of a predictor's token step passes in here.
        """
        return (self._scores_M if step.first_event == 0 else None), []

    def choose(self, routing: Routing, resident_E: Bools) -> Choice | None:
        """In a decode step, ahead of `keep`: what the layer computes with instead; None: what its router chose.

        `routing` is the router's own; the others then get that of this choice. `resident_E` says which of the layer's
        experts have a place in the cache.
        """
        return None

    def keep(self, routing: Routing) -> Bools | None:
        """Which of the members it uses; None: all."""
        return None

    def routed(self, routing: Routing) -> list[Request]:
        """What to prefetch now that a router has chosen. The time of a predictor's layer step passes in here."""
        return []

    def end(self, step: Step, experts_TLK: npt.NDArray[np.integer]) -> None:
        """A step has ended, in which the routers chose these experts, in falling order of weight."""
