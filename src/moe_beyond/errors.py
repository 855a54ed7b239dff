"""The one exception that a user can fix: bad input, described in one line."""

from textwrap import shorten

_MOST = 600


class InputError(ValueError):
    """Input that breaks a contract.

    The message is one line: where (file, row or field), what was found, what was expected and how to fix it.
    Stage scripts and the command line print it without a traceback and exit with status 1.
    """


def reason_of(error: object) -> str:
    """What a library says, in one line; pages of it end after a whole word."""
    return shorten(str(error), _MOST, placeholder=" ...")
