"""The one exception that a user can fix: bad input, described in one line."""

import pickle
import re
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

from moe_beyond.masking import masked

_MOST, _SHOWN = 600, 80
# a part of a path, a name or a value; what a path holds besides is worth reading whole
_LONG = re.compile(rf"[^\s/,;]{{{_SHOWN + 20},}}")


class InputError(ValueError):
    """Input that breaks a contract.

    The message is one line: where (file, row or field), what was found, what was expected and how to fix it.
    Stage scripts and the command line print it without a traceback and exit with `status`.
    """

    status = 1


class TamperedError(InputError):
    """A file that is not the one that was exported or registered: damaged on its way, or changed by somebody."""

    status = 4


SYSTEM_ERRORS = (OSError, MemoryError, RecursionError, OverflowError)
"""What a path, a full disk or an impossible size raises anywhere: a user can mend these, too."""

DAMAGE_ERRORS = (
    *(*SYSTEM_ERRORS, zipfile.BadZipFile, tarfile.TarError, zlib.error, pickle.UnpicklingError, tokenize.TokenError),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, EOFError, RuntimeError),
    SyntaxError,
)
"""What readers of archives, arrays and pickles raise at bytes that are damaged or none of theirs. Catch `InputError`
first where one may come from within."""


def line_of(error: BaseException) -> str:
    """What an `InputError` or one of `SYSTEM_ERRORS` says, in one line without passwords or long names."""
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return shortened(text)


def shortened(text: str) -> str:
    """Text on one line, without passwords and what a terminal would act on, and of a long word its beginning."""
    return _LONG.sub(lambda found: f"{found[0][:_SHOWN]}...", "".join(map(_visible, masked(text))))


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def reason_of(error: object) -> str:
    """What a library says, in one line and without passwords; pages of it end after a whole word."""
    return shorten(masked(str(error)), _MOST, placeholder=" ...")


def first_line_of(error: BaseException) -> str:
    """What a library says first; the kind of its error where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file that was read before the message of an `InputError` that names none."""
    try:
        yield
    except InputError as error:
        names_a_file = "/" in str(error).partition(": ")[0]
        raise error if names_a_file else InputError(f"{path}: {error}") from error
