"""How sure a replay is: bootstrap over prompts, because tokens of one prompt are not independent of each other.

Shape suffixes: P prompts, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.results import Replay

_TAIL = 0.025  # 95 % intervals


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """The same draws of prompts for every policy, so that their differences are paired.

    Attributes:
        weights_BP: int64, how often resample b holds prompt p.
    """

    weights_BP: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, num_prompts: int, samples: int, seed: int) -> Resamples:
        """`samples` times as many prompts as there are, with replacement."""
        even_P = np.full(num_prompts, 1 / num_prompts)
        return cls(np.random.default_rng(seed).multinomial(num_prompts, even_P, size=samples))

    def hit_rate(self, replay: Replay) -> Interval:
        """Hit rate of a replay over all its accesses, with the percentile interval."""
        return self._interval(replay.total.hit_rate, self._hit_rates_B(replay))

    def difference(self, a: Replay, b: Replay) -> Interval:
        """By how much `a`'s hit rate exceeds `b`'s on the same prompts."""
        value = a.total.hit_rate - b.total.hit_rate
        return self._interval(value, self._hit_rates_B(a) - self._hit_rates_B(b))

    def _hit_rates_B(self, replay: Replay) -> npt.NDArray[np.float64]:
        # a resample of prompts without any access cannot occur: every prompt has tokens
        return np.asarray((self.weights_BP @ replay.hits_P) / (self.weights_BP @ replay.accesses_P))

    @staticmethod
    def _interval(value: float, values_B: npt.NDArray[np.float64]) -> Interval:
        low, high = np.quantile(values_B, [_TAIL, 1 - _TAIL])
        return Interval(value, float(low), float(high))
