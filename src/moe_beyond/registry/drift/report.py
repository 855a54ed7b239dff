"""Drift as checks that a scheduler can act on: usage of experts, recall, hit rate, regret."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_beyond.evaluation.scores import score
from moe_beyond.predictor.base import Predictor
from moe_beyond.registry.drift.stability import chance_psi, psi_L
from moe_beyond.registry.drift.window import Measures, Window
from moe_beyond.registry.settings import DriftSettings
from moe_beyond.simulator.bounds.belady import Belady
from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.policy import Policy
from moe_beyond.simulator.engine.replay import replay
from moe_beyond.simulator.policies.on_demand import Lru
from moe_beyond.simulator.policies.predictions import Predictions, prefetch_width
from moe_beyond.simulator.schedule.events import events_of
from moe_beyond.simulator.study.case import capacity_experts
from moe_beyond.simulator.study.settings import SimulateSettings
from moe_beyond.traces.schema import Trace

_CHANCE = 0.95


@dataclass(frozen=True)
class Signal:
    """One number held against its limit.

    Attributes:
        name: `psi`, `recall_loss`, `hit_rate_loss` or `regret_rise`.
        value: What was found.
        limit: From `publish.drift`; for the index the larger of that and of what chance gives.
        drifted: Whether the limit is exceeded.
    """

    name: str
    value: float
    limit: float
    drifted: bool


@dataclass(frozen=True)
class DriftReport:
    """What new traces say against a window.

    Attributes:
        layer_numbers: MoE layers.
        psi_L: Index of expert usage in each.
        chance_psi: What the largest index stays below in 95 % of random divisions; None where counts alone are known.
        new: Replay of the new traces; None for counts.
        window: Replay of the window, prompts that the predictor did not learn from.
        signals: Numbers with their limits.
    """

    layer_numbers: tuple[int, ...]
    psi_L: npt.NDArray[np.float64]
    chance_psi: float | None
    new: Measures | None
    window: Measures | None
    signals: tuple[Signal, ...]

    @property
    def drifted(self) -> bool:
        """Whether any limit is exceeded."""
        return any(signal.drifted for signal in self.signals)

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "drifted": self.drifted,
            "signals": {
                signal.name: {k: v for k, v in asdict(signal).items() if k != "name"} for signal in self.signals
            },
            "psi_by_layer": dict(zip(map(str, self.layer_numbers), self.psi_L.tolist(), strict=True)),
            "chance_psi": self.chance_psi,
            "new": None if self.new is None else asdict(self.new),
            "window": None if self.window is None else asdict(self.window),
        }

    def metrics(self) -> dict[str, float]:
        """Flat numbers for MLflow: `drifted` as 0 or 1, and each signal."""
        found = {"drift/drifted": float(self.drifted)}
        for signal in self.signals:
            found |= {f"drift/{signal.name}": signal.value, f"drift/{signal.name}_limit": signal.limit}
        return found


def drift(
    new: Window,
    window: Window,
    settings: DriftSettings,
    seed: int,
    *,
    measured: tuple[Measures, Measures] | None = None,
) -> DriftReport:
    """Hold new usage against a window's.

    Args:
        new: Usage of the new traces.
        window: Usage that the predictor learned from.
        settings: Limits.
        seed: Of the random divisions.
        measured: Replays of the new traces and of the window; None where there are counts alone.

    Raises:
        InputError: The two are not of one shape.
    """
    new.require_same_shape(window, "--against")
    found_L = psi_L(new.counts_LE, window.counts_LE)
    chance = None
    if new.prompt_counts_PLE is not None and window.prompt_counts_PLE is not None:
        divided = chance_psi(new.prompt_counts_PLE, window.prompt_counts_PLE, settings.chance_draws, seed)
        chance = float(np.quantile(divided, _CHANCE))
    limit = max(settings.max_psi, chance or 0.0)
    signals = [_signal("psi", float(found_L.max()), limit)]
    if measured is not None:
        now, then = measured
        signals += [
            _signal("recall_loss", then.recall_at_k - now.recall_at_k, settings.max_recall_loss),
            _signal("hit_rate_loss", then.hit_rate - now.hit_rate, settings.max_hit_rate_loss),
            _signal("regret_rise", now.regret - then.regret, settings.max_regret_rise),
        ]
    replays: tuple[Measures | None, Measures | None] = measured or (None, None)
    return DriftReport(new.layer_numbers, found_L, chance, replays[0], replays[1], tuple(signals))


def measure(
    trace: Trace, predictor: Predictor, capacity: float, simulate: SimulateSettings, *, prefetch: bool
) -> Measures:
    """Recall of a predictor on a trace, and hit rate and regret of an LRU cache that it prefetches for.

    Args:
        trace: What is measured.
        predictor: Who names experts.
        capacity: Cache as a share of all experts.
        simulate: How prefill and widths are replayed.
        prefetch: Let the predictor prefetch; otherwise the cache loads on demand.
    """
    hits_TL = score(predictor, trace)
    events = events_of(trace, simulate.prefill)
    slots = capacity_experts(trace.metadata, capacity)
    budget = Budget.slots(trace.metadata, slots)
    policy: Policy = Lru()
    if prefetch:
        width = prefetch_width(trace.metadata, 1, simulate.prefetch_width)
        policy = Predictions(predictor, trace, events).prefetch(Lru(), width, simulate.prefetch_threshold)
    total = replay(events, policy, budget, keep_warm=simulate.keep_warm).total
    bound = replay(events, Belady(), budget, keep_warm=simulate.keep_warm).total
    return Measures(
        source=f"{predictor.name}, {'prefetch' if prefetch else 'on demand'} over LRU",
        recall_at_k=float(hits_TL.sum(dtype=np.int64) / (trace.num_tokens * trace.metadata.token_cycle)),
        hit_rate=total.hit_rate,
        regret=1 - bound.loads / total.loads if total.loads else 0.0,
        capacity_experts=slots,
    )


def _signal(name: str, value: float, limit: float) -> Signal:
    return Signal(name, value, limit, value > limit)
