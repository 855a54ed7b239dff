"""The population stability index of expert usage, and how large chance alone makes it.

PSI of a layer is the sum over experts of (p - q) ln(p / q), with p and q the shares of choices in the new traces and in
the window (the symmetric Kullback-Leibler divergence of Jeffreys, 1946, as credit scoring uses it).

Shape suffixes: P prompts, L MoE layers, E experts, R random divisions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_PRIOR = 0.5
"""Added to every count, so that an expert that one side never used has a share above 0 (Jeffreys' prior)."""


def psi_L(new_LE: npt.NDArray[np.number], window_LE: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """Index of each layer, float64 [..., L]; leading axes pass through."""
    new, window = (np.asarray(counts, np.float64) + _PRIOR for counts in (new_LE, window_LE))
    p = new / new.sum(axis=-1, keepdims=True)
    q = window / window.sum(axis=-1, keepdims=True)
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=-1))


def chance_psi(
    new_PLE: npt.NDArray[np.int64], window_PLE: npt.NDArray[np.int64], draws: int, seed: int
) -> npt.NDArray[np.float64]:
    """The largest index of any layer when the same prompts are divided at random, float64 [R], sorted.

    Few prompts make a large index without any drift, the more so as tokens of one prompt share its topic. What 95 % of
    the divisions stay below is what a difference must exceed to mean anything.

    Args:
        new_PLE: Counts of each new prompt.
        window_PLE: Counts of each prompt of the window.
        draws: Number of divisions.
        seed: Of the divisions.
    """
    both = np.concatenate([new_PLE, window_PLE]).astype(np.float64)
    total_LE = both.sum(axis=0)
    rng = np.random.default_rng(seed)
    largest = np.empty(draws)
    for draw in range(draws):
        side_LE = both[rng.permutation(len(both))[: len(new_PLE)]].sum(axis=0)
        largest[draw] = psi_L(side_LE, total_LE - side_LE).max()
    return np.sort(largest)
