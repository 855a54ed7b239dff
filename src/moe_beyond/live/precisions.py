"""Experts of a store at several precisions: whole records, and quantised copies of them that exist as files.

The copies of a store lie inside its folder, a store of their own for each number of levels, named `<levels>-levels`;
they are written when they are first needed. A load reads the copy's bytes, rounded up to 4096, and unpacks them in
the slot. A slot holds whole weights, where an engine with kernels for them would keep the packed ones: that takes more
memory and the time of unpacking, and changes neither bytes read nor outputs.

Shape suffixes: V precisions of a policy, M experts of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from filelock import FileLock
from xxhash import xxh3_128_hexdigest

from moe_beyond.errors import InputError
from moe_beyond.files import replacing
from moe_beyond.live.quantiser import WHOLE, Quantiser
from moe_beyond.live.store import (
    MANIFEST,
    PAGE,
    RECORDS,
    Contents,
    ExpertStore,
    Manifest,
    StoredParameter,
    aligned_buffer,
    read_manifest,
)

if TYPE_CHECKING:
    from moe_beyond.simulator.engine.online import Online
    from moe_beyond.simulator.engine.policy import Policy
    from moe_beyond.simulator.jit import F64, I64


def levels_of(policy: Policy, decisions: Online, store: ExpertStore, levels_V: Sequence[int] = ()) -> I64:
    """Levels of each expert at each precision of a policy, WHOLE for the record as it is, int64 [V, M].

    A policy assumes sizes, as shares of the whole expert. Unless it says levels itself, or `levels_V` does for it, each
    lower precision is the copy of the most bits that takes no more than its share, its steps left out: of 0.25, 8 bits
    of float32, or 4 of bfloat16.

    Raises:
        InputError: `levels_V` are not as many as the policy's precisions, or not WHOLE or 2 to 256.
    """
    if not levels_V and decisions.levels_M is not None:
        return np.asarray(decisions.levels_M, np.int64)[None]
    if not levels_V:
        bits = 8 * max(parameter.dtype.itemsize for parameter in store.parameters)
        lower = [2 ** min(8, max(1, int(share * bits))) for share in policy.precisions[1:]]
        levels_V = [WHOLE, *lower]
    if len(levels_V) != len(policy.precisions) or any(n != WHOLE and not 2 <= n <= 256 for n in levels_V):
        raise InputError(
            f"policy {policy.name}: levels {list(levels_V)}; give {len(policy.precisions)}, one a precision, each "
            f"from 2 to 256 or {WHOLE} for the expert as it is"
        )
    return np.repeat(np.array(levels_V, np.int64)[:, None], store.num_model_experts, axis=1)


@dataclass(frozen=True)
class Copies:
    """What is read for each expert at each precision.

    Attributes:
        store: The whole records.
        levels_VM: int64, WHOLE for those.
        stores: The copies by their levels.
    """

    store: ExpertStore
    levels_VM: I64
    stores: dict[int, ExpertStore]

    @classmethod
    def open(cls, store: ExpertStore, levels_VM: I64) -> Self:
        """Open the copies, and write those that are not there yet.

        Raises:
            InputError: Copies of other experts, damaged ones, a record that differs from its digest, no room.
        """
        needed = [int(levels) for levels in np.unique(levels_VM) if levels != WHOLE]
        return cls(store, levels_VM, {levels: _open_copies(store, levels) for levels in needed})

    @property
    def size_VM(self) -> F64:
        """Bytes that a load reads as a share of the whole record's, float64."""
        size_VM = np.ones(self.levels_VM.shape)
        for levels, copies in self.stores.items():
            size_VM[self.levels_VM == levels] = copies.stride / self.store.stride
        return size_VM

    def close(self) -> None:
        """Close the copies, not the store."""
        for copies in self.stores.values():
            copies.close()


def _open_copies(store: ExpertStore, levels: int) -> ExpertStore:
    folder = store.folder / f"{levels}-levels"
    # of these very records
    revision = f"{read_manifest(store.folder).digest} in {levels} levels"
    try:
        with FileLock(store.folder / f".{folder.name}.lock"):
            if not folder.exists():
                _write_copies(store, levels, revision, folder)
    except OSError as error:
        raise InputError(
            f"{folder}: copies of the experts cannot be written ({error.strerror}); make room or the folder writable"
        ) from error
    copies = ExpertStore.open(folder)
    if copies.revision != revision:
        copies.close()
        raise InputError(f"{folder}: holds copies of other experts than {store.folder}; delete it")
    return copies


def _write_copies(store: ExpertStore, levels: int, revision: str, folder: Path) -> None:
    quantiser = Quantiser(store.parameters, levels)
    contents = Contents(
        model_id=store.model_id,
        revision=revision,
        layer_numbers=store.layer_numbers,
        num_experts=store.num_experts,
        parameters=(StoredParameter(name="packed", shape=(quantiser.nbytes,), dtype=torch.uint8, offset=0),),
        record_bytes=quantiser.nbytes,
        stride=-(-quantiser.nbytes // PAGE) * PAGE,
    )
    if contents.stride > store.stride:
        raise InputError(
            f"{store.folder}: a copy with {levels} levels takes {contents.stride} bytes, the expert itself "
            f"{store.stride}; take fewer levels"
        )
    record_N, packed_N = aligned_buffer(store.stride), torch.zeros(contents.stride, dtype=torch.uint8)
    digests = []
    with replacing(folder) as work:
        work.mkdir()
        with (work / RECORDS).open("wb") as file:
            for expert in range(store.num_model_experts):
                store.read(expert, record_N.numpy().data, 0, store.stride)
                store.check(expert, record_N.numpy().data)
                packed_N[: quantiser.nbytes] = quantiser.pack(record_N)
                digests.append(xxh3_128_hexdigest(packed_N.numpy().data))
                file.write(packed_N.numpy().data)
        manifest = Manifest(contents=contents, digests=tuple(digests)).sealed()
        (work / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
