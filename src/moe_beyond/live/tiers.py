"""Slow tiers: an expert store, read past the page cache straight into a slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_beyond.live.pool import ExpertPool
    from moe_beyond.live.store import ExpertStore


class FileTier:
    """Records of a store, as they are. Implements `link.SlowTier`."""

    def __init__(self, store: ExpertStore, pool: ExpertPool) -> None:
        """Read from `store` into the slots of `pool`."""
        self._store = store
        self._slots = [pool.record(slot).numpy().data for slot in range(len(pool.bytes_SB))]

    def size(self, expert: int, precision: int) -> int:
        """Bytes of a record, `stride` of the store."""
        return self._store.stride

    def read(self, expert: int, precision: int, slot: int, start: int, end: int) -> None:
        """Read a part of a record. Raises InputError as the store."""
        self._store.read(expert, self._slots[slot], start, end)

    def finish(self, expert: int, precision: int, slot: int) -> None:
        """Compare the record's digest. Raises InputError as the store."""
        self._store.check(expert, self._slots[slot])
