"""The one exception that a user can fix: bad input, described in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

_MOST = 600


class InputError(ValueError):
    """Input that breaks a contract.

    The message is one line: where (file, row or field), what was found, what was expected and how to fix it.
    Stage scripts and the command line print it without a traceback and exit with `status`.
    """

    status = 1


class TamperedError(InputError):
    """A file that is not the one that was exported or registered: damaged on its way, or changed by somebody."""

    status = 4


def reason_of(error: object) -> str:
    """What a library says, in one line; pages of it end after a whole word."""
    return shorten(str(error), _MOST, placeholder=" ...")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file that was read before the message of an `InputError` that names none."""
    try:
        yield
    except InputError as error:
        names_a_file = "/" in str(error).partition(": ")[0]
        raise error if names_a_file else InputError(f"{path}: {error}") from error
