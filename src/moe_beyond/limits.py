"""How much a source may hold or unpack to: so that a few bytes of it cost neither hours nor memory.

Defaults are far above what is published. `MOE_BEYOND_LIMITS` sets others for a process and those that it starts, as
`members=500000 file_bytes=1073741824`; `limited` does for a part of a program.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace

from moe_beyond.errors import InputError

VARIABLE = "MOE_BEYOND_LIMITS"


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


_SET: ContextVar[Limits | None] = ContextVar("limits", default=None)


def limits() -> Limits:
    """Those that hold now.

    Raises:
        InputError: `MOE_BEYOND_LIMITS` names no limit, or gives one no whole number from 1 on.
    """
    return _SET.get() or _given(os.environ.get(VARIABLE, ""))


@functools.cache
def _given(words: str) -> Limits:
    names = [field.name for field in fields(Limits)]
    found: dict[str, int] = {}
    for word in words.replace(",", " ").split():
        name, _, value = word.partition("=")
        if name not in names or not re.fullmatch(r"0*[1-9][0-9]{0,17}", value):
            raise InputError(f"{VARIABLE}: {word!r:.60}; give NAME=WHOLE NUMBER from 1 on, of {', '.join(names)}")
        found[name] = int(value)
    return Limits(**found)


@contextmanager
def limited(**changes: int) -> Iterator[None]:
    """Other limits within the block, by their names in `Limits`."""
    token = _SET.set(replace(limits(), **changes))
    try:
        yield
    finally:
        _SET.reset(token)
