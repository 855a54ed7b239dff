"""The one exception that a user can fix: bad input, described in one line."""


class InputError(ValueError):
    """Input that breaks a contract.

    The message is one line: where (file, row or field), what was found, what was expected and how to fix it.
    Stage scripts and the command line print it without a traceback and exit with status 1.
    """
