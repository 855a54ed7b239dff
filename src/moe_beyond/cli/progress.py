"""What a command says on stderr while it works: how long and, where it knows, what at.

The first line comes after two seconds in a terminal, after five where a program reads, which may count lines of errors.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_TERMINAL_S, _ELSEWHERE_S, _NEXT_S = 2.0, 5.0, 10.0
_doing = [""]


def tell(words: str) -> None:
    """Say in the next line what is being done."""
    _doing[0] = words


@contextmanager
def shown() -> Iterator[None]:
    """Print lines until the end of the context; none where it ends at once."""
    ended, started = threading.Event(), time.monotonic()
    tell("working")

    def lines() -> None:
        wait_s = _TERMINAL_S if sys.stderr.isatty() else _ELSEWHERE_S
        while not ended.wait(wait_s):
            print(f"{_doing[0]}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)  # noqa: T201
            wait_s = _NEXT_S

    thread = threading.Thread(target=lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
