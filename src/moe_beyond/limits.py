"""How much a source may hold or unpack to: so that a few bytes of it cost neither hours nor memory.

Defaults are far above what is published. `limited` sets others for a part of a program.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Limits:
    """Most of each.

    Packing is undone twice at most: an archive, and a `.gz` or `.xz` in it. Archives in archives are not opened.

    Attributes:
        file_bytes: Of one file, unpacked.
        total_bytes: Of all that a packed source unpacks to.
        ratio: Unpacked bytes for each packed one, from `small_bytes` on.
        small_bytes: What any source may unpack to.
        members: Files in an archive or folder.
        depth: Lists and objects within one another, in JSON and YAML.
        digits: Of a number in JSON.
        settings_bytes: Of a YAML file.
    """

    file_bytes: int = 256 << 20
    total_bytes: int = 16 << 30
    ratio: int = 1000
    small_bytes: int = 16 << 20
    members: int = 200_000
    depth: int = 64
    digits: int = 400
    settings_bytes: int = 1 << 20


_DEFAULT = Limits()
_CURRENT = ContextVar("limits", default=_DEFAULT)


def limits() -> Limits:
    """Those that hold now."""
    return _CURRENT.get()


@contextmanager
def limited(**changes: int) -> Iterator[None]:
    """Other limits within the block, by their names in `Limits`."""
    token = _CURRENT.set(replace(limits(), **changes))
    try:
        yield
    finally:
        _CURRENT.reset(token)
