"""Slow tiers: an expert store, read past the page cache straight into a slot; or host memory before an accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moe_beyond.live.quantiser import WHOLE, Quantiser

if TYPE_CHECKING:
    from moe_beyond.live.pool import ExpertPool
    from moe_beyond.live.precisions import Copies
    from moe_beyond.live.store import ExpertStore


class FileTier:
    """Records and their copies, read past the page cache straight into a slot. Implements `link.SlowTier`."""

    def __init__(self, pool: ExpertPool, copies: Copies) -> None:
        """Read into the slots of `pool`."""
        self._pool, self._copies = pool, copies
        self._slots = [pool.record(slot).numpy().data for slot in range(len(pool.bytes_SB))]
        self._quantisers = {levels: Quantiser(copies.store.parameters, levels) for levels in copies.stores}

    def size(self, expert: int, precision: int) -> int:
        """Bytes of what is read, `stride` of its store."""
        return self._read_from(expert, precision).stride

    def read(self, expert: int, precision: int, slot: int, start: int, end: int) -> None:
        """Read a part of it. Raises InputError as the store."""
        self._read_from(expert, precision).read(expert, self._slots[slot], start, end)

    def finish(self, expert: int, precision: int, slot: int) -> None:
        """Compare the digest, and unpack a copy. Raises InputError as the store."""
        self._read_from(expert, precision).check(expert, self._slots[slot])
        levels = int(self._copies.levels_VM[precision, expert])
        if levels != WHOLE:
            quantiser, record_N = self._quantisers[levels], self._pool.record(slot)
            quantiser.unpack(record_N[: quantiser.nbytes].clone(), record_N)

    def _read_from(self, expert: int, precision: int) -> ExpertStore:
        levels = int(self._copies.levels_VM[precision, expert])
        return self._copies.stores.get(levels, self._copies.store)


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
