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
    """A number beside its limit.

    Attributes:
        value: What was measured.
        limit: From `publish.drift`; for the index the larger of that and of what chance gives.
        drifted: Whether the limit is exceeded.
    """

    value: float
    limit: float
    drifted: bool

    @classmethod
    def of(cls, value: float, limit: float) -> Signal:
        """Compare a number with its limit."""
        return cls(value, limit, value > limit)


@dataclass(frozen=True)
class DriftReport:
    """New traces against a window.

    Attributes:
        layer_numbers: MoE layers.
        psi_L: Index of expert usage in each.
        chance_psi: What the largest index stays below in 95 % of random divisions; None where counts alone are known.
        new: Replay of the new traces; None for counts.
        window: Replay of the window, prompts outside the predictor's training data.
        signals: `psi` and, with replays, `recall_loss`, `hit_rate_loss` and `regret_rise`.
    """

    layer_numbers: tuple[int, ...]
    psi_L: npt.NDArray[np.float64]
    chance_psi: float | None
    new: Measures | None
    window: Measures | None
    signals: dict[str, Signal]

    @property
    def drifted(self) -> bool:
        """Whether any limit is exceeded."""
        return any(signal.drifted for signal in self.signals.values())

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        by_layer = dict(zip(map(str, self.layer_numbers), self.psi_L.tolist(), strict=True))
        found = {"drifted": self.drifted, **asdict(self), "psi_by_layer": by_layer}
        return {key: value for key, value in found.items() if key not in ("layer_numbers", "psi_L")}

    def metrics(self) -> dict[str, float]:
        """Flat numbers for MLflow: `drifted` as 0 or 1, and each signal."""
        found = {"drift/drifted": float(self.drifted)}
        for name, signal in self.signals.items():
            found |= {f"drift/{name}": signal.value, f"drift/{name}_limit": signal.limit}
        return found


def drift(
    new: Window,
    window: Window,
    settings: DriftSettings,
    seed: int,
    *,
    measured: tuple[Measures, Measures] | None = None,
) -> DriftReport:
    """Compare new usage with a window's.

    Args:
        new: Usage of the new traces.
        window: Usage of the training data.
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
    signals = {"psi": Signal.of(float(found_L.max()), max(settings.max_psi, chance or 0.0))}
    now, then = measured or (None, None)
    if now is not None and then is not None:
        signals |= {
            "recall_loss": Signal.of(then.recall_at_k - now.recall_at_k, settings.max_recall_loss),
            "hit_rate_loss": Signal.of(then.hit_rate - now.hit_rate, settings.max_hit_rate_loss),
            "regret_rise": Signal.of(now.regret - then.regret, settings.max_regret_rise),
        }
    return DriftReport(new.layer_numbers, found_L, chance, now, then, signals)


def measure(
    trace: Trace, predictor: Predictor, capacity: float, simulate: SimulateSettings, *, prefetch: bool
) -> Measures:
    """Recall of a predictor on a trace, and hit rate and regret of an LRU cache that it prefetches for.

    Args:
        trace: What is measured.
        predictor: Predicts the experts.
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
    total = replay(events, policy, budget, keep_warm=simulate.keep_warm, overrun=simulate.overrun).total
    bound = replay(events, Belady(), budget, keep_warm=simulate.keep_warm).total
    return Measures(
        source=f"{predictor.name}, {'prefetch' if prefetch else 'on demand'} over LRU",
        recall_at_k=float(hits_TL.sum(dtype=np.int64) / (trace.num_tokens * trace.metadata.token_cycle)),
        hit_rate=total.hit_rate,
        regret=1 - bound.loads / total.loads if total.loads else 0.0,
        capacity_experts=slots,
    )
