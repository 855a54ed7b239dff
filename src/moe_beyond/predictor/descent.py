"""Descent for the small linear baselines, in numpy. Shape suffixes: N rows, E experts, B rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from moe_beyond.predictor.base import Floats

_BATCH, _RATE, _EPOCHS = 1024, 3e-2, 4
"""The rate was chosen on validation prompts of the default, for all that descend here."""
_FIRST, _SECOND, _TINY = 0.9, 0.999, 1e-8


def descend(
    matrices: Sequence[Floats],
    slopes: Callable[[int, npt.NDArray[np.int64]], Sequence[Floats]],
    lengths: Sequence[int],
    *,
    decay: float,
    draw: np.random.Generator,
) -> None:
    """AdamW (Loshchilov and Hutter 2019) with a rate that falls to zero in a line; changes `matrices`.

    Args:
        matrices: float32.
        slopes: Mean slope of the loss by each matrix, given the number of a set of rows and rows of it.
        lengths: Rows of each set; a batch is of one set.
        decay: Share of the rate by which matrices shrink in each step.
        draw: Orders the rows.
    """
    means = [np.zeros_like(matrix) for matrix in matrices]
    squares = [np.zeros_like(matrix) for matrix in matrices]
    total = _EPOCHS * sum(-(-length // _BATCH) for length in lengths)
    step = 0
    for _ in range(_EPOCHS):
        batches = []
        for number, length in enumerate(lengths):
            order_N = draw.permutation(length)
            batches += [(number, order_N[start : start + _BATCH]) for start in range(0, length, _BATCH)]
        for place in draw.permutation(len(batches)):
            rate, step = _RATE * (1 - step / total), step + 1
            for i, slope in enumerate(slopes(*batches[place])):
                means[i] += (1 - _FIRST) * (slope - means[i])
                squares[i] += (1 - _SECOND) * (slope**2 - squares[i])
                scaled = (means[i] / (1 - _FIRST**step)) / (np.sqrt(squares[i] / (1 - _SECOND**step)) + _TINY)
                matrices[i][:] -= np.asarray(rate * (scaled + decay * matrices[i]), np.float32)


def softmax(logits_NE: Floats) -> Floats:
    """Shares of each row, float32."""
    powers_NE = np.exp(logits_NE - logits_NE.max(axis=1, keepdims=True))
    return np.asarray(powers_NE / powers_NE.sum(axis=1, keepdims=True), np.float32)
