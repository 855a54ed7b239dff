"""How sure a replay is: bootstrap over prompts, because tokens of one prompt are not independent of each other.

Shape suffixes: P prompts, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_beyond.simulator.results import Replay

_TAIL = 0.025  # 95 % intervals

Amounts = npt.NDArray[np.int64] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """A sum over prompts over another one, such as hits over accesses, or milliseconds over tokens."""

    numerator_P: Amounts
    denominator_P: Amounts

    @property
    def value(self) -> float:
        """Over all prompts; 0 where the denominator is."""
        denominator = float(self.denominator_P.sum())
        return float(self.numerator_P.sum()) / denominator if denominator else 0.0


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
        return self.ratio(replay.hits_P, replay.accesses_P)

    def difference(self, a: Replay, b: Replay) -> Interval:
        """By how much `a`'s hit rate exceeds `b`'s on the same prompts."""
        return self.difference_of_ratios(Ratio(a.hits_P, a.accesses_P), Ratio(b.hits_P, b.accesses_P))

    def ratio(self, numerator_P: Amounts, denominator_P: Amounts) -> Interval:
        """Sum over sum of all prompts, with the percentile interval; 0 where the denominator is."""
        ratio = Ratio(numerator_P, denominator_P)
        return self._interval(ratio.value, self.ratios_B(ratio))

    def difference_of_ratios(self, a: Ratio, b: Ratio) -> Interval:
        """By how much `a` exceeds `b` on the same prompts."""
        return self._interval(a.value - b.value, self.ratios_B(a) - self.ratios_B(b))

    def ratios_B(self, ratio: Ratio) -> npt.NDArray[np.float64]:
        """The ratio in each resample, float64 [B]; 0 in one of prompts that have nothing of the denominator."""
        numerator_B, denominator_B = self.weights_BP @ ratio.numerator_P, self.weights_BP @ ratio.denominator_P
        return np.asarray(numerator_B / np.where(denominator_B > 0, denominator_B, 1), np.float64)

    def between(self, value: float, a_B: npt.NDArray[np.float64], b_B: npt.NDArray[np.float64]) -> Interval:
        """The interval of a difference from the ratios that `ratios_B` gave for both sides."""
        return self._interval(value, a_B - b_B)

    @staticmethod
    def _interval(value: float, values_B: npt.NDArray[np.float64]) -> Interval:
        low, high = np.quantile(values_B, [_TAIL, 1 - _TAIL])
        return Interval(value, float(low), float(high))
