"""Passwords in what is printed or kept: none, whoever wrote the text.

PROGRAM 2>&1 | python -m moe_beyond.masking      # what a program of others prints, masked
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any, TextIO, cast
from urllib.parse import quote, unquote

_NAMED = r"(?:[\w-]*(?:password|passwd|secret)[\w-]*|(?:[\w-]*[_-])?(?:pwd|token|api_?key|signature|sig))"
_VALUE = r"[^&\s'\"<>]+"
# `scheme://name:password@`; what a person did not escape may hold / and @, and a port is no password
_LOGIN = re.compile(r"(?<=://)[^/@:\s'\"<>]*:(?!\d+(?:/|$))([^\s'\"<>]*)@")
_NAME = re.compile(r"(?<=://)([^/@\s'\"<>]+)@")
_PARAMETER = re.compile(rf"(?<![\w-])({_NAMED})=({_VALUE})", re.IGNORECASE)
_VARIABLE = re.compile(r"(?:PASSWORD|PASSWD|TOKEN|SECRET|SECRET_ACCESS_KEY|API_KEY)$")
_LEAST = 6
"""A shorter word may be a part of any other word: only the form of an address masks it."""


def masked(text: str) -> str:
    """Text without names and passwords of addresses, and without values of parameters that are secret by their name.

    A secret of six characters or more that a variable of the environment holds is masked without either.
    """
    text = _PARAMETER.sub(r"\1=", _NAME.sub("", _LOGIN.sub("", text)))
    for secret in _known():
        text = text.replace(secret, "***")
    return text


def has_password(address: str) -> bool:
    """Whether an address holds one, by its form."""
    return bool(_LOGIN.search(address) or _PARAMETER.search(address))


def mask_output() -> None:
    """Let nothing reach stdout and stderr of this process unmasked: lines, logs, warnings and tracebacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Masked):
            setattr(sys, name, cast(TextIO, _Masked(stream)))


class _Masked:
    """A text stream that masks what is written to it, and is in all else the one that it wraps."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._stream.write(masked(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)


def _known() -> list[str]:
    """Secrets in the environment, longest first, as they are, escaped and not."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _VARIABLE.search(name):
            found.add(value)
        if "://" in value:
            found.update(_LOGIN.findall(value))
            found.update(secret for _, secret in _PARAMETER.findall(value))
    forms = {form for secret in found for form in (secret, unquote(secret), quote(secret, safe=""))}
    return sorted((form for form in forms if len(form) >= _LEAST), key=len, reverse=True)


def main() -> None:
    """Copy stdin to stdout, masked, line by line."""
    cast(Any, sys.stdin).reconfigure(errors="replace")
    for line in sys.stdin:
        sys.stdout.write(masked(line))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
