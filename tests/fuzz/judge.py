"""One case: files are made by a mutation, read, and judged."""

import shutil
import tempfile
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moe_beyond.errors import InputError
from tests.formats.cases import write
from tests.fuzz.mutations import packed

FINE = ("same", "other", "refused")
"""Read as the whole input, read with other content, refused in one line."""
BAD = ("traceback", "several lines", "silently other", "too long", "too large")


class Verdict(NamedTuple):
    """Kind, and what to look at."""

    kind: str
    detail: str = ""


class Case(NamedTuple):
    """What a mutation made: files, or one archive of them, or None where it cannot be written."""

    done: str
    files: dict[str, bytes]
    ending: str = ""


def made(name: str, target: Any, number: int, seed: int) -> Case:
    """The case of this number; the same each time."""
    draw = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    done, files = target.mutate(target.files, draw)
    if target.packed and draw.integers(4) == 0:
        # a damaged archive, or a member twice, of whole files
        ending, done, data = packed(target.files, draw)
        return Case(done, {f"x.{ending}": data}, ending)
    return Case(done, files)


def judge(target: Any, case: Case, whole: str, digest: Callable[[Any], str]) -> Verdict:
    """Write the case into a folder and read it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        try:
            write(folder, case.files)
        except (OSError, ValueError):
            return Verdict("refused", "the file system has no such name")
        return _judge(target, folder / f"x.{case.ending}" if case.ending else folder, case.done, whole, digest)
    finally:
        shutil.rmtree(folder)


def _judge(target: Any, source: Path, done: str, whole: str, digest: Callable[[Any], str]) -> Verdict:
    try:
        found = digest(target.read(source))
    except InputError as error:
        lines = str(error).splitlines()
        return Verdict("refused", str(error)) if len(lines) == 1 else Verdict("several lines", str(error))
    except FileNotFoundError as error:  # a command says which one in one line
        return Verdict("refused", str(error))
    except BaseException:  # noqa: BLE001 - also what a library in another language raises
        return Verdict("traceback", traceback.format_exc())
    if found == whole:
        return Verdict("same")
    return Verdict("silently other", done) if done in target.strict else Verdict("other")
