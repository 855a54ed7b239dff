"""What all commands share: the application, how results are shown, and how errors end."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_beyond.errors import InputError

if TYPE_CHECKING:
    from moe_beyond.traces.schema import Trace


def named(path: Path) -> Path:
    """`.`, `..` and the like as a path that has a name: messages and data sets are called by it."""
    return path if path.name not in ("", "..") else path.resolve()


app = typer.Typer(
    help="Which experts of a Mixture-of-Experts model come next, and what is that worth?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
TracePath = Annotated[Path, typer.Argument(help="A Parquet file, a folder of them, or a working trace", callback=named)]
AllowTrainingPrompts = Annotated[
    bool,
    typer.Option("--allow-training-prompts", help="Go on though the predictor's training data holds these prompts."),
]
RESAMPLES = 1000


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End with status 1 and one line for what a user can fix."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the one line that a person reads
        raise typer.Exit(1) from error


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a document: as JSON, or as a table of its leaves and its `notes`, a line each."""
    if as_json:
        print(json.dumps(result, indent=2))  # noqa: T201 - the command's output
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Column, Table  # noqa: PLC0415

    from moe_beyond.settings import flatten  # noqa: PLC0415

    table = Table(Column(overflow="fold"), Column(overflow="fold"), show_header=False, box=None)
    for key, value in flatten({key: value for key, value in result.items() if key != "notes"}).items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(key, shown)
    Console().print(table)
    for note in result.get("notes", []):
        Console().print(f"- {note}", highlight=False, soft_wrap=True)


def read_trace(path: Path) -> Trace:
    """Read a trace in either of its forms: Parquet, or the working form that a split lies in.

    Raises:
        InputError: There is none, or it is damaged.
    """
    from moe_beyond.traces import store  # noqa: PLC0415

    _refuse_other_formats(path)
    return store.open_working(path) if store.has_working(path) else store.read_parquet(path)


def _refuse_other_formats(path: Path) -> None:
    """Raise InputError for a file of an engine: counts, which have no order, or a trace that is not imported."""
    if not path.is_file() or path.suffix == ".parquet":
        return
    from moe_beyond.formats.recognise import recognise  # noqa: PLC0415

    try:
        kind, found, reason = recognise(path)
    except InputError:
        return  # no known format: the reader of traces says what it is not
    if kind == "counts":
        raise InputError(
            f"{path}: {found}: {reason}; counts, without the order of the tokens that this needs: only "
            f"`assess --counts {found}` and placements take them"
        )
    raise InputError(f"{path}: {found}: {reason}; import it first: moe-beyond import {found} {path} trace.parquet")
