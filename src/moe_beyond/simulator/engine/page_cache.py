"""The operating system's page cache as a replay sees it: what was read last, least recently read dropped first.

One array of integers, so that a compiled loop can carry it: a list of experts linked in the order of their reads. Slot
`precision * M + expert` of both rows says which was read next and which before; the last slot is both ends.

Shape suffixes: V precisions, M experts of the model.
"""

from __future__ import annotations

import numpy as np

from moe_beyond.simulator.jit import I64, compiled

NEWER, OLDER, AMOUNTS = range(3)
_ABSENT = -1
_HELD, _LIMIT = range(2)


@compiled()
def new(bytes_VM: I64, limit: int) -> I64:
    """An empty page cache for experts of these sizes that keeps at most `limit` bytes."""
    ends = bytes_VM.size
    pages = np.full((3, max(ends + 1, 2)), _ABSENT)
    pages[NEWER, ends], pages[OLDER, ends] = ends, ends
    pages[AMOUNTS, _HELD], pages[AMOUNTS, _LIMIT] = 0, limit
    return pages


@compiled(borrows=True)
def read(pages: I64, bytes_VM: I64, precision: int, expert: int) -> bool:
    """Read an expert; returns whether it lay there. It is kept as the latest, and the earliest go until all fit."""
    if pages[AMOUNTS, _LIMIT] == 0:
        return False
    num_experts = bytes_VM.shape[1]
    slot, ends = precision * num_experts + expert, bytes_VM.size
    found = pages[NEWER, slot] != _ABSENT
    if found:
        _unlink(pages, slot)
    else:
        pages[AMOUNTS, _HELD] += bytes_VM[precision, expert]
    latest = pages[OLDER, ends]
    pages[OLDER, slot], pages[NEWER, slot] = latest, ends
    pages[NEWER, latest], pages[OLDER, ends] = slot, slot
    while pages[AMOUNTS, _HELD] > pages[AMOUNTS, _LIMIT]:
        earliest = pages[NEWER, ends]
        _unlink(pages, earliest)
        pages[NEWER, earliest] = _ABSENT
        pages[AMOUNTS, _HELD] -= bytes_VM[earliest // num_experts, earliest % num_experts]
    return bool(found)


@compiled(borrows=True)
def _unlink(pages: I64, slot: int) -> None:
    before, after = pages[OLDER, slot], pages[NEWER, slot]
    pages[NEWER, before], pages[OLDER, after] = after, before
