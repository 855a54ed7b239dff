"""Compilation of the replay's inner loops, typed so that strict type checks still see the functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

# what a policy's rank function takes and gives: see `policies.base`
RANK = types.void(types.float64[:, ::1], types.int32[::1], types.int64, types.int64, types.int64)
# what a demand function takes and gives: see `policies.base`
DEMAND = types.void(
    types.float64[:, ::1],
    types.int64[::1],
    types.int32[::1],
    types.float32[::1],
    types.int64,
    types.int64,
    types.int64[::1],
)


def compiled(signature: Any = None) -> Callable[[Function], Function]:
    """Compile with numba: cached on disk beside the source, and without the interpreter's lock.

    Args:
        signature: Give one where the function is handed to another compiled function: it is then passed by address,
            so that one compiled replay, cached once, serves every policy.
    """
    return cast("Callable[[Function], Function]", njit(signature, cache=True, nogil=True, error_model="numpy"))


@intrinsic
def _ctpop(_context: Any, word: Any) -> Any:
    return types.int64(word), lambda _context, builder, _signature, arguments: builder.ctpop(arguments[0])


@compiled()
def count_ones(word: np.uint64) -> int:
    """How many bits of a word are set: one instruction, which numba has no name for."""
    return _ctpop(word)  # type: ignore[call-arg] # the context is numba's
