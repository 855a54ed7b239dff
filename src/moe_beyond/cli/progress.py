"""What a command says on stderr while it works: a line after two seconds, then one every ten."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_FIRST_S, _NEXT_S = 2.0, 10.0
_doing = [""]


def tell(words: str) -> None:
    """Say in the next line what is being done."""
    _doing[0] = words


@contextmanager
def shown() -> Iterator[None]:
    """Print lines until the end of the context; none where it ends within two seconds."""
    ended, started = threading.Event(), time.monotonic()
    tell("working")

    def lines() -> None:
        wait_s = _FIRST_S
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
