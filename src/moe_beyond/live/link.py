"""The way from the slow tier to the slots: one load after another, demand before prefetches.

A thread of its own loads what the cache says is next, and decides nothing. It reads in pieces, so that a demand
interrupts a prefetch that is under way, which goes on afterwards. `lanes` pieces are read at once. A bandwidth slows
the link down to a device's: a piece is not done before such a link would have carried it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Protocol

_PIECE_MS = 1.0
"""How long a slowed link takes for a piece at most: a demand waits no longer for the link."""
_PAGE = 4096
_LARGEST_PIECE, _SMALLEST_PIECE = 2**20, 2**14
_AT_ONCE_S = 1e-4
"""A piece that begins this soon after the last one makes up for a wait that ended late."""


class SlowTier(Protocol):
    """Where experts lie: what a link reads from."""

    def size(self, expert: int, precision: int) -> int:
        """Bytes to read for an expert at a precision, a multiple of 4096."""

    def read(self, expert: int, precision: int, slot: int, start: int, end: int) -> None:
        """Read these bytes of it on their way to a slot; threads read pieces of one expert at once."""

    def finish(self, expert: int, precision: int, slot: int) -> None:
        """All pieces are read: check them, and leave the expert in the slot as it computes."""


@dataclass(frozen=True)
class Load:
    """An expert on its way to a slot."""

    expert: int
    slot: int
    precision: int = 0


class Link:
    """Loads what is demanded, and meanwhile what `next_prefetch` names.

    Attributes:
        changed: Guards all that the thread and its owner share, and wakes them.
        busy_s: Seconds in which it has loaded.
        bytes_read: Bytes that it has loaded.
    """

    def __init__(
        self,
        tier: SlowTier,
        next_prefetch: Callable[[], Load | None],
        prefetched: Callable[[Load, bool], None],
        *,
        lanes: int = 1,
        gb_per_s: float | None = None,
    ) -> None:
        """Both functions are called by the thread, with `changed` held.

        Args:
            tier: Where experts lie.
            next_prefetch: What to load next while nothing is demanded; None: nothing.
            prefetched: Called with it, and whether it was loaded; else it was cancelled.
            lanes: Pieces read at once.
            gb_per_s: 10^9 bytes a second at most; None: as fast as the tier is.
        """
        self.changed = Condition()
        self.busy_s, self.bytes_read = 0.0, 0
        self._tier, self._next_prefetch, self._prefetched = tier, next_prefetch, prefetched
        self._readers, self._lanes = ThreadPoolExecutor(lanes), lanes
        self._bytes_per_s = None if gb_per_s is None else gb_per_s * 1e9
        piece = _LARGEST_PIECE if gb_per_s is None else gb_per_s * 1e6 * _PIECE_MS / lanes
        self._piece = int(min(max(piece, _SMALLEST_PIECE), _LARGEST_PIECE)) // _PAGE * _PAGE
        self._free_at, self._ended = 0.0, 0.0
        self._demanded: list[Load] = []
        self._loading: Load | None = None
        self._cancelled, self._closed = False, False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="experts", daemon=True)
        self._thread.start()

    @property
    def loading(self) -> int | None:
        """The expert whose prefetch is under way; with `changed` held."""
        return None if self._loading is None else self._loading.expert

    def demand(self, loads: Sequence[Load]) -> None:
        """Load these before anything else, in this order; with `changed` held."""
        self._demanded += loads
        self.changed.notify_all()

    def cancel(self) -> None:
        """Give the prefetch under way up; `prefetched` tells when it has ended; with `changed` held."""
        self._cancelled = True

    def wait(self, expert: int | None = None) -> None:
        """Wait until all that was demanded is there, and with it `expert` if its prefetch is under way.

        Raises:
            InputError: As the tier; what the thread ran into is raised here.
        """
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    self._error is not None or not (self._demanded or (expert is not None and self.loading == expert))
                )
            )
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        """End the thread; a load under way is given up."""
        with self.changed:
            self._closed = self._cancelled = True
            self._demanded.clear()
            self.changed.notify_all()
        self._thread.join()
        self._readers.shutdown()

    def _run(self) -> None:
        try:
            while True:
                with self.changed:
                    while not (self._closed or self._demanded or self._start()):
                        self.changed.wait()
                    if self._closed:
                        return
                    demanded = bool(self._demanded)
                if demanded:
                    self._load_demanded()
                else:
                    self._load_prefetch()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            with self.changed:
                self._error = error
                self.changed.notify_all()

    def _start(self) -> bool:
        self._cancelled = False
        self._loading = self._next_prefetch()
        return self._loading is not None

    def _load_demanded(self) -> None:
        while True:
            with self.changed:
                if not self._demanded:
                    return
                load = self._demanded[0]
            for piece in self._pieces(load):
                if self._closed:
                    return
                self._carry(load, piece)
            self._tier.finish(load.expert, load.precision, load.slot)
            with self.changed:
                # close may have cleared it
                del self._demanded[:1]
                if not self._demanded:
                    self.changed.notify_all()

    def _load_prefetch(self) -> None:
        load = self._loading
        assert load is not None  # noqa: S101 - only called after `_start`
        for piece in self._pieces(load):
            if self._demanded:
                self._load_demanded()
            if self._cancelled:
                break
            self._carry(load, piece)
        else:
            self._tier.finish(load.expert, load.precision, load.slot)
        with self.changed:
            loaded = not self._cancelled
            self._loading = None
            self._prefetched(load, loaded)
            self.changed.notify_all()

    def _pieces(self, load: Load) -> list[tuple[int, int]]:
        """What is carried at once: as many pieces as there are lanes."""
        size, step = self._tier.size(load.expert, load.precision), self._piece * self._lanes
        return [(start, min(start + step, size)) for start in range(0, size, step)]

    def _carry(self, load: Load, piece: tuple[int, int]) -> None:
        start, end = piece
        began = time.perf_counter()
        if self._lanes == 1 or end - start <= _PAGE:
            self._tier.read(load.expert, load.precision, load.slot, start, end)
        else:
            step = -(-(end - start) // self._lanes // _PAGE) * _PAGE
            parts = [
                self._readers.submit(
                    self._tier.read, load.expert, load.precision, load.slot, first, min(first + step, end)
                )
                for first in range(start, end, step)
            ]
            for part in parts:
                part.result()
        if self._bytes_per_s is not None:
            earliest = self._free_at if began - self._ended < _AT_ONCE_S else began
            self._free_at = earliest + (end - start) / self._bytes_per_s
            _sleep_until(self._free_at)
        self._ended = time.perf_counter()
        self.busy_s += self._ended - began
        self.bytes_read += end - start


def _sleep_until(moment: float) -> None:
    left = moment - time.perf_counter()
    if left > 0:
        time.sleep(left)
