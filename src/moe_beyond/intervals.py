"""The uncertainty of a figure: 95 % intervals by resampling prompts, since tokens of one prompt depend on each other.

The percentile bootstrap (Efron and Tibshirani 1993, chapter 13). The same draws serve every figure of a split, so that
differences are paired by prompt.

Shape suffixes: P prompts, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_TAIL = 0.025

Amounts = npt.NDArray[np.int64] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; without ends where fewer than two prompts count: they say nothing of a spread."""

    value: float
    low: float | None
    high: float | None

    def below(self, limit: float) -> bool:
        """Whether all of it lies below a limit."""
        return self.high is not None and self.high < limit

    def above(self, limit: float) -> bool:
        """Whether all of it lies above a limit."""
        return self.low is not None and self.low > limit

    def columns(self, name: str) -> dict[str, float | None]:
        """As columns of a table, see `interval_columns`."""
        return dict(zip(interval_columns(name), (self.value, self.low, self.high), strict=True))


def interval_columns(name: str) -> tuple[str, str, str]:
    """The columns of an interval: the value's name, and that of its ends."""
    return name, f"{name}_low", f"{name}_high"


@dataclass(frozen=True)
class Ratio:
    """A sum over prompts over another one, such as hits over accesses, or milliseconds over tokens.

    Attributes:
        numerator_P: int64 or float64.
        denominator_P: int64 or float64, 0 where a prompt does not count.
    """

    numerator_P: Amounts
    denominator_P: Amounts

    @property
    def value(self) -> float:
        """Over all prompts; 0 where the denominator is."""
        denominator = float(self.denominator_P.sum())
        return float(self.numerator_P.sum()) / denominator if denominator else 0.0

    @property
    def counts(self) -> bool:
        """Whether any prompt counts."""
        return bool(self.denominator_P.sum() > 0)

    @property
    def spreads(self) -> bool:
        """Whether at least two prompts count, so that resampling them says something."""
        return bool((self.denominator_P > 0).sum() > 1)


@dataclass(frozen=True)
class Resamples:
    """The same draws of prompts for every figure.

    Attributes:
        weights_BP: int64, how often resample b holds prompt p.
    """

    weights_BP: npt.NDArray[np.int64]

    @classmethod
    def draw(cls, num_prompts: int, samples: int, seed: int) -> Resamples:
        """`samples` times as many prompts as there are, with replacement."""
        even_P = np.full(num_prompts, 1 / num_prompts)
        return cls(np.random.default_rng(seed).multinomial(num_prompts, even_P, size=samples))

    def ratio(self, ratio: Ratio) -> Interval:
        """The ratio over all prompts with its interval; resamples in which no prompt counts are ignored."""
        return self.of(lambda value: value, ratio)

    def difference(self, a: Ratio, b: Ratio) -> Interval:
        """By how much `a` exceeds `b` on the same prompts."""
        return self.of(lambda first, second: first - second, a, b)

    def of(self, figure: Callable[..., Any], *ratios: Ratio) -> Interval:
        """A figure computed from ratios of the same prompts; `figure` takes their values, or arrays of them."""
        value = float(figure(*(one.value for one in ratios)))
        values_B = figure(*map(self.ratios_B, ratios))
        return interval(value, values_B) if all(one.spreads for one in ratios) else Interval(value, None, None)

    def ratios_B(self, ratio: Ratio) -> npt.NDArray[np.float64]:
        """The ratio in each resample, float64 [B]; not a number where no prompt counts."""
        numerator_B, denominator_B = self.weights_BP @ ratio.numerator_P, self.weights_BP @ ratio.denominator_P
        empty_B = np.full(len(self.weights_BP), np.nan)
        return np.asarray(np.divide(numerator_B, denominator_B, out=empty_B, where=denominator_B > 0), np.float64)


def interval(value: float, values_B: npt.NDArray[np.float64]) -> Interval:
    """The value with the percentile interval of its resamples; without ends where none of them counts."""
    if np.isnan(values_B).all():
        return Interval(value, None, None)
    low, high = np.nanquantile(values_B, [_TAIL, 1 - _TAIL])
    return Interval(value, float(low), float(high))
