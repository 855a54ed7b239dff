"""A group of commands whose first word may also be a format: `export hub TRACE OUT` beside `export placement ...`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup
from typing_extensions import override

WHOLE_TRACE = "trace"
"""The command that takes a format as its first word."""


class FormatFirst(TyperGroup):
    """Takes a first word that names none of its commands, and is no option, for a format."""

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else [WHOLE_TRACE, *args])
