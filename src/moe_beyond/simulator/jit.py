"""Compilation of the replay's inner loops, typed so that strict type checks still see the functions.

`I32`, `I64`, `F32`, `F64` and `Bools` are arrays of one dtype; how many axes they have, the suffixes of names say.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import NumbaExperimentalFeatureWarning, config, njit, types
from numba.core import event
from numba.core.caching import NullCache
from numba.extending import intrinsic

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Function = TypeVar("Function", bound=Callable[..., Any])


def _keep_compiled_code() -> None:
    """Let numba keep what it compiles in a folder of this very engine.

    Numba compiles a function anew when its own file changed, but not when a function of another file that it calls did:
    after an update, a former engine would go on counting without a word. `NUMBA_CACHE_DIR` is respected.
    """
    numba: Any = config  # its attributes come from the environment
    if numba.CACHE_DIR:
        return
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted([Path(__file__), *(here / "engine").glob("*.py")]):
        digest.update(source.read_bytes())
    home = here / "__pycache__"
    if not os.access(home if home.exists() else here, os.W_OK):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe-beyond"
    numba.CACHE_DIR = str(home / f"compiled-{digest.hexdigest()[:12]}")


_keep_compiled_code()

# functions are handed to compiled functions by address, which numba calls an experiment
warnings.simplefilter("ignore", NumbaExperimentalFeatureWarning)

# what rank and demand functions of policies take and give: see `engine.policy`
RANK = types.void(types.float64[:, ::1], types.int32[::1], types.int64, types.int64, types.int64)
_INTS = types.int64[::1]
DEMAND = types.void(types.float64[:, ::1], _INTS, types.int32[::1], types.float32[::1], types.int64, types.int64, _INTS)


class _SaidOnce(event.Listener):
    """Says why the first replay of a checkout takes longer: of what is cached beside the source, a part is missing."""

    said = False

    def on_start(self, event: event.Event) -> None:
        if not self.said and not isinstance(event.data["dispatcher"]._cache, NullCache):
            self.said = True
            logging.getLogger(__name__).warning("compiling the replay for this processor, once: up to half a minute")

    def on_end(self, event: event.Event) -> None:
        """Nothing to say."""


event.register("numba:compile", _SaidOnce())


def compiled(signature: Any = None, *, borrows: bool = False) -> Callable[[Function], Function]:
    """Compile with numba: cached on disk beside the source, and without the interpreter's lock.

    Args:
        signature: Give one where the function is handed to another compiled function: it is then passed by address,
            so that one compiled replay, cached once, serves every policy.
        borrows: It makes no array and returns none. Then numba counts no references to its arguments, which takes as
            long as all else in a function that is called for every access, and longer where threads share an array. One
            that makes an array all the same does not compile.
    """
    # numba's stubs leave the last one out
    options: Any = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": not borrows}
    return cast("Callable[[Function], Function]", njit(signature, **options))


@intrinsic
def _ctpop(_context: Any, word: Any) -> Any:
    return types.int64(word), lambda _context, builder, _signature, arguments: builder.ctpop(arguments[0])


@compiled()
def count_ones(word: np.uint64) -> int:
    """How many bits of a word are set: one instruction, which numba has no name for."""
    return _ctpop(word)  # type: ignore[call-arg] # the context is numba's
