"""Slow tiers: an expert store, read past the page cache straight into a slot; or host memory before an accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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


class MemoryTier:
    """All records in host memory, copied to slots on an accelerator. Implements `link.SlowTier`.

    Copies run on a stream of their own, from pinned memory, and wait for the computing that a slot was last used in.
    """

    def __init__(self, store: ExpertStore, pool: ExpertPool) -> None:
        """Read all records, each checked.

        Raises:
            InputError: As the store.
        """
        self._pool, self._size = pool, store.stride
        self._cuda = pool.bytes_SB.is_cuda
        self._host_MB = torch.empty((store.num_model_experts, store.stride), dtype=torch.uint8, pin_memory=self._cuda)
        for expert in range(store.num_model_experts):
            record = self._host_MB[expert].numpy().data
            store.read(expert, record, 0, store.stride)
            store.check(expert, record)
        self._stream = torch.cuda.Stream() if self._cuda else None

    def size(self, expert: int, precision: int) -> int:
        """Bytes of a record, `stride` of the store."""
        return self._size

    def read(self, expert: int, precision: int, slot: int, start: int, end: int) -> None:
        """Copy a part of a record, and wait until it is there."""
        with torch.cuda.stream(self._stream):
            if self._stream is not None and self._pool.computed is not None:
                self._stream.wait_event(self._pool.computed)
            self._pool.bytes_SB[slot, start:end].copy_(self._host_MB[expert, start:end], non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()

    def finish(self, expert: int, precision: int, slot: int) -> None:
        """Nothing is left to do: records were checked when they were read."""
