"""A model whose experts lie on a slow tier: each router's choice steps the cache, loads what is missing, and computes.

Shape suffixes: T tokens of a step, L MoE layers, K experts per token, H hidden size, E experts in a layer,
I members of an event, M experts of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moe_beyond.capture.hooks import by_falling_weight
from moe_beyond.live.link import Link, Load, SlowTier
from moe_beyond.live.next_gate import NextGate
from moe_beyond.live.pool import NO_SLOT, ExpertPool, compute
from moe_beyond.simulator.engine.online import Online, Request, Routing, Step
from moe_beyond.simulator.engine.results import MIB
from moe_beyond.simulator.engine.stepped_cache import NOTHING, Routed, SteppedCache
from moe_beyond.simulator.engine.usage import LATE, MISSED, PREFETCHED
from moe_beyond.simulator.schedule.events import members_of
from moe_beyond.simulator.schedule.weight_shares import member_shares, shares_TLK

if TYPE_CHECKING:
    from moe_beyond.capture.discovery import MoELayer
    from moe_beyond.simulator.jit import I64

Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class StepTime:
    """One pass of the model.

    Attributes:
        prompt: Number of its prompt.
        decodes: Whether it decoded one token; else it was a prefill.
        tokens: Tokens that it read.
        wall_ms: From the end of the pass before, or its own beginning, to its end.
        io_ms: The part of it in which the link loaded.
        stall_ms: The part of it in which the model waited for the link.
        predictor_ms: The part of it in which a predictor ran.
        dense_ms: The part of it from the beginning of each MoE layer's turn to its router's choice: attention, dense
            layers before it, the router.
        experts_ms: The part of it in which experts computed.
        read_bytes: Bytes that the link loaded.
        hits: Experts that were there when their layer needed them.
        misses: Those that it waited for, late prefetches included.
    """

    prompt: int
    decodes: bool
    tokens: int
    wall_ms: float
    io_ms: float
    stall_ms: float
    predictor_ms: float
    dense_ms: float
    experts_ms: float
    read_bytes: int
    hits: int
    misses: int


class OffloadedExperts:
    """Stands in for the experts of all layers while prompts run, one after another.

    Attributes:
        cache: What is resident, and all counts.
        times: A row a pass.
        outcomes: Of each event in turn, int8: what happened with each of its members, numbers of `usage`.
    """

    def __init__(
        self,
        layers: list[MoELayer],
        pool: ExpertPool,
        tier: SlowTier,
        cache: SteppedCache,
        online: Online,
        *,
        lanes: int = 1,
        gb_per_s: float | None = None,
        gate: NextGate | None = None,
    ) -> None:
        """Stand before the experts of `layers`, which the pool then serves; `close` takes it back.

        Args:
            layers: The model's MoE layers.
            pool: Slots: those of the cache, and two more than a token uses in a layer.
            tier: Where the experts lie.
            cache: Of the policy.
            online: The policy's decisions.
            lanes: Pieces of an expert read at once.
            gb_per_s: As for `Link`.
            gate: The routers, for policies that guess the next layer's experts or choose otherwise than their layer;
                None: the former guess by a fitted map.
        """
        self.cache, self.times = cache, list[StepTime]()
        self.outcomes: list[np.ndarray[Any, Any]] = []
        self._online, self._pool, self._num_layers = online, pool, len(layers)
        self._num_experts = layers[0].num_experts
        self._link = Link(tier, self._next_prefetch, self._prefetched, lanes=lanes, gb_per_s=gb_per_s)
        self._gate = gate
        self._detach = pool.attach(layers, self._run)
        self._requests: list[Request] = []
        self._experts_LTK: list[I64] = []
        self._used: set[int] = set()
        self._stall_s, self._hits, self._misses = 0.0, 0, 0
        self._dense_s, self._experts_s = 0.0, 0.0
        self._step: Step | None = None
        self._began, self._event_began, self._before = 0.0, 0.0, (0.0, 0, 0.0)

    @property
    def slots_mib(self) -> float:
        """MiB of the slots."""
        return self._pool.bytes_SB.numel() / MIB

    def close(self) -> None:
        """End the loading; the experts modules have their own parameters again."""
        self._link.close()
        self._detach()

    def begin_step(self, prompt: int, tokens: tuple[str, ...], *, decodes: bool, starts_prompt: bool) -> None:
        """The model is about to read these tokens, given as the tokenizer writes them."""
        # between the passes of one prompt no time is lost: choosing a token belongs to the pass that follows
        self._began = perf_counter() if starts_prompt or not self._began else self._began
        self._before = (self._link.busy_s, self._link.bytes_read, self._online.token_ms)
        self._stall_s, self._hits, self._misses = 0.0, 0, 0
        self._dense_s, self._experts_s = 0.0, 0.0
        self._experts_LTK = []
        with self._link.changed:
            self._step = Step(self.cache.event, prompt, decodes, starts_prompt, tokens)
            self.cache.begin_step(prompt, len(tokens), decodes=decodes)
            self._tidy()
        scores_M, requests = self._online.begin(self._step)
        with self._link.changed:
            if scores_M is not None:
                self.cache.set_scores(scores_M)
            for request in requests:
                self.cache.request(*request)
            self.cache.release()
            self._link.changed.notify_all()
        self._event_began = perf_counter()

    def end_step(self) -> None:
        """The model has read them."""
        step = self._step
        assert step is not None  # noqa: S101 - a step ends that has begun
        self._online.end(step, np.stack(self._experts_LTK, axis=1))
        now = perf_counter()
        busy_s, bytes_read, token_ms = self._before
        self.times.append(
            StepTime(
                prompt=step.prompt,
                decodes=step.decodes,
                tokens=len(step.tokens),
                wall_ms=1e3 * (now - self._began),
                io_ms=1e3 * (self._link.busy_s - busy_s),
                stall_ms=1e3 * self._stall_s,
                predictor_ms=self._online.token_ms - token_ms,
                dense_ms=1e3 * self._dense_s,
                experts_ms=1e3 * self._experts_s,
                read_bytes=self._link.bytes_read - bytes_read,
                hits=self._hits,
                misses=self._misses,
            )
        )
        self._began = now

    def _run(
        self, layer: int, forward: Forward, hidden_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """In place of an experts module's forward."""
        routing = self._routing(layer, hidden_TH, ids_TK, weights_TK)
        if routing.decodes:
            first = layer * self._num_experts
            with self._link.changed:
                resident_E = self.cache.resident_M[first : first + self._num_experts]
            choice = self._online.choose(routing, resident_E)
            if choice is not None:
                ids_TK = torch.from_numpy(choice.experts_TK).to(ids_TK)
                weights_TK = torch.from_numpy(choice.weights_TK).to(weights_TK)
                routing = self._routing(layer, hidden_TH, ids_TK, weights_TK)
        self._experts_LTK.append(np.asarray(routing.experts_TK, np.int64))
        keep_I = self._online.keep(routing)
        with self._link.changed:
            routed = self.cache.route(routing.members_I, routing.shares_I, keep_I)
            # the link loads one expert at a time, so at most one is late
            late = next((int(expert) for expert in routed.members_I[routed.outcome_I == LATE]), None)
            self._used = {int(expert) for expert in routed.computes_I if expert >= 0}
            self._tidy()
            waiting = [
                (int(expert), int(precision))
                for expert, precision, outcome in zip(
                    routed.computes_I, routed.precision_I, routed.outcome_I, strict=True
                )
                if outcome >= MISSED
            ]
            waiting = self._load(waiting)
        self._dense_s += perf_counter() - self._event_began
        self.outcomes.append(routed.outcome_I)
        missed_I = (routed.outcome_I >= MISSED) | (routed.outcome_I == LATE)
        self._misses += int(missed_I.sum())
        self._hits += int((routed.outcome_I <= PREFETCHED).sum())
        # while demand is loading
        self._requests = self._online.routed(routing)
        self._wait(late)
        there, stall_s = perf_counter(), self._stall_s
        out_TH = self._compute(forward, hidden_TH, ids_TK, weights_TK, routed, waiting)
        self._pool.mark_computed()
        with self._link.changed:
            self._used.clear()
            self.cache.end_event()
            self._tidy()
            # each wake-up of the link takes time from the model
            if self.cache.has_requests:
                self._link.changed.notify_all()
        self._event_began = perf_counter()
        self._experts_s += self._event_began - there - (self._stall_s - stall_s)
        return out_TH

    def _routing(self, layer: int, hidden_TH: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor) -> Routing:
        ids, weights = by_falling_weight(ids_TK.detach().long().cpu(), weights_TK.detach().float().cpu())
        experts_TK = ids.numpy()
        # at the precision of a trace, so that a replay decides alike
        shares_TK = shares_TLK(weights.numpy().astype(np.float16)[:, None])[:, 0]
        members_I = members_of(experts_TK, layer, self._num_experts)
        shares_I = member_shares(experts_TK, shares_TK, members_I, layer, self._num_experts)
        step = self._step
        assert step is not None  # noqa: S101 - experts run in a step
        gate = self._gate
        routing = Routing(self.cache.event, layer, step.decodes, members_I, shares_I, experts_TK)
        if not step.decodes:
            return routing
        routing = replace(routing, gate_input=lambda: hidden_TH[0].float().cpu().numpy())
        if gate is None:
            return routing
        return replace(
            routing, next_gate=partial(gate.experts, hidden_TH=hidden_TH), run_router=partial(gate.choice, hidden_TH)
        )

    def _compute(  # noqa: PLR0917 - an event's parts
        self,
        forward: Forward,
        hidden_TH: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        routed: Routed,
        waiting: list[tuple[int, int]],
    ) -> torch.Tensor:
        """The experts' outputs; an event that uses more experts than there are slots computes in parts."""
        if self._requests:
            with self._link.changed:
                for request in self._requests:
                    self.cache.request(*request)
                self._link.changed.notify_all()
        out_TH: torch.Tensor | None = None
        done: set[int] = set()
        while True:
            later = {expert for expert, _ in waiting}
            here = self._used - later - done
            slots_TK = self._slots(ids_TK, routed, here)
            if not (waiting or done):
                return compute(forward, hidden_TH, slots_TK, weights_TK)
            out_TH = torch.zeros_like(hidden_TH) if out_TH is None else out_TH
            compute(forward, hidden_TH, slots_TK, weights_TK, out_TH)
            self._pool.mark_computed()
            done |= here
            if not waiting:
                return out_TH
            with self._link.changed:
                # what the cache does not keep has been used
                self._used -= done
                self._tidy()
                self._used |= done
                waiting = self._load(waiting)
            self._wait(None)

    def _slots(self, ids_TK: torch.Tensor, routed: Routed, here: set[int]) -> torch.Tensor:
        """The slot of the expert that computes for each entry, int64 [T, K]; NO_SLOT where none of `here` does."""
        slot_E = np.full(self._num_experts, NO_SLOT)
        for member, expert in zip(routed.members_I.tolist(), routed.computes_I.tolist(), strict=True):
            if expert in here:
                slot_E[member % self._num_experts] = self._pool.slot_M[expert]
        return torch.from_numpy(slot_E).to(ids_TK.device)[ids_TK.long()]

    def _load(self, waiting: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Demand what there are slots for; returns the rest. With `changed` held."""
        slots = self._pool.slot_M
        # one that is loaded again at a better precision has its slot
        fits = [entry for entry in waiting if slots[entry[0]] != NO_SLOT]
        others = [entry for entry in waiting if slots[entry[0]] == NO_SLOT]
        fits += others[: self._pool.num_free]
        self._link.demand([Load(expert, self._pool.take(expert), precision) for expert, precision in fits])
        return others[len(fits) - (len(waiting) - len(others)) :]

    def _wait(self, late: int | None) -> None:
        began = perf_counter()
        self._link.wait(late)
        self._stall_s += perf_counter() - began

    def _tidy(self) -> None:
        """Free the slots of what the cache has evicted, but for what computes now. With `changed` held."""
        for expert in self._pool.held_without(self.cache.resident_M).tolist():
            if expert in self._used:
                continue
            if expert == self._link.loading:
                self._link.cancel()
            else:
                self._pool.give_back(expert)

    def _next_prefetch(self) -> Load | None:
        """Called by the link, which is free."""
        if not self._pool.num_free:
            return None
        expert = self.cache.start_prefetch()
        if expert == NOTHING:
            return None
        self._tidy()
        return Load(expert, self._pool.take(expert))

    def _prefetched(self, load: Load, loaded: bool) -> None:
        """Called by the link."""
        # one that an event waits for has been finished by that event
        if loaded and self.cache.loading == load.expert:
            self.cache.finish_prefetch()
        self._tidy()
